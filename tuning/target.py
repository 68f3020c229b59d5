"""A workload's target, set by its first-order references before any other training algorithm has run.

The procedure is AlgoPerf's (Dahl et al. 2023, section 4.3). Random points of each reference, from a wide space, train
over the whole budget. The best point is repeated on fresh seeds. The target is the median of the best validation
metric; the test target is the median of the test metric at the same evaluations. The best point is also the workload's
reference run.

The search can stop points early by asynchronous successive halving (Li et al. 2020, arXiv 1810.05934). At each rung a
point stops if its best metric so far is in the worse half of the same reference's points that reached the rung. A point
that starts slowly can be missed, and the target is then easier than that of a search without halving.
"""

import csv
import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import records, search_space, submission, target_workers
from tuning.claim import Claim
from tuning.description import describe
from tuning.errors import UserError, setup_phase
from tuning.interruption import RUN_AGAIN, Interruption
from tuning.outcome import Outcome, Progress
from tuning.submission import Submission
from tuning.trial import finished_outcome, run_trial
from workloads import registry
from workloads.spec import Direction, Workload

_MIN_COMPARED = 4  # points that must have reached a rung, this one included, before any stops there; a choice
_SPACE_FILE = "target_search_space.json"


@dataclass(frozen=True)
class Protocol:
    """How a target is set.

    Attributes:
        references: folders of the first-order submissions, each with a `target_search_space.json`.
        n_points: random points of each reference.
        n_seeds: repetitions of the best point, on the seeds after `search_seed`.
        search_seed: draws the points and seeds the trials of the search.
        folder: trial folders go to `folder/{workload}/{submission}/…`; finished trials there are used again.
        rungs: shares of the step budget, ascending, at which the search stops the worse half; none for whole trials.
    """

    workload: str
    references: tuple[str, ...]
    n_points: int
    n_seeds: int
    search_seed: int
    folder: Path
    data_dir: str
    rungs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Job:
    """One trial; `seed` is None in the search."""

    protocol: Protocol
    reference: str
    index: int  # of the point, from 0
    seed: int | None = None

    @property
    def folder(self) -> Path:
        trial = f"trial_{self.index + 1}"
        subfolder = f"search/{trial}" if self.seed is None else f"repeat/{trial}_seed_{self.seed}"
        return self.protocol.folder / self.protocol.workload / Path(self.reference).name / subfolder


def find_targets(
    protocols: Sequence[Protocol], workers: int = 1, log: Callable[[str], None] = print
) -> Iterator[dict[str, Any]]:
    """Yields each workload's result: the targets, the point that they come from, and every trial.

    The workloads' searches alternate, point by point.

    Args:
        log: called with a line about each trial that ended.

    Raises:
        UserError: there is no such workload, reference or search space; a finished trial's files are incomplete; or too
            many repetitions diverged.
    """
    with setup_phase():
        workloads = {protocol.workload: registry.load(protocol.workload) for protocol in protocols}
    with target_workers.pool(workers) as submit_one:

        def submit(jobs: Iterable[Job]) -> dict[Job, Future]:
            futures = {}
            for job in jobs:
                futures[job] = submit_one(run, job)
                futures[job].add_done_callback(functools.partial(_log_outcome, log, job))
            return futures

        indices = range(max((protocol.n_points for protocol in protocols), default=0))
        searches = submit(
            Job(protocol, path, index)
            for index in indices
            for protocol in protocols
            if index < protocol.n_points
            for path in protocol.references
        )
        repeats = []
        for protocol in protocols:
            searched = {job: future.result() for job, future in searches.items() if job.protocol == protocol}
            workload = workloads[protocol.workload]
            best = max(searched, key=lambda job: _signed(searched[job].best_validation_metric, workload))
            seeds = range(protocol.search_seed + 1, protocol.search_seed + 1 + protocol.n_seeds)
            repeats.append((searched, submit(Job(protocol, best.reference, best.index, seed) for seed in seeds)))
        for protocol, (searched, futures) in zip(protocols, repeats, strict=True):
            repeated = {job: future.result() for job, future in futures.items()}
            yield _result(protocol, searched, repeated)


def _log_outcome(log: Callable[[str], None], job: Job, future: Future) -> None:
    if future.cancelled() or future.exception() is not None:
        return
    outcome = future.result()
    values = outcome.hyperparameters.items()
    point = " ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in values)
    best = "none" if outcome.best_validation_metric is None else f"{outcome.best_validation_metric:.4f}"
    ending = f"{outcome.reason or 'done'} at step {outcome.global_step}"
    log(f"{job.folder}: best {best}, {ending}, {outcome.training_seconds:.1f} s [{point}]")


def _result(protocol: Protocol, searched: Mapping[Job, Outcome], repeated: Mapping[Job, Outcome]) -> dict[str, Any]:
    workload = registry.load(protocol.workload)
    curves, outcomes = [_curve(job.folder, workload) for job in repeated], list(repeated.values())
    targets = _targets([_at_best(job, outcome, workload) for job, outcome in repeated.items()], workload)
    steps = [_first_hit(curve, targets["validation_target"], workload) for curve in curves]
    summaries: dict[str, list[dict[str, Any]]] = {}
    for job, outcome in searched.items():
        summaries.setdefault(Path(job.reference).name, []).append(_summary(outcome))
    return {
        "workload": outcomes[0].workload,
        "reference": outcomes[0].submission,
        "hyperparameters": outcomes[0].hyperparameters,
        **targets,
        "step_budget": outcomes[0].step_budget,
        "rungs": protocol.rungs,
        "median_steps_to_target": statistics.median(math.inf if step is None else step for step in steps),
        "repetitions": [_summary(o) | {"steps_to_target": s} for o, s in zip(outcomes, steps, strict=True)],
        "searches": summaries,
        "environment": outcomes[0].environment,
    }


def run(job: Job) -> Outcome:
    """Runs the trial, or continues it, unless its folder has its outcome. A signal ends it with a checkpoint."""
    protocol, prunes = job.protocol, job.seed is None and bool(job.protocol.rungs)
    workload, reference = _loaded(protocol.workload, job.reference)
    space = search_space.read(reference.file.parent / _SPACE_FILE)
    description = describe(
        protocol.workload,
        workload,
        reference,
        search_space.points(space, job.index + 1, protocol.search_seed)[job.index],
        rng_seed=protocol.search_seed if job.seed is None else job.seed,
        trial_index=1,
        data_dir=protocol.data_dir,
        stop_at_target=False,
        pruning="halving" if prunes else "none",
    )
    with Interruption(RUN_AGAIN) as interruption, ExitStack() as stack:
        with interruption.interruptible():
            claim = stack.enter_context(Claim.take(job.folder))
        outcome = finished_outcome(description, job.folder)
        if outcome is None:
            outcome = run_trial(
                description,
                workload,
                reference,
                claim,
                should_prune=halving(claim, workload, protocol.rungs) if prunes else lambda progress: False,
                checkpoints_to_keep=2,
                resume=True,
                interruption=interruption,
            )
        interruption.raise_if_signalled()  # after the last step, too: no other trial may begin
    return outcome


def halving(claim: Claim, workload: Workload, rungs: Sequence[float]) -> Callable[[Progress], bool]:
    """The rule that stops trials of the search; it is asked after every evaluation.

    Each trial writes its best metric at each rung into its folder, where the other trials read it. It is computed from
    the trial's evaluations on disk, which a resumed trial has, too.
    """
    steps = [math.ceil(part * workload.step_hint) for part in rungs]

    def is_behind(progress: Progress) -> bool:
        values = {step: _signed(value, workload) for step, (value, _) in _curve(claim.folder, workload).items()}
        at_rungs = {step: min((n for n in values if n >= step), default=None) for step in steps}
        best_at_rungs = {
            str(step): max(value for n, value in values.items() if n <= at)
            for step, at in at_rungs.items()
            if at is not None
        }
        reached = [str(step) for step, at in at_rungs.items() if at == progress.global_step]
        if not reached:
            return False
        rung = reached[-1]
        records.write_json(claim.folder / "rungs.json", best_at_rungs, claim.write)
        files = [json.loads(file.read_bytes()) for file in claim.folder.parent.glob("*/rungs.json")]
        at_rung = [values[rung] for values in files if values.get(rung) is not None]
        n_better = sum(value > best_at_rungs[rung] for value in at_rung)
        return len(at_rung) >= _MIN_COMPARED and n_better >= len(at_rung) / 2

    return is_behind


@functools.cache
def _loaded(workload_name: str, reference: str) -> tuple[Workload, Submission]:
    """Cached, so that the trials of a process share compiled steps."""
    return registry.load(workload_name), submission.load(reference)


def _signed(metric: float | None, workload: Workload) -> float:
    """The metric with the sign that makes higher better."""
    if metric is None or not math.isfinite(metric):
        return -math.inf
    return workload.validation_target.direction.sign * metric


def _curve(folder: Path, workload: Workload) -> dict[int, tuple[float, float]]:
    """Step -> (validation metric, test metric), of the trial in the folder; empty if it has made no evaluation."""
    try:
        with (folder / "eval_measurements.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return {}
    validation, test = (f"{split}/{workload.target_metric_name}" for split in ("validation", "test"))
    return {int(row["global_step"]): (float(row[validation]), float(row[test])) for row in rows}


def _at_best(job: Job, outcome: Outcome, workload: Workload) -> tuple[float, float]:
    """(validation, test) metric at the best evaluation; the worst infinity if the trial had no finite evaluation."""
    step, curve = outcome.best_validation_step, _curve(job.folder, workload)
    if step is None:
        worst = -workload.validation_target.direction.sign * math.inf
        return worst, worst
    if step not in curve:
        problem = f"{str(job.folder / 'eval_measurements.csv')!r} lacks the evaluation of step {step}"
        raise UserError(f"{problem}: remove that trial's folder, and run the command again")
    return curve[step]


def _targets(at_best: Sequence[tuple[float, float]], workload: Workload) -> dict[str, float]:
    """The medians. For an even number of seeds it is the easier of the middle two, which more than half reach."""
    is_higher = workload.validation_target.direction is Direction.HIGHER_IS_BETTER
    median = statistics.median_low if is_higher else statistics.median_high
    targets = {
        "validation_target": median(validation for validation, _ in at_best),
        "test_target": median(test for _, test in at_best),
    }
    if not math.isfinite(targets["validation_target"]):
        problem = f"half of the best point's {len(at_best)} seeds, or more, diverged before a finite metric"
        raise UserError(f"{problem}: search more points (--num_tuning_trials), or with other --references")
    return targets


def _first_hit(curve: dict[int, tuple[float, float]], target: float, workload: Workload) -> int | None:
    goal = _signed(target, workload)
    return min((step for step, (metric, _) in curve.items() if _signed(metric, workload) >= goal), default=None)


def _summary(outcome: Outcome) -> dict[str, Any]:
    names = ("rng_seed", "hyperparameters", "reason", "global_step", "best_validation_metric", "best_validation_step")
    return {name: getattr(outcome, name) for name in names} | {"training_seconds": round(outcome.training_seconds, 2)}


def is_set(folder: Path, workload: str) -> bool:
    """Whether the workload has its result; a target is set once."""
    return (folder / f"{workload}.json").exists()


def write(result: dict[str, Any], folder: Path, presets: Path) -> tuple[Path, Path]:
    """Writes the result, and its point as a search space of one point; returns both files.

    Raises:
        UserError: the workload's target is set.
    """
    file = folder / f"{result['workload']}.json"
    if file.exists():
        raise UserError(f"the target of {result['workload']} is set: {str(file)!r}; remove that file to set it anew")
    preset = presets / f"{result['workload']}_{result['reference']}.json"
    records.write_json(file, result)
    records.write_text(preset, json.dumps([result["hyperparameters"]], indent=2) + "\n")
    return file, preset
