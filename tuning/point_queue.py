"""The points of a sweep in an Optuna storage: enqueued once, each carried out once, whoever dies meanwhile.

A study's trial number N is point N + 1, enqueued in order; a worker that dies leaves its trial to be enqueued again,
with a higher number and the same point. Optuna's heartbeat tells the dead from the living by the storage's clock, so
the workers' clocks need not agree. What Optuna leaves open is closed here: a worker that dies before its first
heartbeat, one that dies between failing another's trial and enqueuing it again, and two that enqueue the same one.
"""

import dataclasses
import datetime
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from tuning import study_storage
from tuning.errors import UserError
from tuning.outcome import Miss
from tuning.point_status import OPEN, PointStatus, is_superseded, point_statuses, result_of


@dataclasses.dataclass(frozen=True)
class Claim:
    """A point that this worker carries out; it ends with `finish` or `release` of the queue, or the worker's death."""

    index: int  # N of trial_N, from 1
    point: dict[str, Any]
    n_deaths: int  # of workers that had it before
    trial_id: int
    log: str | None = None  # of the last of those workers


class PointQueue:
    """One study.

    Args:
        url: an SQLAlchemy URL, `sqlite:///file.db` or `postgresql://…`.
        name: of the study.
        identity: what must be equal for a later worker to join: workload, submission, search space, seed, code.
        points: all of them, in order.
        heartbeat_s: seconds between signs of life; three without one mean death.
        log: where this worker's output goes, for whoever has to say how it died.

    Raises:
        UserError: the storage cannot be reached or written, or holds a study of this name with another identity.
            Any method: the storage failed meanwhile.
    """

    def __init__(
        self,
        url: str,
        name: str,
        identity: Mapping[str, Any],
        points: Sequence[Mapping[str, Any]],
        heartbeat_s: int = 20,
        log: str | None = None,
    ):
        self._points = [dict(point) for point in points]
        self._url, self._log, self._heartbeat_s, self._grace_s = url, log, heartbeat_s, 3 * heartbeat_s
        self._next = 0  # the first trial number that this worker has not tried
        self._silent_since: dict[int, float] = {}  # running trial without a heartbeat -> when this worker saw it first
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with study_storage.told(url, "use"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._storage = study_storage.open_shared(url, heartbeat_s, self._grace_s)
            self._join(name, json.loads(json.dumps(dict(identity))))

    def _join(self, name: str, identity: Mapping[str, Any]) -> None:
        try:  # also where the study is known to be there: who may not write is refused here, not in the first trial
            self._study = optuna.create_study(storage=self._storage, study_name=name)
            self._id = self._storage.get_study_id_from_name(name)
            self._storage.set_study_user_attr(self._id, "identity", identity)
        except optuna.exceptions.DuplicatedStudyError:
            self._study = optuna.load_study(storage=self._storage, study_name=name)
            self._id = self._storage.get_study_id_from_name(name)
            self._wait_for_the_maker(lambda: "identity" in self._storage.get_study_user_attrs(self._id))
            if "identity" not in self._storage.get_study_user_attrs(self._id):
                self._storage.set_study_user_attr(self._id, "identity", identity)  # its maker died at once
            self._refuse_another(name, identity)
            self._wait_for_the_maker(lambda: self._storage.get_n_trials(self._id) >= len(self._points))
        self._enqueue_missing()

    def claim(self) -> Claim | None:
        """A point to carry out; None if there is none to be had now, though others may be at work on some."""
        with study_storage.failure_told(self._url):
            while self._next < len(self._points):
                number, self._next = self._next, self._next + 1
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
                if self._take(trial_id):
                    return Claim(number + 1, self._points[number], 0, trial_id)
            self._recover()
            for trial in self._trials():
                if trial.state is not TrialState.WAITING or not self._take(_id(trial)):
                    continue
                if is_superseded(trial, self._trials()):
                    self._storage.set_trial_state_values(_id(trial), TrialState.FAIL)
                    continue
                index, found = trial.user_attrs["index"], trial.user_attrs
                return Claim(index, self._points[index - 1], found["n_deaths"], _id(trial), found.get("earlier_log"))
        return None

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """`with queue.alive(claim):` gives signs of life from a thread of its own."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._give_signs, args=(claim.trial_id, is_over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def finish(self, claim: Claim, result: Mapping[str, Any], value: float | None = None) -> bool:
        """The point is done. False if another took it, as this one seemed dead.

        Args:
            result: `reason` in it tells a pruned or crashed trial, whose state in the storage is then that.
            value: what Optuna's own tools rank by, of one that is neither.
        """
        states = {Miss.PRUNED: TrialState.PRUNED, Miss.CRASHED: TrialState.FAIL}
        state = states.get(result.get("reason"), TrialState.COMPLETE)
        values = [value or 0.0] if state is TrialState.COMPLETE else None
        name = "crash" if state is TrialState.FAIL else "result"
        with study_storage.failure_told(self._url):
            try:
                self._storage.set_trial_user_attr(claim.trial_id, name, dict(result))
                return self._storage.set_trial_state_values(claim.trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                return False

    def release(self, claim: Claim) -> None:
        """Gives the point back undone, with no death counted; if the storage fails too, it is as after a death."""
        try:
            self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)
            self._enqueue(claim.index, claim.n_deaths, self._storage.get_trial(claim.trial_id))
        except (optuna.exceptions.UpdateFinishedTrialError, *study_storage.FAILURES):
            pass

    def report(self, claim: Claim, step: int, value: float) -> bool:
        """Keeps an intermediate value, for pruners; False if another took the point, as this worker seemed dead."""
        with study_storage.failure_told(self._url):
            try:
                self._storage.set_trial_intermediate_value(claim.trial_id, step, value)
                return True
            except optuna.exceptions.UpdateFinishedTrialError:
                return False

    def should_prune(self, claim: Claim, pruner: optuna.pruners.BasePruner) -> bool:
        """What the pruner says of the values that `report` kept."""
        with study_storage.failure_told(self._url):
            return pruner.prune(self._study, self._storage.get_trial(claim.trial_id))

    def status(self) -> list[PointStatus]:
        """Every point, in order."""
        with study_storage.failure_told(self._url):
            return point_statuses(self._trials(), self._points)

    def is_done(self) -> bool:
        return all(point.state == "done" for point in self.status())

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
            if self._log:
                self._storage.set_trial_user_attr(trial_id, "log", self._log)
        return is_taken

    def _give_signs(self, trial_id: int, is_over: threading.Event) -> None:
        while not is_over.is_set():
            try:
                self._storage.record_heartbeat(trial_id)
            except study_storage.FAILURES:
                pass  # the storage may be back in time for the next
            is_over.wait(self._heartbeat_s)

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
            if not any(trial.state in OPEN or result_of(trial) is not None for trial in own):
                last = max(own, key=lambda trial: trial.number)
                self._enqueue(index, 1 + max(trial.user_attrs["n_deaths"] for trial in own), last)

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

    def _enqueue(self, index: int, n_deaths: int, earlier: FrozenTrial | None = None) -> None:
        point = self._points[index - 1]
        distributions = {name: _distribution([other[name] for other in self._points]) for name in point}
        log = earlier.user_attrs.get("log") if earlier else None
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params={name: _plain(value) for name, value in point.items()},
                distributions=distributions,
                user_attrs={"index": index, "n_deaths": n_deaths} | ({"earlier_log": log} if log else {}),
                intermediate_values=earlier.intermediate_values if earlier else None,
            )
        )


def _id(trial: FrozenTrial) -> int:
    return trial._trial_id


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """What Optuna's own tools need to show a hyperparameter."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution(list(dict.fromkeys(_plain(value) for value in values)))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}…"
