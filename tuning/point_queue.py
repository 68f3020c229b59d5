"""The points of a sweep in an Optuna storage: enqueued once, each carried out once, whoever dies meanwhile.

A point that was not carried out to its end is enqueued again, as another trial of the study. A trial is taken by one
conditional update and ended by another, so that the storage decides who holds a point, and a worker whose trial was
ended by others can put down no result. A worker raises a counter (`beat`) while it lives; it counts as dead if its
process is gone from this machine, or if the counter stood still for three beats. No clocks are compared (`silence`).
"""

import functools
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning import process_identity, study_storage
from tuning.outcome import Miss
from tuning.point_status import PointStatus, histories, is_superseded, point_statuses
from tuning.shared_study import SharedStudy
from tuning.silence import Silence


@dataclass(frozen=True)
class Lease:
    """The right to carry out a point, until `finish` or `release` of the queue, or the worker's death."""

    index: int  # N of trial_N, from 1
    trial_id: int
    n_deaths: int = 0  # of workers that had it before
    faults: tuple[dict[str, Any], ...] = ()  # of the machines that gave it back
    log: str | None = None  # of the last worker that died with it
    lost: threading.Event = field(default_factory=threading.Event, compare=False)  # another holds the point now


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    """Repeats the method while the storage is away, and tells its failure in one line."""

    @functools.wraps(method)
    def repeated(self: "PointQueue", *args: Any, **options: Any) -> Any:
        with study_storage.failure_told(self._place):
            return study_storage.patiently(self._place, lambda: method(self, *args, **options))

    return repeated


class PointQueue:
    """One study.

    Args:
        place: a storage that `study_storage.place_of` gave, or its URL.
        name: of the study.
        identity: what must be equal for a later worker to join: workload, submission, search space, seed, code.
        points: all of them, in order.
        heartbeat_s: seconds between signs of life; three without one mean death.
        log: where this worker's output goes, for whoever has to say how it died.
        machine: what a point that a machine's fault gave back should avoid, as host and devices.
        clock: seconds that only grow.

    Raises:
        UserError: the storage cannot be reached or written, or holds a study of this name with another identity.
            Any method: the storage failed meanwhile, and waiting did not help.
    """

    def __init__(
        self,
        place: study_storage.Place,
        name: str,
        identity: Mapping[str, Any],
        points: Sequence[Mapping[str, Any]],
        heartbeat_s: int = 20,
        log: str | None = None,
        machine: str = "",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._place = study_storage.place_of(place) if isinstance(place, str) else place
        self._owner = process_identity.own() | {"token": uuid.uuid4().hex, "log": log, "machine": machine}
        self._heartbeat_s, self._grace_s = heartbeat_s, 3 * heartbeat_s
        self._next, self._n_points = 0, len(points)  # the first trial number that this worker has not tried
        self._holding: set[int] = set()  # trials that this worker took and knows of
        self._silent, self._waiting = Silence(heartbeat_s, clock), Silence(heartbeat_s, clock)
        self._study = SharedStudy(self._place, name, identity, points, self._grace_s)
        self._rows = self._study.rows

    @_patiently
    def claim(self) -> Lease | None:
        """A point to carry out; None if there is none to be had now, though others may be at work on some."""
        while self._next < self._n_points:
            trial_id = self._study.storage.get_trial_id_from_study_id_trial_number(self._study.id, self._next)
            index = self._rows.take(trial_id, self._owner)
            self._next += 1
            if index == self._next:  # not so where two processes enqueued the points at once
                return self._held(Lease(index, trial_id))
            if index is not None and (lease := self._leased(trial_id)) is not None:
                return lease
        for trial_id in self._to_be_had(self.recover()):
            if self._rows.take(trial_id, self._owner) is not None and (lease := self._leased(trial_id)) is not None:
                return lease
        return None

    @contextmanager
    def alive(self, lease: Lease) -> Iterator[None]:
        """`with queue.alive(lease):` gives signs of life from a thread of its own, and sets `lease.lost`."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._give_signs, args=(lease, is_over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    @_patiently
    def finish(self, lease: Lease, result: Mapping[str, Any], value: float | None = None) -> bool:
        """The point is done. False if another took it, as this worker seemed dead.

        Args:
            result: `reason` in it tells a pruned or crashed trial, whose state in the storage is then that.
            value: what Optuna's own tools rank by, of one that is neither.
        """
        states: dict[Any, TrialState] = {Miss.PRUNED: TrialState.PRUNED, Miss.CRASHED: TrialState.FAIL}
        state = states.get(result.get("reason"), TrialState.COMPLETE)
        name = "crash" if state is TrialState.FAIL else "result"
        value = (value or 0.0) if state is TrialState.COMPLETE else None
        # Asked again, it may have been done already; nobody but the holder puts down a result.
        return self._rows.end(lease.trial_id, state, name, dict(result), value) or self._rows.has(lease.trial_id, name)

    def release(self, lease: Lease, fault: str | None = None) -> None:
        """Gives the point back undone, with no death counted; if the storage fails too, it is as after a death.

        Args:
            fault: of this machine, for which another one is to carry the point out.
        """
        reason = fault and {"error": fault, "machine": self._owner["machine"], "log": self._owner["log"]}
        try:
            if self._rows.end(lease.trial_id, TrialState.FAIL, "returned", reason):
                self._study.enqueue([lease.index], self._study.storage.get_trial(lease.trial_id).intermediate_values)
        except study_storage.FAILURES:
            pass

    def report(self, lease: Lease, step: int, value: float) -> bool:
        """Keeps an intermediate value, for pruners; False if another took the point, as this worker seemed dead."""
        try:
            self._report(lease, step, value)
            return True
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    @_patiently
    def _report(self, lease: Lease, step: int, value: float) -> None:
        self._study.storage.set_trial_intermediate_value(lease.trial_id, step, value)

    @_patiently
    def should_prune(self, lease: Lease, pruner: optuna.pruners.BasePruner) -> bool:
        """What the pruner says of the values that `report` kept."""
        return pruner.prune(self._study.study, self._study.storage.get_trial(lease.trial_id))

    @_patiently
    def status(self) -> list[PointStatus]:
        """Every point, in order."""
        return point_statuses(self._study.trials())

    def is_done(self) -> bool:
        return all(point.state == "done" for point in self.status())

    @_patiently
    def recover(self) -> list[FrozenTrial]:
        """Ends the trials of the dead, and enqueues every point that has no open or finished trial; all trials then.

        To be called again and again: whether others live shows by what changed between the calls.
        """
        trials = self._study.trials()
        running = {trial._trial_id: trial.user_attrs for trial in trials if trial.state is TrialState.RUNNING}
        silent_s = self._silent.look({trial_id: found.get("beat") for trial_id, found in running.items()})
        ended = [trial_id for trial_id in running if self._end_if_dead(trial_id, running[trial_id], silent_s[trial_id])]
        trials = self._study.trials() if ended else trials
        points = histories(trials)
        lost = [index for index, history in points.items() if not history.is_open and history.result is None]
        for index in lost:
            self._study.enqueue([index], points[index].trials[-1].intermediate_values)
        return self._study.trials() if lost else trials

    def _end_if_dead(self, trial_id: int, found: Mapping[str, Any], silent_s: float) -> bool:
        if process_identity.has_ended(found.get("owner") or {}):
            return self._rows.end(trial_id, TrialState.FAIL)
        if silent_s > self._grace_s:
            return self._rows.end(trial_id, TrialState.FAIL, unless_beat_changed_from=found.get("beat"))
        return False

    def give_back(self, process_ids: Collection[int]) -> None:
        """As `release`, for processes of this machine that were ended on purpose."""
        try:
            for trial in self._study.trials():
                owner = trial.user_attrs.get("owner") or {}
                is_theirs = owner.get("host") == self._owner["host"] and owner.get("process_id") in process_ids
                if is_theirs and trial.state is TrialState.RUNNING:
                    self._rows.end(trial._trial_id, TrialState.FAIL, "returned", None)
        except study_storage.FAILURES:
            pass

    @_patiently
    def retry_crashed(self) -> int:
        """Enqueues every crashed point again, whose earlier faults and deaths count no more; how many."""
        crashed = [trial for trial in self._study.trials() if "crash" in trial.user_attrs]
        marked = [trial for trial in crashed if self._rows.add(trial._trial_id, "retried", True)]
        self.recover()
        return len(marked)

    def _to_be_had(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """Waiting trials by number; those that this machine's own fault gave back only after others had their time.

        Among them those that an update took of which the storage could not say whether it was made.
        """
        waiting = [
            trial
            for trial in trials
            if trial.state is TrialState.WAITING
            or (trial.state is TrialState.RUNNING and trial.user_attrs.get("owner") == self._owner)
            and trial._trial_id not in self._holding
        ]
        waiting_s = self._waiting.look({trial._trial_id: None for trial in waiting})
        points = histories(trials)

        def is_for_others(trial: FrozenTrial) -> bool:
            failed_on = {fault["machine"] for fault in points[trial.user_attrs["index"]].faults}
            return self._owner["machine"] in failed_on and waiting_s[trial._trial_id] <= self._grace_s

        return [trial._trial_id for trial in waiting if not is_for_others(trial)]

    def _leased(self, trial_id: int) -> Lease | None:
        """The lease of a trial that was taken; None if the point has another trial already."""
        trials = self._study.trials()
        (own,) = (trial for trial in trials if trial._trial_id == trial_id)
        if is_superseded(own, trials):
            self._rows.end(trial_id, TrialState.FAIL, "superseded", True)
            return None
        index = own.user_attrs["index"]
        history = histories(trials)[index]
        logs = [trial.user_attrs.get("owner", {}).get("log") for trial in history.deaths]
        n_deaths, faults = len(history.deaths), tuple(history.faults)
        return self._held(Lease(index, trial_id, n_deaths, faults, logs[-1] if logs else None))

    def _held(self, lease: Lease) -> Lease:
        self._holding.add(lease.trial_id)
        return lease

    def _give_signs(self, lease: Lease, is_over: threading.Event) -> None:
        for count in itertools.count(1):
            try:
                if not self._rows.beat(lease.trial_id, count):
                    lease.lost.set()
                    return
            except study_storage.FAILURES:
                pass  # the storage may be back in time for the next
            if is_over.wait(self._heartbeat_s):
                return
