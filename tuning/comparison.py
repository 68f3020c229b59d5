"""Which training algorithm reaches a workload's target first: search each one's space, then repeat its best point.

The protocol is the paper's: the same number of random points for every submission on one seed, then the point that
reached the target in the fewest steps again on fresh seeds. Finished trials are found again by their files, so a
comparison that was cut short continues.
"""

import csv
import io
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import machine, search_space, submission
from tuning.claim import Claim
from tuning.description import TrialDescription
from tuning.description import describe as describe_trial
from tuning.errors import UserError
from tuning.outcome import Outcome
from tuning.trial import finished_outcome, run_trial
from workloads import registry


@dataclass(frozen=True)
class Protocol:
    """How many trials of each submission, and where their files go.

    Attributes:
        n_points: random points of each submission's search space.
        seeds: random seeds of the repetitions of the best point; none may be `search_seed`.
        search_seed: draws the points and seeds the trials of the search.
        folder: trial folders go to `folder/{workload}/{submission}/…`.
    """

    n_points: int
    seeds: tuple[int, ...]
    search_seed: int
    folder: Path
    data_dir: str
    stop_at_target: bool = True


@dataclass(frozen=True)
class Result:
    """What one submission came to on one workload."""

    submission: str
    n_dimensions: int
    search: list[Outcome]
    best_trial: int  # N of the search's trial_N that was repeated
    repetitions: list[Outcome]

    @property
    def steps(self) -> float:
        """Mean steps to target over the repetitions, a miss counted as the whole budget, less than it took."""
        return statistics.mean(outcome.steps_to_target or outcome.step_budget for outcome in self.repetitions)

    @property
    def seconds(self) -> float:
        """Mean submission seconds to target without compilation, a miss counted as its whole trial."""
        return statistics.mean(map(_seconds, self.repetitions))

    @property
    def hits(self) -> int:
        return sum(outcome.steps_to_target is not None for outcome in self.repetitions)


def search_and_repeat(
    workload_name: str,
    submission_paths: Sequence[str],
    protocol: Protocol,
    rank: Callable[[Outcome], Any],
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Run each submission's search, then repeat the points whose outcomes have the lowest `rank`.

    The repetitions take turns, all submissions on one seed and then on the next, so that a machine whose speed drifts
    slows all alike.
    """
    if protocol.search_seed in protocol.seeds:
        raise UserError(f"seed {protocol.search_seed} is the search's; repeat the best point on other seeds")
    contenders = [_Contender(workload_name, path, protocol, say) for path in submission_paths]
    for contender in contenders:
        contender.search(rank)
    for seed in protocol.seeds:
        for contender in contenders:
            contender.repeat(seed)
    return [contender.result() for contender in contenders]


class _Contender:
    """One submission's part of a comparison: `search` once, then `repeat` for each seed."""

    def __init__(self, workload_name: str, path: str, protocol: Protocol, say: Callable[[str], None]):
        self._workload, self._workload_name = registry.load(workload_name), workload_name
        self._submission, self._protocol, self._say = submission.load(path), protocol, say
        self._space = search_space.read(self._submission.search_space_file)
        self._points = search_space.points(self._space, protocol.n_points, protocol.search_seed)
        self._folder = protocol.folder / workload_name / self._submission.name
        self._is_warm = False
        self._repetitions: list[Outcome] = []

    def search(self, rank: Callable[[Outcome], Any]) -> None:
        seed = self._protocol.search_seed
        self._search = [self._trial(i, seed, f"search/trial_{i + 1}") for i in range(len(self._points))]
        self._best = min(range(len(self._search)), key=lambda index: rank(self._search[index]))

    def repeat(self, seed: int) -> None:
        self._repetitions.append(self._trial(self._best, seed, repetition_place(self._best + 1, seed)))

    def result(self) -> Result:
        n_dimensions = len(self._space) if isinstance(self._space, dict) else 0
        return Result(self._submission.name, n_dimensions, self._search, self._best + 1, self._repetitions)

    def _trial(self, index: int, seed: int, place: str) -> Outcome:
        point, folder = self._points[index], self._folder / place
        with Claim.take(folder) as claim:
            outcome = finished_outcome(self._describe(point, seed), folder)
            if outcome is None:
                if place.startswith("repeat") and not self._is_warm:
                    # A process's first trial takes longer than compilation explains; the search came before, elsewhere.
                    with tempfile.TemporaryDirectory() as nowhere, Claim.take(Path(nowhere)) as own:
                        self._run(point, self._protocol.search_seed, own)
                outcome, self._is_warm = self._run(point, seed, claim), True
        self._say(f"{self._workload_name} {self._submission.name} {place}: {describe(outcome)}")
        return outcome

    def _describe(self, point: tuple, seed: int) -> TrialDescription:
        return describe_trial(
            self._workload_name,
            self._workload,
            self._submission,
            point,
            rng_seed=seed,
            trial_index=1,
            data_dir=self._protocol.data_dir,
            stop_at_target=self._protocol.stop_at_target,
        )

    def _run(self, point: tuple, seed: int, claim: Claim) -> Outcome:
        return run_trial(self._describe(point, seed), self._workload, self._submission, claim)


def repetition_place(trial: int, seed: int) -> str:
    """The folder of a repetition of `trial_N`, under its submission's."""
    return f"repeat/trial_{trial}_seed_{seed}"


def fewest_steps(outcome: Outcome) -> tuple[float, float]:
    """Rank by steps to target; among points that missed it, by the best metric (higher is better)."""
    return outcome.steps_to_target or math.inf, -best_metric(outcome)


def best_metric(outcome: Outcome) -> float:
    return -math.inf if outcome.best_validation_metric is None else outcome.best_validation_metric


def describe(outcome: Outcome) -> str:
    point = " ".join(f"{name}={value:.4g}" for name, value in outcome.hyperparameters.items())
    came = f"target at step {outcome.steps_to_target}" if outcome.steps_to_target else f"missed ({outcome.reason})"
    return f"{came}, best {best_metric(outcome):.4f}, {outcome.submission_seconds:.1f} s [{point}]"


def report(workload_name: str, results: Sequence[Result], references: Sequence[str]) -> str:
    """Markdown: the table, how it was made, and where."""
    workload, first = registry.load(workload_name), results[0].search[0]
    environments = [outcome.environment for result in results for outcome in result.search + result.repetitions]
    metric = f"{first.target_metric} {workload.validation_target_value:.4f}"
    lines = [
        f"# {workload_name}: steps and seconds to {metric}",
        "",
        machine.provenance(environments),
        f"Budget {first.step_budget} steps, evaluated every {workload.eval_period_steps}. Each submission: random",
        f"points of its search space on seed {first.rng_seed}, the best one repeated on other seeds. Means over the",
        "repetitions, in which the submissions take turns; a miss counts as the whole budget. Seconds are the",
        "submission's, without compilation. Ratios are to the first-order reference that needs the fewer steps.",
        "",
        table(results, references),
        "",
    ]
    for result in results:
        point = ", ".join(f"{name} {value:.4g}" for name, value in result.repetitions[0].hyperparameters.items())
        lines.append(f"- {result.submission}, best point: {point}")
    return "\n".join(lines) + "\n"


def table(results: Sequence[Result], references: Sequence[str]) -> str:
    """A Markdown table: each submission against the reference that needs the fewer steps."""
    reference = min((r for r in results if r.submission in references), key=lambda r: r.steps)
    rows = [
        "| submission | dimensions | trials | search hits | repeat hits | steps to target | ratio | seconds | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        found = sum(outcome.steps_to_target is not None for outcome in result.search)
        each = ", ".join(str(outcome.steps_to_target or "miss") for outcome in result.repetitions)
        rows.append(
            f"| {result.submission} | {result.n_dimensions} | {len(result.search)} | {found} "
            f"| {result.hits}/{len(result.repetitions)} | {result.steps:.0f} ({each}) "
            f"| {result.steps / reference.steps:.2f} | {result.seconds:.1f} "
            f"| {result.seconds / reference.seconds:.2f} |"
        )
    return "\n".join(rows)


def trials_csv(results: Iterable[Result]) -> str:
    """Every trial, a row each, as CSV."""
    text = io.StringIO()
    names = ("workload", "submission", "rng_seed", "steps_to_target", "seconds_to_target", "compile_seconds_to_target")
    names += ("reason", "global_step", "step_budget", "mean_step_seconds", "best_validation_metric")
    names += ("best_validation_step", "hyperparameters")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("phase", *names))
    for result in results:
        for phase, outcomes in (("search", result.search), ("repeat", result.repetitions)):
            for outcome in outcomes:
                values = [getattr(outcome, name) for name in names[:-1]]
                writer.writerow((phase, *values, json.dumps(outcome.hyperparameters)))
    return text.getvalue()


def _seconds(outcome: Outcome) -> float:
    reached = outcome.training_seconds_to_target
    return outcome.submission_seconds - outcome.compile_seconds if reached is None else reached
