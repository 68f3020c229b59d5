"""The points of a sweep in an Optuna storage: each is carried out once, even if workers die.

A point that was not carried out to its end is enqueued again, as another trial of the study. A worker takes a trial by
an SQL UPDATE that succeeds only while the trial waits, and ends it by one that succeeds only while the worker holds it.
So two workers never hold one point, and a worker whose trial was ended by others cannot write a result. A worker
increments a counter (`beat`) while it lives. It counts as dead if its process is gone from this machine, or if the
counter did not change for three heartbeats. Clocks of different machines are never compared (`_CounterAges`).
"""

import functools
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning import process_identity, study_storage
from tuning.outcome import Miss
from tuning.point_status import OPEN, PointStatus, histories, point_statuses, result_of
from tuning.shared_study import SharedStudy
from tuning.storage_reserve import StorageReserve


@dataclass(frozen=True)
class Lease:
    """The right to carry out a point, until the queue's `finish` or `release`, or until the worker dies."""

    index: int  # N of trial_N, from 1
    trial_id: int
    n_deaths: int = 0  # of workers that had the point before
    faults: tuple[dict[str, Any], ...] = ()  # of the machines whose workers gave the point back
    log: str | None = None  # of the last worker that died while it had the point
    lost: threading.Event = field(
        default_factory=threading.Event, compare=False
    )  # set when another worker has the point


def _retried_while_unavailable(method: Callable[..., Any]) -> Callable[..., Any]:
    """Repeats the method while the storage is unavailable, and reports a failure in one line."""

    @functools.wraps(method)
    def repeated(self: "PointQueue", *args: Any, **options: Any) -> Any:
        with study_storage.failures_explained(self._location):
            return study_storage.retry_while_unavailable(self._location, lambda: method(self, *args, **options))

    return repeated


class PointQueue:
    """The queue of one study's points.

    Args:
        location: of the storage, as `study_storage.location_of` returns it, or its URL.
        name: of the study.
        identity: what must be equal for a later worker to join: workload, submission, search space, seed, code.
        points: all points of the study, in order.
        heartbeat_s: seconds between two heartbeats; a worker that misses three counts as dead.
        id_file: of the trials' folder, as for `SharedStudy`.
        log: the file of this worker's output, which is named if the worker dies.
        machine: this worker's host and devices. A point that it gives back for a fault should run on another machine.
        clock: monotonic seconds.

    Raises:
        UserError: the storage cannot be reached or written, or holds a study of this name with another identity.
            Every method raises it if the storage fails and waiting does not help.
    """

    def __init__(
        self,
        location: study_storage.Location,
        name: str,
        identity: Mapping[str, Any],
        points: Sequence[Mapping[str, Any]],
        heartbeat_s: int = 20,
        id_file: Path | None = None,
        log: str | None = None,
        machine: str = "",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._location = study_storage.location_of(location) if isinstance(location, str) else location
        self._owner = process_identity.current() | {"token": uuid.uuid4().hex, "log": log, "machine": machine}
        self._heartbeat_s, self._grace_s = heartbeat_s, 3 * heartbeat_s
        self._next, self._n_points = 0, len(points)  # the first trial number that this worker has not tried
        self._held_trials: set[int] = set()  # that this worker took and knows of
        self._beats, self._waiting = _CounterAges(heartbeat_s, clock), _CounterAges(heartbeat_s, clock)
        self._study = SharedStudy(self._location, name, identity, points, self._grace_s, id_file)
        self._rows = self._study.rows
        self._reserve = StorageReserve(self._location)

    @_retried_while_unavailable
    def lease(self) -> Lease | None:
        """A point to carry out; None if none is free now. Other workers may still be carrying out points."""
        while self._next < self._n_points:
            trial_id = self._study.storage.get_trial_id_from_study_id_trial_number(self._study.id, self._next)
            index = self._rows.take(trial_id, self._owner)
            self._next += 1
            if index == self._next:  # not the case if two processes enqueued the points at the same time
                return self._held(Lease(index, trial_id))
            if index is not None and (lease := self._leased(trial_id)) is not None:
                return lease
        for trial_id in self._available(self.recover()):
            if self._rows.take(trial_id, self._owner) is not None and (lease := self._leased(trial_id)) is not None:
                return lease
        return None

    @contextmanager
    def alive(self, lease: Lease) -> Iterator[None]:
        """`with queue.alive(lease):` sends heartbeats from a thread, which sets `lease.lost` if the point is lost."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._send_heartbeats, args=(lease, is_over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    @_retried_while_unavailable
    def finish(self, lease: Lease, result: Mapping[str, Any], value: float | None = None) -> bool:
        """Stores the point's result; returns False if another worker took the point, as this one seemed dead.

        Args:
            result: its `reason` decides whether the trial's state in the storage is pruned, failed or complete.
            value: by which Optuna's own tools rank complete trials.
        """
        states: dict[Any, TrialState] = {Miss.PRUNED: TrialState.PRUNED, Miss.CRASHED: TrialState.FAIL}
        state = states.get(result.get("reason"), TrialState.COMPLETE)
        name = "crash" if state is TrialState.FAIL else "result"
        value = (value or 0.0) if state is TrialState.COMPLETE else None
        end = functools.partial(self._rows.end, lease.trial_id, state, name, dict(result), value)
        # A repeated call finds the trial ended. Nobody but the holder of the lease stores a result.
        return self._reserve.change(end) or self._rows.has(lease.trial_id, name)

    def release(self, lease: Lease, fault: str | None = None) -> None:
        """Gives the point back, without counting a death. If the storage fails, this has the effect of a death.

        It waits for SQLite's lock.

        Args:
            fault: of this machine, so that another machine should carry out the point.
        """
        reason = fault and {"error": fault, "machine": self._owner["machine"], "log": self._owner["log"]}

        def give_back() -> None:  # a repeated call may leave it to `recover` to enqueue the point
            if self._rows.end(lease.trial_id, TrialState.FAIL, "returned", reason):
                self._study.enqueue([lease.index], self._study.storage.get_trial(lease.trial_id).intermediate_values)

        self._change_if_possible(give_back)

    @_retried_while_unavailable
    def report(self, lease: Lease, step: int, value: float) -> bool:
        """Stores an intermediate value, for pruners; returns False if another worker took the point."""
        try:
            self._study.storage.set_trial_intermediate_value(lease.trial_id, step, value)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    @_retried_while_unavailable
    def should_prune(self, lease: Lease, pruner: optuna.pruners.BasePruner) -> bool:
        """Whether the pruner stops the trial, by the values that `report` stored."""
        return pruner.prune(self._study.study, self._study.storage.get_trial(lease.trial_id))

    @_retried_while_unavailable
    def status(self) -> list[PointStatus]:
        """The status of every point, in order."""
        return point_statuses(self._study.trials())

    def is_done(self) -> bool:
        return all(point.state == "done" for point in self.status())

    @_retried_while_unavailable
    def recover(self) -> list[FrozenTrial]:
        """Ends the trials of dead workers, and enqueues every point without an open or finished trial.

        It must be called repeatedly, since it compares the heartbeats of two calls. Returns all trials.
        """
        self._rows.wait_for_lock()  # a lock of SQLite stops the heartbeats of the living, too
        trials = self._study.trials()
        running = {trial._trial_id: trial.user_attrs for trial in trials if trial.state is TrialState.RUNNING}
        beat_ages_s = self._beats.look({id_: attributes.get("beat") for id_, attributes in running.items()})
        ended = [id_ for id_ in running if self._end_if_dead(id_, running[id_], beat_ages_s[id_])]
        trials = self._study.trials() if ended else trials
        points = histories(trials)
        lost = [index for index, history in points.items() if not history.is_open and history.result is None]
        for index in lost:
            self._study.enqueue([index], points[index].trials[-1].intermediate_values)
        return self._study.trials() if lost else trials

    def _end_if_dead(self, trial_id: int, attributes: Mapping[str, Any], beat_age_s: float) -> bool:
        if process_identity.has_ended(attributes.get("owner") or {}):
            return self._rows.end(trial_id, TrialState.FAIL)
        if beat_age_s > self._grace_s:
            return self._rows.end(trial_id, TrialState.FAIL, unless_beat_changed_from=attributes.get("beat"))
        return False

    def give_back(self, process_ids: Collection[int]) -> None:
        """As `release`, for processes on this machine that were ended on purpose."""

        def give_back() -> None:
            for trial in self._study.trials():
                owner = trial.user_attrs.get("owner") or {}
                is_of_ended = owner.get("host") == self._owner["host"] and owner.get("process_id") in process_ids
                if is_of_ended and trial.state is TrialState.RUNNING:
                    self._rows.end(trial._trial_id, TrialState.FAIL, "returned", None)

        self._change_if_possible(give_back)

    def _change_if_possible(self, operation: Callable[[], None]) -> None:
        change = functools.partial(self._reserve.change, operation)
        with suppress(*study_storage.FAILURES):
            study_storage.retry_while_unavailable(self._location, change, study_storage.is_locked)

    @_retried_while_unavailable
    def retry_crashed(self) -> int:
        """Enqueues every crashed point again, with its faults and deaths reset; returns the number of these points."""
        crashed = [trial for trial in self._study.trials() if "crash" in trial.user_attrs]
        marked = [trial for trial in crashed if self._rows.add(trial._trial_id, "retried", True)]
        self.recover()
        return len(marked)

    def _available(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """Trials that this worker may take, in order.

        These are the waiting trials, and those that this worker took by an update whose answer from the storage was
        lost. A point that was given back for a fault of this machine is left to other machines for a while.
        """
        waiting = [
            trial
            for trial in trials
            if trial.state is TrialState.WAITING
            or (trial.state is TrialState.RUNNING and trial.user_attrs.get("owner") == self._owner)
            and trial._trial_id not in self._held_trials
        ]
        waiting_s = self._waiting.look({trial._trial_id: None for trial in waiting})
        points = histories(trials)

        def is_for_others(trial: FrozenTrial) -> bool:
            failed_on = {fault["machine"] for fault in points[trial.user_attrs["index"]].faults}
            return self._owner["machine"] in failed_on and waiting_s[trial._trial_id] <= self._grace_s

        return [trial._trial_id for trial in waiting if not is_for_others(trial)]

    def _leased(self, trial_id: int) -> Lease | None:
        """The lease of a trial that this worker took; None if the point has another trial already."""
        trials = self._study.trials()
        (taken,) = (trial for trial in trials if trial._trial_id == trial_id)
        index = taken.user_attrs["index"]
        history = histories(trials)[index]
        for other in history.trials:
            is_earlier = other.state in OPEN and other.number < taken.number
            if other.number != taken.number and (is_earlier or result_of(other) is not None):
                self._rows.end(trial_id, TrialState.FAIL, "superseded", True)
                return None
        logs = [trial.user_attrs.get("owner", {}).get("log") for trial in history.deaths]
        n_deaths, faults = len(history.deaths), tuple(history.faults)
        return self._held(Lease(index, trial_id, n_deaths, faults, logs[-1] if logs else None))

    def _held(self, lease: Lease) -> Lease:
        self._held_trials.add(lease.trial_id)
        self._reserve.keep()
        return lease

    def _send_heartbeats(self, lease: Lease, is_over: threading.Event) -> None:
        for count in itertools.count(1):
            pause_s = float(self._heartbeat_s)
            try:
                if not self._rows.beat(lease.trial_id, count):
                    lease.lost.set()
                    return
            except study_storage.FAILURES:
                pause_s /= 10  # when the storage is back, others must see the heartbeat before they count this as dead
            if is_over.wait(pause_s):
                return


class _CounterAges:
    """Seconds since each counter, such as a worker's heartbeats, last changed.

    No clocks of different machines are compared: it records, by this process's own clock, when it saw each counter
    change. So a wrong or adjusted clock has no effect.

    Args:
        longest_step_s: the most seconds that one call of `look` adds: while the watcher is suspended it sees no change.
        clock: monotonic seconds.
    """

    def __init__(self, longest_step_s: float, clock: Callable[[], float]):
        self._longest_step_s, self._clock = longest_step_s, clock
        self._latest: dict[Hashable, tuple[Any, float]] = {}  # key -> counter, seconds without a change
        self._looked_at = clock()

    def look(self, counters: Mapping[Hashable, Any]) -> dict[Hashable, float]:
        """Seconds since each counter last changed; 0 for a new one."""
        now = self._clock()
        step, self._looked_at = min(now - self._looked_at, self._longest_step_s), now
        ages_s = {}
        for key, counter in counters.items():
            latest = self._latest.get(key)
            ages_s[key] = 0.0 if latest is None or latest[0] != counter else latest[1] + step
        self._latest = {key: (counter, ages_s[key]) for key, counter in counters.items()}
        return ages_s
