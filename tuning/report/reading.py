"""Trial folders, ours or the official harness's, to trials; and what in them could not be read, file by file."""

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuning import scoring
from tuning.outcome import Miss

_TRIAL = re.compile(r"trial_(\d+)(?:_seed_\d+)?")
_WORKLOAD = re.compile(r"(.+)_(?:jax|pytorch)")
_STUDY = re.compile(r"study_(\d+)")

# How a trial came out: it hit its target, missed it for a reason, or has no end on record.
HIT, UNFINISHED = "hit", "unfinished"
STATES = (HIT, *(str(miss) for miss in Miss), UNFINISHED)

_TIMES = ("accumulated_submission_time", "accumulated_eval_time", "accumulated_logging_time")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file; everything else is reported all the same."""

    file: str
    what: str


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial folder. What is not on record is None, or empty.

    Attributes:
        experiment: the folder above the workload's, by which submissions of one name are told apart.
        is_repetition: run again on another seed because a search found its point best.
        metric, target: name and value to reach on the validation split.
        steps, seconds, values: `[evaluations]`; seconds are the submission's, compilation included.
        overhead: column -> accumulated seconds off the clock, at the last evaluation.
        compile_seconds: until the target was reached, or of the whole trial.
        budget: steps.
    """

    folder: Path
    experiment: str
    workload: str
    submission: str
    study: int
    index: int
    is_repetition: bool
    point: Mapping[str, Any]
    rng_seed: int | None
    metric: str
    target: float | None
    state: str
    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray
    overhead: Mapping[str, float]
    compile_seconds: float | None
    budget: int | None
    environment: Mapping[str, Any]

    def hit_at(self, target: float | None) -> int | None:
        """Index of the first evaluation that reached `target`."""
        return None if target is None else scoring.first_hit(self.values, target, self.metric)

    @property
    def best(self) -> float | None:
        finite = self.values[np.isfinite(self.values)]
        if not finite.size:
            return None
        return float(finite.min() if scoring.lower_is_better(self.metric) else finite.max())


@dataclass
class Records:
    trials: list[Trial] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read(folders: Iterable[Path]) -> Records:
    """Every trial under the folders. A folder without one, or a file that cannot be read, is a problem."""
    records = Records()
    for folder in folders:
        places = sorted(path for path in folder.rglob("trial_*") if path.is_dir() and _TRIAL.fullmatch(path.name))
        if _TRIAL.fullmatch(folder.name):
            places.insert(0, folder)
        if not places:
            records.problems.append(Problem(str(folder), "holds no trial folder (trial_1, trial_2, …)"))
        for place in places:
            trial = _read_trial(place, folder, records.problems)
            if trial is not None:
                records.trials.append(trial)
    records.trials = _told_apart(records.trials, records.problems)
    return records


def _read_trial(place: Path, root: Path, problems: list[Problem]) -> Trial | None:
    def complain(file: str, what: str) -> None:
        problems.append(Problem(str(place / file), what))

    if not any(place.iterdir()):
        complain("", "an empty folder")
        return None
    outcome = _json(place / "outcome.json", problems, needed=False)
    meta = _json(place / "meta_data_0.json", problems, needed=not outcome)
    flags = _json(place / "flags_0.json", problems, needed=False)
    point = _json(place / "hparams.json", problems, needed=not outcome) or outcome.get("hyperparameters") or {}
    workload, study, experiment = _place(place, root)
    workload = outcome.get("workload") or workload
    if workload is None:
        complain("", "does not lie in a folder called {workload}_jax, and has no outcome.json that names the workload")
        return None
    metric = outcome.get("target_metric") or _plain_metric(meta.get("workload.target_metric_name"))
    value_in_meta = meta.get("workload.validation_target_value")
    target = outcome.get("target_value") if outcome.get("target_metric") else value_in_meta
    if metric is None:
        complain("meta_data_0.json", "names no target metric (workload.target_metric_name)")
        return None
    if not scoring.is_known(metric):
        complain("", f"is left out: of its metric {metric} it is not known whether more or less is better")
        return None
    table = _evaluations(place / "eval_measurements.csv", f"validation/{metric}", problems)
    trial = Trial(
        folder=place,
        experiment=str(experiment),
        workload=workload,
        submission=outcome.get("submission") or _submission(flags) or experiment.name,
        study=study,
        index=int(_TRIAL.fullmatch(place.name)[1]),
        is_repetition=place.parent.name == "repeat",
        point=point,
        rng_seed=outcome.get("rng_seed", meta.get("rng_seed", flags.get("rng_seed"))),
        metric=metric,
        target=target if target is not None and math.isfinite(target) else None,
        state=UNFINISHED,
        steps=table["global_step"],
        seconds=table["accumulated_submission_time"],
        values=table[f"validation/{metric}"],
        overhead={name: float(table[name][-1]) if table[name].size else 0.0 for name in _TIMES[1:]},
        compile_seconds=_compile_seconds(outcome),
        budget=outcome.get("step_budget") or meta.get("workload.step_hint"),
        environment=outcome.get("environment") or {name: meta[name] for name in meta if "." not in name},
    )
    trial = replace(trial, state=_state(trial, outcome, meta))
    at = trial.hit_at(trial.target)
    found = None if at is None else int(trial.steps[at])
    if outcome and trial.steps.size and outcome.get("steps_to_target") != found:
        told = outcome.get("steps_to_target") or "no step"
        complain("outcome.json", f"says that the target was reached at {told}, the evaluations say {found or 'never'}")
    return trial


def _json(file: Path, problems: list[Problem], *, needed: bool) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("is no JSON object")
        return content
    except FileNotFoundError:
        if needed:
            problems.append(Problem(str(file), "is missing"))
    except (OSError, ValueError) as error:
        problems.append(Problem(str(file), f"cannot be read: {error}"))
    return {}


def _evaluations(file: Path, metric: str, problems: list[Problem]) -> dict[str, np.ndarray]:
    """Column -> its values, of the rows that are whole. A metric that is not a number is NaN, and never a hit."""
    columns = ("global_step", *_TIMES, metric)
    rows: list[list[float]] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # a number that is cut short may still be one
            problems.append(Problem(str(file), f"line {len(lines)} is left out: it was cut short"))
            lines.pop()
        reader = csv.reader(lines)
        header = next(reader, [])
        missing = [name for name in columns if name not in header]
        if missing:
            problems.append(Problem(str(file), f"has no column {', '.join(missing)}"))
        else:
            rows = _rows(reader, header, columns, file, problems)
    except FileNotFoundError:
        problems.append(Problem(str(file), "is missing: no evaluation on record"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(Problem(str(file), f"cannot be read: {error}"))
    table = np.array(rows, float).reshape(len(rows), len(columns))
    n_lost = int(np.isnan(table[:, -1]).sum())
    if n_lost:
        problems.append(Problem(str(file), f"{metric} is not a number in {n_lost} of {len(table)} rows"))
    return dict(zip(columns, table.T, strict=True))


def _rows(reader: Any, header: list[str], columns: Iterable[str], file: Path, problems: list[Problem]) -> list:
    places = [header.index(name) for name in columns]
    rows = []
    for number, row in enumerate(reader, start=2):
        try:
            if len(row) != len(header):
                raise ValueError(f"has {len(row)} of {len(header)} cells")
            values = [float(row[place]) for place in places]
            if not all(map(math.isfinite, values[:2])):
                raise ValueError("has a step or time that is not a number")
            rows.append(values)
        except ValueError as error:
            problems.append(Problem(str(file), f"line {number} is left out: {error}"))
    return rows


def _place(place: Path, root: Path) -> tuple[str | None, int, Path]:
    """(workload, study, experiment's folder) by where a trial lies: EXPERIMENT/[study_N/]{workload}_jax/[…/]trial_N."""
    workload, study, experiment = None, 1, root
    for parent in place.parents:
        if match := _WORKLOAD.fullmatch(parent.name):
            workload, experiment = match[1], parent.parent
        elif match := _STUDY.fullmatch(parent.name):
            study, experiment = int(match[1]), parent.parent
        if parent == root.parent:
            break
    return workload, study, experiment


def _submission(flags: Mapping[str, Any]) -> str | None:
    """A submission's name by its path: that of its folder, or of its file where that is not called submission.py."""
    if not flags.get("submission_path"):
        return None
    path = Path(flags["submission_path"])
    return path.parent.name if path.name == "submission.py" else path.stem


def _plain_metric(name: Any) -> str | None:
    return str(name).removeprefix("validation/") if name else None


def _compile_seconds(outcome: Mapping[str, Any]) -> float | None:
    until_target = outcome.get("compile_seconds_to_target")
    return outcome.get("compile_seconds") if until_target is None else until_target


def _state(trial: Trial, outcome: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """By the evaluations; where they reach no target, by outcome.json, or else by the budgets."""
    if trial.hit_at(trial.target) is not None:
        return HIT
    if outcome.get("reason") in STATES:
        return outcome["reason"]
    if not trial.steps.size or outcome:
        return UNFINISHED
    if math.isnan(trial.values[-1]):
        return str(Miss.DIVERGED)
    seconds = meta.get("workload.max_allowed_runtime_sec") or math.inf
    spent = trial.steps[-1] >= (trial.budget or math.inf) or trial.seconds[-1] >= seconds
    return str(Miss.BUDGET) if spent else UNFINISHED


def _told_apart(trials: list[Trial], problems: list[Problem]) -> list[Trial]:
    """Submissions of one name in several experiments, on one workload, each with its experiment's name."""
    experiments: dict[tuple[str, str], set[str]] = defaultdict(set)
    for trial in trials:
        experiments[trial.workload, trial.submission].add(trial.experiment)
    clashing = {name for (_, name), places in experiments.items() if len(places) > 1}
    for name in sorted(clashing):
        places = sorted({trial.experiment for trial in trials if trial.submission == name})
        problems.append(Problem(", ".join(places), f"hold submissions of one name, {name}: shown apart by folder"))
    return [
        replace(trial, submission=f"{trial.submission} ({Path(trial.experiment).name})")
        if trial.submission in clashing
        else trial
        for trial in trials
    ]
