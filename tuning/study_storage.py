"""The Optuna storage of a sweep, opened for many workers or only to be read; what is wrong with it is one line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from tuning.errors import UserError, one_line

_TRIES = 6
_CONNECT_S = 10  # a host that does not answer is given up then
FAILURES = (SQLAlchemyError, StorageInternalError)


def open_shared(url: str, heartbeat_s: int, grace_s: int) -> RDBStorage:
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


def open_to_read(url: str) -> RDBStorage:
    """The storage as it is; nothing is written, so that one without the right to write may look.

    Raises:
        UserError: there is no such file, or the storage cannot be read.
    """
    with told(url, "use"):
        parts = make_url(url)
        if parts.get_backend_name() == "sqlite" and parts.database:
            if not Path(parts.database).exists():
                raise UserError(f"no sweep is in {parts.database}: check --experiment_dir and --experiment_name")
            url = f"sqlite:///file:{parts.database}?mode=ro&uri=true"
        return RDBStorage(url, engine_kwargs=_engine_options(url), skip_table_creation=True)


@contextmanager
def told(url: str, doing: str) -> Iterator[None]:
    """Turns whatever the storage raises into a UserError; each database and driver has its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cure = "check --storage, and that it can be reached and written from here"
        raise UserError(f"cannot {doing} the storage {_without_password(url)}: {_cause(error)}; {cure}") from error


@contextmanager
def failure_told(url: str) -> Iterator[None]:
    """Turns a failure of a storage that worked before into a UserError; other errors pass."""
    try:
        yield
    except FAILURES as error:
        kept = "finished trials and checkpoints are kept, so run the command again when it is mended"
        raise UserError(f"the storage {_without_password(url)} failed: {_cause(error)}; {kept}") from error


def _cause(error: BaseException) -> str:
    """The driver's own words, where SQLAlchemy or Optuna only say that it said something."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return one_line(getattr(error, "orig", None) or error)[:300]


def _engine_options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 120}}
    arguments = {"connect_timeout": _CONNECT_S} if url.startswith("postgresql") else {}
    return {"pool_pre_ping": True, "connect_args": arguments}


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else url
