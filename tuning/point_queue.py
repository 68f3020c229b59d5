"""The points of a sweep in an Optuna storage: enqueued once, each carried out once, whoever dies meanwhile.

A study's trial number N is point N + 1, enqueued in order; a worker that dies leaves its trial to be enqueued again,
with a higher number and the same point. Optuna's heartbeat tells the dead from the living by the storage's clock, so
the workers' clocks need not agree. What Optuna leaves open is closed here: a worker that dies before its first
heartbeat, one that dies between failing another's trial and enqueuing it again, and two that enqueue the same one.
"""

import dataclasses
import datetime
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from tuning.errors import UserError, one_line

_TRIES = 6
_OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A point that this worker carries out; it ends with `PointQueue.finish`, or with the worker's death."""

    index: int  # N of trial_N, from 1
    point: dict[str, Any]
    n_deaths: int  # of workers that had it before
    trial_id: int


@dataclasses.dataclass(frozen=True)
class PointStatus:
    """Where a point stands: "waiting", "running" or "done"; `result` is what `finish` was given."""

    index: int
    point: dict[str, Any]
    state: str
    n_deaths: int
    result: dict[str, Any] | None


class PointQueue:
    """One study.

    Args:
        url: an SQLAlchemy URL, `sqlite:///file.db` or `postgresql://…`.
        name: of the study.
        identity: what must be equal for a later worker to join: workload, submission, search space, seed, code.
        points: all of them, in order.
        heartbeat_s: seconds between signs of life; three without one mean death.

    Raises:
        UserError: the storage cannot be reached or written, or holds a study of this name with another identity.
    """

    def __init__(
        self,
        url: str,
        name: str,
        identity: Mapping[str, Any],
        points: Sequence[Mapping[str, Any]],
        heartbeat_s: int = 20,
    ):
        self._points = [dict(point) for point in points]
        self._grace_s = 3 * heartbeat_s
        self._next = 0  # the first trial number that this worker has not tried
        self._silent_since: dict[int, float] = {}  # running trial without a heartbeat -> when this worker saw it first
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._storage = _open(url, heartbeat_s, self._grace_s)
            identity = json.loads(json.dumps(dict(identity)))
            try:
                self._study = optuna.create_study(storage=self._storage, study_name=name)
                self._id = self._storage.get_study_id_from_name(name)
                self._storage.set_study_user_attr(self._id, "identity", identity)
            except optuna.exceptions.DuplicatedStudyError:
                self._study = optuna.load_study(storage=self._storage, study_name=name)
                self._id = self._storage.get_study_id_from_name(name)
                self._wait_for_the_maker(lambda: "identity" in self._storage.get_study_user_attrs(self._id))
                self._refuse_another(name, identity)
                self._wait_for_the_maker(lambda: self._storage.get_n_trials(self._id) >= len(self._points))
            self._enqueue_missing()
        except UserError:
            raise
        except Exception as error:  # each database has its own
            raise UserError(f"cannot use the storage {_without_password(url)}: {one_line(error)[:300]}") from error

    def claim(self) -> Claim | None:
        """A point to carry out; None if there is none to be had now, though others may be at work on some."""
        while self._next < len(self._points):
            number, self._next = self._next, self._next + 1
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
            if self._take(trial_id):
                return Claim(number + 1, self._points[number], 0, trial_id)
        self._recover()
        trials = self._trials()
        for trial in trials:
            if trial.state is not TrialState.WAITING or not self._take(_id(trial)):
                continue
            index = trial.user_attrs["index"]
            if _is_superseded(trial, self._trials()):
                self._storage.set_trial_state_values(_id(trial), TrialState.PRUNED)
                continue
            return Claim(index, self._points[index - 1], trial.user_attrs["n_deaths"], _id(trial))
        return None

    def alive(self, claim: Claim) -> Any:
        """`with queue.alive(claim):` gives signs of life from a thread of its own."""
        return optuna.storages._heartbeat.get_heartbeat_thread(claim.trial_id, self._storage)

    def finish(self, claim: Claim, result: Mapping[str, Any], value: float) -> bool:
        """The point is done; `value` is for Optuna's own tools. False if another took it, as this one seemed dead."""
        try:
            self._storage.set_trial_user_attr(claim.trial_id, "result", dict(result))
            return self._storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE, [value])
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def status(self) -> list[PointStatus]:
        """Every point, in order."""
        by_index: dict[int, list[FrozenTrial]] = {}
        for trial in self._trials():
            by_index.setdefault(trial.user_attrs["index"], []).append(trial)
        return [self._status(index + 1, by_index.get(index + 1, [])) for index in range(len(self._points))]

    def is_done(self) -> bool:
        return all(point.state == "done" for point in self.status())

    def _status(self, index: int, trials: Sequence[FrozenTrial]) -> PointStatus:
        done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        running = any(trial.state is TrialState.RUNNING for trial in trials)
        state = "done" if done else "running" if running else "waiting"
        result = done[0].user_attrs["result"] if done else None
        n_deaths = max((trial.user_attrs["n_deaths"] for trial in trials), default=0)
        return PointStatus(index, self._points[index - 1], state, n_deaths, result)

    def _trials(self) -> list[FrozenTrial]:
        return [t for t in self._storage.get_all_trials(self._id, deepcopy=False) if "index" in t.user_attrs]

    def _take(self, trial_id: int) -> bool:
        """Whether the waiting trial is this worker's now: one conditional update, as Optuna's own is none on SQLite."""
        table = models.TrialModel.__table__
        is_waiting = (table.c.trial_id == trial_id) & (table.c.state == TrialState.WAITING)
        values = {"state": TrialState.RUNNING, "datetime_start": datetime.datetime.now()}
        with self._storage.engine.begin() as connection:
            is_taken = connection.execute(table.update().where(is_waiting).values(values)).rowcount == 1
        if is_taken:
            self._storage.record_heartbeat(trial_id)
        return is_taken

    def _recover(self) -> None:
        """Fails the trials of the dead, and enqueues again every point that has no open or finished trial."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        trials = self._trials()
        self._fail_silent(trials)
        by_index: dict[int, list[FrozenTrial]] = {}
        for trial in trials:
            by_index.setdefault(trial.user_attrs["index"], []).append(trial)
        for index, own in by_index.items():
            if all(trial.state in (TrialState.FAIL, TrialState.PRUNED) for trial in own):
                self._enqueue(index, 1 + max(trial.user_attrs["n_deaths"] for trial in own))

    def _fail_silent(self, trials: Sequence[FrozenTrial]) -> None:
        """Fails running trials that had no heartbeat at all for the whole grace, by this worker's own clock."""
        now = time.monotonic()
        running = {_id(trial) for trial in trials if trial.state is TrialState.RUNNING}
        silent = running - self._with_heartbeat()
        self._silent_since = {trial_id: self._silent_since.get(trial_id, now) for trial_id in silent}
        for trial_id, since in self._silent_since.items():
            if now - since > self._grace_s:
                try:
                    self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
                except optuna.exceptions.UpdateFinishedTrialError:
                    pass

    def _with_heartbeat(self) -> set[int]:
        with self._storage.scoped_session() as session:
            return {row[0] for row in session.query(models.TrialHeartbeatModel.trial_id).all()}

    def _wait_for_the_maker(self, is_ready: Callable[[], bool]) -> None:
        """Waits while the worker that made the study is still filling it, unless it has stopped doing so."""
        seen, since = -1, time.monotonic()
        while not is_ready() and time.monotonic() - since < self._grace_s:
            n_trials = self._storage.get_n_trials(self._id)
            if n_trials != seen:
                seen, since = n_trials, time.monotonic()
            time.sleep(0.05)

    def _refuse_another(self, name: str, identity: Mapping[str, Any]) -> None:
        found = self._storage.get_study_user_attrs(self._id).get("identity", {})
        for key, own in identity.items():
            if found.get(key) != own:
                raise UserError(
                    f"study {name!r} in the storage has another {key}: {_short(found.get(key))}, not {_short(own)}; "
                    "give another --experiment_name, or run what it was made with"
                )

    def _enqueue_missing(self) -> None:
        for index in range(self._storage.get_n_trials(self._id) + 1, len(self._points) + 1):
            self._enqueue(index, 0)

    def _enqueue(self, index: int, n_deaths: int) -> None:
        point = self._points[index - 1]
        distributions = {name: _distribution([other[name] for other in self._points]) for name in point}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params={name: _plain(value) for name, value in point.items()},
                distributions=distributions,
                user_attrs={"index": index, "n_deaths": n_deaths},
            )
        )


def _is_superseded(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether another trial of the same point is finished, or open with a lower number."""
    for other in trials:
        if other.number == trial.number or other.user_attrs["index"] != trial.user_attrs["index"]:
            continue
        if other.state is TrialState.COMPLETE or (other.state in _OPEN and other.number < trial.number):
            return True
    return False


def _id(trial: FrozenTrial) -> int:
    return trial._trial_id


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """What Optuna's own tools need to show a hyperparameter."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution(list(dict.fromkeys(_plain(value) for value in values)))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)


def _open(url: str, heartbeat_s: int, grace_s: int) -> RDBStorage:
    """The storage; tried again where several that start at once are in each other's way over its tables."""
    for attempt in range(_TRIES):
        try:
            return RDBStorage(
                url, heartbeat_interval=heartbeat_s, grace_period=grace_s, engine_kwargs=_engine_options(url)
            )
        except Exception as error:
            is_a_race = any(sign in str(error).lower() for sign in ("already exists", "unique", "locked"))
            if not is_a_race or attempt == _TRIES - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


def _engine_options(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {"pool_pre_ping": True}


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else url


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}…"
