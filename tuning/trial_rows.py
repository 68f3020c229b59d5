"""Atomic changes of Optuna's trials, which Optuna's own functions do not offer.

Each change is one transaction that begins with a conditional update, so that of two processes only one succeeds.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, exists, select
from sqlalchemy.exc import IntegrityError

_TRIALS = models.TrialModel.__table__
_ATTRIBUTES = models.TrialUserAttributeModel.__table__
_VALUES = models.TrialValueModel.__table__


class TrialRows:
    """The trials of a storage."""

    def __init__(self, storage: RDBStorage):
        self._storage, self._engine = storage, storage.engine

    def add_trials(self, study_id: int, trials: Sequence[FrozenTrial]) -> None:
        """Adds trials to a study, numbered in their order."""
        with self._storage.scoped_session() as session, session.begin():
            models.StudyModel.find_or_raise_by_id(
                study_id, session, for_update=True
            )  # locked, as a trial's number is the count
            for trial in trials:
                self._storage._get_prepared_new_trial(study_id, trial, session)

    def wait_for_lock(self) -> None:
        """Returns once this process could change the storage; SQLite lets others read while one process changes it.

        Raises:
            OperationalError: another process holds the lock of the SQLite file for longer than SQLite itself waits.
        """
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    def take(self, trial_id: int, owner: Mapping[str, Any]) -> int | None:
        """Gives a waiting trial to the owner, and returns its point's index; None if another owner has the trial.

        The same owner may safely repeat the call.
        """
        taking = _TRIALS.update().where(_in_state(trial_id, TrialState.WAITING))
        with self._engine.begin() as connection:
            if connection.execute(taking.values(state=TrialState.RUNNING, datetime_start=_now())).rowcount == 1:
                _put(connection, trial_id, "owner", owner)
                _put(connection, trial_id, "beat", 0)
            elif not connection.execute(select(exists().where(_in_state(trial_id, TrialState.RUNNING)))).scalar():
                return None
            elif _get(connection, trial_id, "owner") != owner:
                return None
            return _get(connection, trial_id, "index")

    def beat(self, trial_id: int, count: int) -> bool:
        """Sets the trial's heartbeat counter to `count`; returns False if the trial has ended."""
        is_running = exists().where(_in_state(trial_id, TrialState.RUNNING))
        beating = _ATTRIBUTES.update().where(_named(trial_id, "beat"), is_running).values(value_json=json.dumps(count))
        with self._engine.begin() as connection:
            return connection.execute(beating).rowcount == 1

    def end(
        self,
        trial_id: int,
        state: TrialState,
        name: str | None = None,
        attribute: Any = None,
        value: float | None = None,
        *,
        unless_beat_changed_from: int | None = None,
    ) -> bool:
        """Ends a running trial, with an attribute and a value; returns False if it has ended already.

        Args:
            unless_beat_changed_from: leaves the trial as it is if its counter is not this number.
        """
        ending = _TRIALS.update().where(_in_state(trial_id, TrialState.RUNNING))
        if unless_beat_changed_from is not None:
            has_same_beat = _ATTRIBUTES.c.value_json == json.dumps(unless_beat_changed_from)
            ending = ending.where(exists().where(_named(trial_id, "beat"), has_same_beat))
        with self._engine.begin() as connection:
            if connection.execute(ending.values(state=state, datetime_complete=_now())).rowcount != 1:
                return False
            if name is not None:
                _put(connection, trial_id, name, attribute)
            if value is not None:
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                row = {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}
                connection.execute(_VALUES.insert().values(row))
            return True

    def has(self, trial_id: int, name: str) -> bool:
        """Whether the trial has an attribute of this name."""
        with self._engine.connect() as connection:
            return bool(connection.execute(select(exists().where(_named(trial_id, name)))).scalar())

    def add(self, trial_id: int, name: str, attribute: Any) -> bool:
        """Adds an attribute to a trial, ended or not; returns False if the trial has it already."""
        try:
            with self._engine.begin() as connection:
                _put(connection, trial_id, name, attribute)
        except IntegrityError:
            return False
        return True


def _in_state(trial_id: int, state: TrialState) -> Any:
    return (_TRIALS.c.trial_id == trial_id) & (_TRIALS.c.state == state)


def _named(trial_id: int, name: str) -> Any:
    return (_ATTRIBUTES.c.trial_id == trial_id) & (_ATTRIBUTES.c.key == name)


def _put(connection: Connection, trial_id: int, name: str, attribute: Any) -> None:
    row = {"trial_id": trial_id, "key": name, "value_json": json.dumps(attribute)}
    connection.execute(_ATTRIBUTES.insert().values(row))


def _get(connection: Connection, trial_id: int, name: str) -> Any:
    text = connection.execute(select(_ATTRIBUTES.c.value_json).where(_named(trial_id, name))).scalar()
    return None if text is None else json.loads(text)


def _now() -> datetime.datetime:
    """The time in UTC, without a time zone, as Optuna stores it. It is only for people to read."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
