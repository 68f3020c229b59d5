"""Which submission reaches a workload's target first: the protocol of docs/evidence.md, as commands that can resume.

1. Each submission's space is searched on one seed.
2. Its best points run again on a second seed.
3. The best of these is repeated on fresh seeds. The configurations that the target was set with are repeated, too.

Every step is a call of scripts/run_sweep.py or scripts/run_trial.py. scripts/report.py reads their folders:

    FOLDER/{workload}/{submission}/search/…                          points, several at a time
    FOLDER/{workload}/{submission}/confirm/…                         the best of them on one more seed
    FOLDER/{workload}/{submission}/repeat/study_N/…                  the best one, timed, one at a time
    FOLDER/{workload}/{submission}_for_target/target_reference/…     the target's own configurations, timed with these
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import records, submission_version
from tuning.errors import UserError, one_line
from tuning.plain_output import print_at_once
from tuning.report import protocols, reading
from tuning.report.location import Phase
from tuning.submission import submission_path
from tuning.supervised_command import CommandFailed
from workloads import registry
from workloads.spec import Direction

_PROJECT = Path(__file__).resolve().parents[1]

Run = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Protocol:
    """
    Attributes:
        submissions: paths of their folders.
        n_points, n_confirmed, n_seeds: of each submission's search, confirmation and timed repetition.
        seed: of the search. Confirmation and repetitions use the seeds after it.
        workers: processes of a search. Repetitions run one at a time.
        targets: folder of {workload}.json, whose first-order configurations are the references; None for no references.
        flags: passed to every trial.
        search_flags: passed to the sweeps alone, and free to change.
    """

    workload: str
    submissions: tuple[str, ...]
    folder: Path
    n_points: int = 20
    n_confirmed: int = 3
    n_seeds: int = 10
    seed: int = 0
    workers: int = 2
    targets: Path | None = None
    flags: tuple[str, ...] = ()
    search_flags: tuple[str, ...] = ()

    def submission_folder(self, submission: str) -> Path:
        return self.folder / self.workload / Path(submission).name


@dataclass(frozen=True)
class Candidate:
    """One configuration to time: a point of a submission. Its trials go to `folder/study_N/…`."""

    submission: str
    folder: Path
    point: Mapping[str, Any]


def carry_out(protocol: Protocol, run: Run, log: Callable[[str], None] = print_at_once) -> None:
    """Runs every trial of the protocol that has not run yet.

    Args:
        run: carries out one command. An error that it raises ends the protocol; a later call continues.
        log: called with a line about the progress.

    Raises:
        UserError: a submission has no ended trial, the target's file cannot be used, or the folder holds a run with
            another number of points or of confirmed points, another seed or budget, another point to repeat, or another
            version of a submission.
    """
    _refuse_other_settings(protocol)
    candidates = references(protocol)
    for path in protocol.submissions:
        run(_sweep(protocol, path, Phase.SEARCH, protocol.seed, protocol.n_points))
        records.write_json(_settings_file(protocol), _settings(protocol))
        _confirm(protocol, path, run)
        candidates.append(Candidate(path, protocol.submission_folder(path) / Phase.REPEAT, _best(protocol, path)))
        log(f"{protocol.workload} {Path(path).name}: searched, best point {json.dumps(candidates[-1].point)}")
    for study in range(1, protocol.n_seeds + 1):
        # All candidates take turns, so that a drift of the machine's speed affects all alike.
        for candidate in candidates:
            _repeat(protocol, candidate, study, run, log)
        log(f"{protocol.workload}: repetition {study} of {protocol.n_seeds} done")


def _settings(protocol: Protocol) -> dict[str, Any]:
    """The settings that must not change between two calls, since the best points were chosen under them."""
    flags = [flag for flag in protocol.flags if not flag.startswith("--data_dir")]
    return {"points": protocol.n_points, "confirmed": protocol.n_confirmed, "seed": protocol.seed, "flags": flags}


def _settings_file(protocol: Protocol) -> Path:
    return protocol.folder / protocol.workload / "protocol.json"


def _refuse_other_settings(protocol: Protocol) -> None:
    file, settings = _settings_file(protocol), _settings(protocol)
    try:
        begun = json.loads(file.read_text(encoding="utf-8")) if file.exists() else settings
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(file)!r} ({one_line(error)}): give another --experiment_dir") from error
    if begun != settings:
        raise UserError(
            f"{str(file)!r} records a run with {begun}, not {settings}; give those flags, or another --experiment_dir"
        )


def references(protocol: Protocol) -> list[Candidate]:
    """The configurations in the target's file: the target's own, and the best of every other first-order search."""
    if protocol.targets is None:
        return []
    file = protocol.targets / f"{protocol.workload}.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        points = dict(_target_points(result, registry.load(protocol.workload).validation_target.direction))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot take the references' configurations from {file} ({error})"
        raise UserError(f"{problem}; run scripts/set_target.py, or give --targets= for none") from error
    return [
        Candidate(
            submission_path(name),
            protocol.folder / protocol.workload / f"{name}_for_target" / Phase.REFERENCE,
            point,
        )
        for name, point in points.items()
    ]


def _target_points(result: Mapping[str, Any], direction: Direction) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, trials in result["searches"].items():
        known = [trial for trial in trials if trial["best_validation_metric"] is not None]
        best = max(known, key=lambda trial: direction.sign * trial["best_validation_metric"], default=None)
        if name == result["reference"]:
            yield name, result["hyperparameters"]
        elif best is not None:
            yield name, best["hyperparameters"]


def _confirm(protocol: Protocol, path: str, run: Run) -> None:
    file = protocol.submission_folder(path) / "confirmed_points.json"
    if not file.exists():
        ranked = sorted(protocols.by_point(_ended(protocol, path, Phase.SEARCH)), key=protocols.rank_key)
        _write_points(file, [trials[0].point for trials in ranked[: protocol.n_confirmed]])
    n = len(json.loads(file.read_text(encoding="utf-8")))
    run([*_sweep(protocol, path, Phase.CONFIRM, protocol.seed + 1, n), f"--tuning_search_space={file}"])


def _best(protocol: Protocol, path: str) -> Mapping[str, Any]:
    """The point with the fewest mean steps over both seeds. It is chosen once, and read from its file afterwards."""
    file = protocol.submission_folder(path) / "best_point.json"
    if not file.exists():
        trials, _ = protocols.best_point(_ended(protocol, path, Phase.SEARCH, Phase.CONFIRM))
        _write_points(file, [trials[0].point])
    return json.loads(file.read_text(encoding="utf-8"))[0]


def _ended(protocol: Protocol, path: str, *phases: Phase) -> list[reading.Trial]:
    read = reading.read([protocol.submission_folder(path)])
    trials = [t for t in read.trials if t.phase in phases and t.state not in protocols.NO_RESULT]
    if not trials:
        problem = "; ".join(f"{problem.file} {problem.what}" for problem in read.problems[:1])
        raise UserError(
            f"no trial under {protocol.submission_folder(path)} has ended, so there is no best point; {problem}"
        )
    return trials


def _write_points(file: Path, points: list[Mapping[str, Any]]) -> None:
    records.write_text(file, json.dumps(points, indent=1) + "\n")


def _sweep(protocol: Protocol, path: str, phase: Phase, seed: int, n_points: int) -> list[str]:
    return [
        *_command(protocol, "run_sweep.py", path, protocol.submission_folder(path), phase, seed),
        f"--num_tuning_trials={n_points}",
        f"--workers={min(protocol.workers, n_points)}",
        *protocol.search_flags,
    ]


def _repeat(protocol: Protocol, candidate: Candidate, study: int, run: Run, log: Callable[[str], None]) -> None:
    name, seed = f"study_{study}", protocol.seed + 1 + study
    outcome = candidate.folder / name / f"{protocol.workload}_jax" / "trial_1" / "outcome.json"
    if _is_done(outcome, candidate):
        return
    file = candidate.folder.parent / "repeated_point.json"
    _write_points(file, [candidate.point])
    command = _command(protocol, "run_trial.py", candidate.submission, candidate.folder, name, seed)
    # Without the compilation cache, and anew after a stop, so that AlgoPerf's clock counts one compilation.
    anew = ["--overwrite", "--checkpoints_to_keep=0", "--compilation_cache_dir="]
    try:
        run([*command, f"--tuning_search_space={file}", *anew])
    except CommandFailed as failed:
        if failed.exit_code != 1 or not _is_done(outcome, candidate):
            raise
        problem = f"the trial in {str(outcome.parent)!r} crashed, which counts as a miss"
        log(f"{problem}; if the machine was at fault, remove this folder and run the command again")


def _is_done(file: Path, candidate: Candidate) -> bool:
    """Whether the trial has ended, so that no process needs to start for it. A crash ends it, too.

    Raises:
        UserError: another version of the submission made it, it is of another point, or its record cannot be read.
    """
    try:
        outcome = json.loads(file.read_text(encoding="utf-8"))
        point, version = outcome["hyperparameters"], outcome["submission_version"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{str(file)!r} cannot be read ({one_line(error)[:200]})"
        raise UserError(f"{problem}; remove its folder to run the repetition again") from error
    cure = "remove that submission's folder, or give another --experiment_dir"
    if point != candidate.point:
        raise UserError(f"{str(file)!r} is of the point {json.dumps(point)}, not {json.dumps(candidate.point)}; {cure}")
    if version != submission_version.of(Path(candidate.submission, "submission.py")):
        raise UserError(f"{str(file)!r} was made by another version of {candidate.submission!r}; {cure}")
    return True


def _command(protocol: Protocol, script: str, path: str, folder: Path, name: str, seed: int) -> list[str]:
    return [
        sys.executable,
        str(_PROJECT / "scripts" / script),
        f"--workload={protocol.workload}",
        f"--submission_path={path}",
        f"--experiment_dir={folder}",
        f"--experiment_name={name}",
        f"--rng_seed={seed}",
        *protocol.flags,
    ]
