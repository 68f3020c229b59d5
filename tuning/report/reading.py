"""Reads trial folders, ours or the official harness's, and lists the files that cannot be read."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuning import scoring
from tuning.outcome import Miss
from tuning.report import copies, files, location
from tuning.report.files import FileProblem, TrialFolder
from tuning.report.location import Location, Phase
from tuning.ruleset import TuningRuleset
from workloads import budgets

# States of a trial: it hit its target, missed it for a reason, or has no end on record.
HIT, UNFINISHED = "hit", "unfinished"
STATES = (HIT, *(str(miss) for miss in Miss), UNFINISHED)

# The last evaluation of a run that stops at its time limit is at most about one evaluation period before the limit.
_PERIODS_TO_LIMIT = 1.1

_NUMBER = (int, float)
_OUTCOME = {
    **dict.fromkeys(("workload", "submission", "tuning_ruleset", "target_metric", "target_direction", "reason"), str),
    **dict.fromkeys(("hyperparameters", "environment"), dict),
    **dict.fromkeys(("target_value", "compile_seconds", "compile_seconds_to_target"), _NUMBER),
    **dict.fromkeys(("rng_seed", "steps_to_target", "step_budget"), int),
}
_META = {
    **dict.fromkeys(("workload.target_metric_name", "workload.target_direction"), str),
    **dict.fromkeys(("workload.validation_target_value", "workload.max_allowed_runtime_sec"), _NUMBER),
    **dict.fromkeys(("workload.eval_period_time_sec", "workload.step_hint"), _NUMBER),
    **dict.fromkeys(("workload.eval_period_steps", "rng_seed"), int),
}
_FLAGS = {"submission_path": str, "tuning_ruleset": str, "rng_seed": int, "step_budget": int}
_CURE = "; restore it, or remove it and run the trial again with --resume"


@dataclass(frozen=True, eq=False)
class Trial:
    """The content of one trial folder. Values that are not on record are None or empty.

    Attributes:
        folder: as the user named it.
        experiment: the folder above the workload's and the phase's. It distinguishes submissions of one name.
        is_self_tuned: whether the submission chose its own hyperparameters (AlgoPerf's self-tuning ruleset).
        metric, target: name and value to reach on the validation split.
        steps, seconds, values, test_values: `[evaluations]`; seconds are the submission's, compilation included.
        overhead: column -> `[evaluations]`, accumulated seconds off the clock.
        compile_seconds: until the target was reached, or of the whole trial.
        budget: steps.
        is_timing_disturbed: whether the seconds contain a resumption's compilation or a profiler's cost.
    """

    folder: str
    experiment: str
    workload: str
    submission: str
    study: int
    phase: Phase
    is_self_tuned: bool
    point: Mapping[str, Any]
    rng_seed: int | None
    metric: str | None
    lower_is_better: bool
    target: float | None
    state: str
    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray
    test_values: np.ndarray
    overhead: Mapping[str, np.ndarray]
    compile_seconds: float | None
    budget: int | None
    is_timing_disturbed: bool
    environment: Mapping[str, Any]

    def hit_at(self, target: float | None) -> int | None:
        """Index of the first evaluation that reached `target`."""
        return None if target is None else scoring.first_hit(self.values, target, self.lower_is_better)

    @property
    def best(self) -> float | None:
        finite = self.values[np.isfinite(self.values)]
        if not finite.size:
            return None
        return float(finite.min() if self.lower_is_better else finite.max())


@dataclass
class Records:
    trials: list[Trial]
    problems: list[FileProblem]
    hardware_profile: str


def read(roots: Iterable[Path], hardware_profile: str = budgets.V100X8) -> Records:
    """Every trial under the folders or archives. Files that cannot be read are listed as problems.

    Args:
        hardware_profile: whose budget of an official workload is used for a trial without a budget on record.
    """
    found, problems = files.find(roots)
    folders = copies.without_copies(found, problems)
    read_trials = [_read_trial(folder, hardware_profile, problems) for folder in folders]
    trials = _with_unique_names([trial for trial in read_trials if trial is not None], problems)
    return Records(trials, problems, hardware_profile)


def _read_trial(folder: TrialFolder, hardware_profile: str, problems: list[FileProblem]) -> Trial | None:
    def add_problem(file: str, what: str) -> None:
        problems.append(FileProblem(str(folder.path / file), what))

    if not folder.names:
        add_problem("", "an empty folder")
        return None
    outcome = files.read_json(folder, "outcome.json", _OUTCOME, problems, _CURE)
    meta = files.read_json(folder, "meta_data_0.json", _META, problems)
    flags = files.read_json(folder, "flags_0.json", _FLAGS, problems)
    last = files.last_flags(folder)
    last_flags = flags if last == "flags_0.json" else files.read_json(folder, last, _FLAGS, problems)
    point = files.read_json(folder, "hparams.json", {}, problems) or outcome.get("hyperparameters") or {}
    is_self_tuned = (outcome.get("tuning_ruleset") or flags.get("tuning_ruleset")) == TuningRuleset.SELF
    if not outcome:
        for name in ("meta_data_0.json",) if is_self_tuned else ("meta_data_0.json", "hparams.json"):
            if name not in folder.names:
                add_problem(name, "is missing")
    place = Location.of(folder)
    workload = outcome.get("workload") or place.workload
    if workload is None:
        add_problem(
            "", "does not lie in a folder called {workload}_jax, and has no outcome.json that names the workload"
        )
        return None
    metric, target, lower_is_better = _target(outcome, meta)
    submission = outcome.get("submission") or _submission(flags)
    if metric is None:
        add_problem("meta_data_0.json", "names no target metric (workload.target_metric_name)")
        if submission is None:  # with a name it counts as unfinished, and its study as a miss
            return None
    if metric is not None and lower_is_better is None:
        add_problem("", f"is left out: it is not known whether a higher or a lower {metric} is better")
        return None
    metrics = (f"validation/{metric}", f"test/{metric}")
    table = dict.fromkeys(("global_step", *files.TIMES, *metrics), np.array([]))
    if metric is not None:
        table = files.read_evaluations(folder, metrics[0], metrics[1:], problems)
    trial = Trial(
        folder=str(folder.path),
        experiment=str(place.experiment),
        workload=workload,
        submission=submission or place.experiment.name,
        study=place.study,
        phase=place.phase,
        is_self_tuned=is_self_tuned,
        point=point,
        rng_seed=outcome.get("rng_seed", meta.get("rng_seed", flags.get("rng_seed"))),
        metric=metric,
        lower_is_better=bool(lower_is_better),
        target=target,
        state=UNFINISHED,
        steps=table["global_step"],
        seconds=table["accumulated_submission_time"],
        values=table[metrics[0]],
        test_values=table[metrics[1]],
        overhead={name: table[name] for name in files.TIMES[1:]},
        compile_seconds=_compile_seconds(outcome),
        budget=outcome.get("step_budget") or last_flags.get("step_budget") or meta.get("workload.step_hint"),
        is_timing_disturbed=bool(outcome.get("resumptions") or outcome.get("profiled_steps")),
        environment=outcome.get("environment") or {name: meta[name] for name in meta if "." not in name},
    )
    trial = replace(trial, state=_state(trial, outcome, meta, hardware_profile))
    _check_hit(trial, outcome, add_problem)
    return trial


def _check_hit(trial: Trial, outcome: Mapping[str, Any], add_problem: Callable[[str, str], None]) -> None:
    """Adds a problem if outcome.json and the evaluations differ about the step that reached the target."""
    at = trial.hit_at(trial.target)
    hit_step = None if at is None else int(trial.steps[at])
    if "steps_to_target" in outcome and trial.steps.size and outcome["steps_to_target"] != hit_step:
        recorded, evaluated = ("never" if step is None else step for step in (outcome["steps_to_target"], hit_step))
        add_problem("outcome.json", f"says that the target was reached at {recorded}, the evaluations say {evaluated}")


def _target(outcome: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[str | None, float | None, bool | None]:
    """(metric, finite target, whether less is better), as far as they are on record."""
    if outcome.get("target_metric"):
        metric, target = outcome["target_metric"], outcome.get("target_value")
    else:
        metric, target = meta.get("workload.target_metric_name"), meta.get("workload.validation_target_value")
    metric = metric.removeprefix("validation/") if metric else None
    direction = outcome.get("target_direction") or meta.get("workload.target_direction")
    lower_is_better = {"lower": True, "higher": False}.get(direction or "", scoring.LOWER_IS_BETTER.get(metric or ""))
    return metric, target if target is not None and math.isfinite(target) else None, lower_is_better


def _submission(flags: Mapping[str, Any]) -> str | None:
    """The submission's name by its path: its folder's name, or its file's if that is not called submission.py."""
    if not flags.get("submission_path"):
        return None
    path = Path(flags["submission_path"])
    return path.parent.name if path.name == "submission.py" else path.stem


def _compile_seconds(outcome: Mapping[str, Any]) -> float | None:
    until_target = outcome.get("compile_seconds_to_target")
    return outcome.get("compile_seconds") if until_target is None else until_target


def _state(trial: Trial, outcome: Mapping[str, Any], meta: Mapping[str, Any], hardware_profile: str) -> str:
    """The trial's state, by the evaluations; if they reach no target, by outcome.json, or otherwise by the budgets."""
    if trial.hit_at(trial.target) is not None:
        return HIT
    if outcome.get("reason") in STATES:
        return outcome["reason"]
    if not trial.steps.size or outcome:
        return UNFINISHED
    if math.isnan(trial.values[-1]):
        return str(Miss.DIVERGED)
    official = budgets.budget(trial.workload, hardware_profile)
    limit_s = meta.get("workload.max_allowed_runtime_sec") or (official.max_allowed_runtime_s if official else math.inf)
    if trial.is_self_tuned:
        limit_s *= TuningRuleset.SELF.budget_factor
    period_s = meta.get("workload.eval_period_time_sec") or (official.eval_period_s if official else 0)
    if meta.get("workload.eval_period_steps"):
        period_s = 0  # evaluations do not follow the clock
    is_spent = trial.seconds[-1] + _PERIODS_TO_LIMIT * period_s >= limit_s
    return str(Miss.BUDGET) if is_spent or trial.steps[-1] >= (trial.budget or math.inf) else UNFINISHED


def _with_unique_names(trials: list[Trial], problems: list[FileProblem]) -> list[Trial]:
    """The trials with names of submissions that are unique.

    If several experiments on one workload have submissions of one name, the experiment's name is added. Trials of the
    target's own configuration, and self-tuning trials, whose budget is larger, always have names of their own.
    """
    trials = [replace(trial, submission=trial.submission + _kind(trial)) for trial in trials]
    experiments: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for trial in trials:
        experiments[trial.submission].add((trial.workload, trial.experiment))
    names = {}
    for submission, own in sorted(experiments.items()):
        if len({workload for workload, _ in own}) < len(own):
            folders = ", ".join(sorted({folder for _, folder in own}))
            what = f"hold submissions with the same name, {submission}: each is shown with its folder"
            problems.append(FileProblem(folders, what))
            names[submission] = location.distinct_names(own)
    return [
        replace(trial, submission=f"{trial.submission} ({names[trial.submission][trial.workload, trial.experiment]})")
        if trial.submission in names
        else trial
        for trial in trials
    ]


def _kind(trial: Trial) -> str:
    if trial.phase is Phase.REFERENCE:
        return " (target's own)"
    return " (self-tuning)" if trial.is_self_tuned else ""
