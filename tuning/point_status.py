"""The status of a sweep's points, computed from the trials of its studies in an Optuna storage.

A point has one trial in the storage for each time that it was enqueued. The attribute `index` names the point. The
attributes of an ended trial say how it ended: `result` or `crash` is the point's result, `returned` means that the
worker gave the point back, `superseded` that the point had another trial already. Without any of them, the worker died.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tuning import study_storage
from tuning.errors import UserError

OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclasses.dataclass(frozen=True)
class PointStatus:
    """The `state` is "waiting", "running" or "done"; the `result` is the one that `PointQueue.finish` was given."""

    index: int
    point: dict[str, Any]
    state: str
    n_deaths: int  # of workers that had the point
    result: dict[str, Any] | None
    faults: tuple[str, ...] = ()  # of the machines whose workers gave the point back


class History:
    """The trials of one point, in the order in which they were enqueued."""

    def __init__(self, trials: Sequence[FrozenTrial]):
        self.trials = sorted(trials, key=lambda trial: trial.number)
        retried = [number for number, trial in enumerate(self.trials) if "retried" in trial.user_attrs]
        self._since_retry = self.trials[retried[-1] + 1 if retried else 0 :]

    @property
    def result(self) -> dict[str, Any] | None:
        return next((result for trial in self.trials if (result := result_of(trial)) is not None), None)

    @property
    def is_open(self) -> bool:
        return any(trial.state in OPEN for trial in self.trials)

    @property
    def is_running(self) -> bool:
        return any(trial.state is TrialState.RUNNING for trial in self.trials)

    @property
    def deaths(self) -> list[FrozenTrial]:
        ended = ("crash", "returned", "superseded")
        failed = [trial for trial in self._since_retry if trial.state is TrialState.FAIL]
        return [trial for trial in failed if not any(name in trial.user_attrs for name in ended)]

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The faults of machines for which workers gave the point back: each has `error`, `machine` and `log`."""
        returned = [trial.user_attrs.get("returned") for trial in self._since_retry]
        return [reason for reason in returned if reason]


def study_name(experiment_name: str, study: int) -> str:
    """The name, in the storage, of study number `study`, counted from 1."""
    return f"{experiment_name}/study_{study}"


def stored(location: study_storage.Location, experiment_name: str) -> list[tuple[int, PointStatus]]:
    """(study, point) of every point of an experiment, found by the experiment's name; nothing is written.

    Raises:
        UserError: the storage cannot be read, or holds no such experiment.
    """
    with study_storage.opened_to_read(location) as storage:
        studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
        points, number = [], 1
        while (study_id := studies.get(study_name(experiment_name, number))) is not None:
            trials = points_only(storage.get_all_trials(study_id, deepcopy=False))
            points += [(number, status) for status in point_statuses(trials)]
            number += 1
    if not points:
        raise UserError(f"the storage has no sweep {experiment_name!r}: check --experiment_name and --storage")
    return points


def points_only(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of points: without trials that something else put into the study."""
    return [trial for trial in trials if "index" in trial.user_attrs and "point" in trial.user_attrs]


def histories(trials: Sequence[FrozenTrial]) -> dict[int, History]:
    """The trials of each point that has some, by its index."""
    by_index: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        by_index.setdefault(trial.user_attrs["index"], []).append(trial)
    return {index: History(by_index[index]) for index in sorted(by_index)}


def point_statuses(trials: Sequence[FrozenTrial]) -> list[PointStatus]:
    """The status of each point, computed from a study's trials."""
    statuses = []
    for index, history in histories(trials).items():
        result = history.result
        state = "done" if result is not None else "running" if history.is_running else "waiting"
        faults = tuple(fault["error"] for fault in history.faults)
        point = history.trials[0].user_attrs["point"]
        statuses.append(PointStatus(index, point, state, len(history.deaths), result, faults))
    return statuses


def result_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """What `PointQueue.finish` was given; None if the trial did not end, died, or is to be carried out again."""
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return trial.user_attrs["result"]
    if trial.state is TrialState.FAIL and "retried" not in trial.user_attrs:
        return trial.user_attrs.get("crash")
    return None
