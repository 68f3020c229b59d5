"""Where the points of a sweep stand, read off the trials of its studies in an Optuna storage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tuning import study_storage
from tuning.errors import UserError

OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclasses.dataclass(frozen=True)
class PointStatus:
    """Where a point stands: "waiting", "running" or "done"; `result` is what `PointQueue.finish` was given."""

    index: int
    point: dict[str, Any]
    state: str
    n_deaths: int
    result: dict[str, Any] | None


def study_name(experiment_name: str, study: int) -> str:
    """Of study number `study`, from 1, in the storage."""
    return f"{experiment_name}/study_{study}"


def stored(url: str, experiment_name: str) -> list[tuple[int, PointStatus]]:
    """(study, point) of every point of an experiment, of which only the name is known; nothing is written.

    Raises:
        UserError: the storage cannot be read, or holds no such experiment.
    """
    storage = study_storage.open_to_read(url)
    with study_storage.told(url, "read"):
        studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
        found, number = [], 1
        while (study_id := studies.get(study_name(experiment_name, number))) is not None:
            trials = [t for t in storage.get_all_trials(study_id, deepcopy=False) if "index" in t.user_attrs]
            points = {trial.user_attrs["index"]: trial.params for trial in trials}
            found += [(number, point) for point in point_statuses(trials, [points[i] for i in sorted(points)])]
            number += 1
    if not found:
        raise UserError(f"the storage has no sweep {experiment_name!r}: check --experiment_name and --storage")
    return found


def point_statuses(trials: Sequence[FrozenTrial], points: Sequence[Mapping[str, Any]]) -> list[PointStatus]:
    """Where each point stands, by a study's trials."""
    by_index: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        by_index.setdefault(trial.user_attrs["index"], []).append(trial)
    found = []
    for index, point in enumerate(points, start=1):
        own = by_index.get(index, [])
        results = [result for trial in own if (result := result_of(trial)) is not None]
        is_running = any(trial.state is TrialState.RUNNING for trial in own)
        state = "done" if results else "running" if is_running else "waiting"
        n_deaths = max((trial.user_attrs["n_deaths"] for trial in own), default=0)
        found.append(PointStatus(index, dict(point), state, n_deaths, results[0] if results else None))
    return found


def result_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """What `PointQueue.finish` was given; None if the trial is not at its end, or failed as its worker died."""
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial.user_attrs["result"]
    return trial.user_attrs.get("crash") if trial.state is TrialState.FAIL else None


def is_superseded(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether another trial of the same point is finished, or open with a lower number."""
    for other in trials:
        if other.number == trial.number or other.user_attrs["index"] != trial.user_attrs["index"]:
            continue
        if result_of(other) is not None or (other.state in OPEN and other.number < trial.number):
            return True
    return False
