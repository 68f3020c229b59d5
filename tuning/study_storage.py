"""The Optuna storage of a sweep: where it is, how it is opened, and what happens when it fails.

Every failure of a storage is reported in one line. Locks and restarts of the server are waited for.
"""

import logging
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from tuning.errors import MachineFault, UserError, causes, one_line

# An SQLAlchemy URL, or an SQLite file: a file's name may have characters that a URL cannot hold.
Location = str | Path
Result = TypeVar("Result")

PATIENCE_S = 600.0  # a server that is unavailable for longer makes the sweep fail
_RETRY_S = 1.0  # between two tries
_CONNECT_S = 10  # timeout of a connection
_BUSY_S = 5.0  # for which SQLite itself waits for a lock, without a message
FAILURES = (SQLAlchemyError, StorageInternalError)
_LOG = logging.getLogger(__name__)
_LOCK_CURE = "by another process; if that is suspended, continue or end it (PostgreSQL has no such lock)"
_CURE = "give --storage=postgresql://USER@HOST/DATABASE or --storage=sqlite:////FOLDER/FILE.db"


def location_of(url: str) -> Location:
    """The location of a storage that many processes can share, from its URL.

    Raises:
        UserError: the URL is malformed, or names a database in memory or of another kind.
    """
    with errors_explained(url, "use", _CURE):
        parts = make_url(url)
        kind = parts.get_backend_name()
    if kind == "postgresql":
        return url
    if kind != "sqlite":
        raise UserError(f"the storage {shown(url)} is of an unknown kind, {kind}: {_CURE}")
    file = parts.database or ":memory:"
    if file.startswith((":memory:", "file:")) or "?" in url:
        raise UserError(f"the storage {url} is not a file that several processes can share: {_CURE}")
    return Path(file)


def open_shared(location: Location) -> RDBStorage:
    """Opens the storage. Processes that start at the same time may all try to create its tables, so it tries again."""

    def opened() -> RDBStorage:
        if isinstance(location, Path):
            return _opened_file(lambda: _connect(str(location)))
        return RDBStorage(
            location, engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": _CONNECT_S}}
        )

    for _ in range(5):
        try:
            return retry_while_unavailable(location, opened, is_locked)
        except Exception as error:
            if not any(sign in str(error).lower() for sign in ("already exists", "unique")):
                raise
            time.sleep(0.2)
    return opened()


@contextmanager
def opened_to_read(location: Location) -> Iterator[RDBStorage]:
    """Opens the storage without writing, so that a user who may not write can look at it.

    Raises:
        UserError: there is no such file, or the storage cannot be read.
    """
    if not isinstance(location, Path):
        with errors_explained(location, "read"):
            yield RDBStorage(
                location, engine_kwargs={"connect_args": {"connect_timeout": _CONNECT_S}}, **_NO_TABLE_CREATION
            )
        return
    if not location.exists():
        raise UserError(f"no sweep is in {location}: check --experiment_dir and --experiment_name")
    with errors_explained(location, "read"), tempfile.TemporaryDirectory(prefix="sweep_") as folder:
        file = f"file:{quote(str(location.absolute()))}?mode=ro"
        if _is_interrupted(file):
            file = f"file:{quote(str(_copied(location, Path(folder))))}"
        storage = _opened_file(lambda: _connect(file, uri=True), **_NO_TABLE_CREATION)
        yield storage
        storage.engine.dispose()


def _is_interrupted(file: str) -> bool:
    """Whether a process died in the middle of a change. SQLite must undo it, which is a write, before it can read."""
    try:
        with closing(_connect(file, uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    return False


def _copied(file: Path, folder: Path) -> Path:
    """A copy of the database and its journal from the same moment: another process may repair them meanwhile."""
    journal, copy = file.with_name(f"{file.name}-journal"), folder / "copy.db"
    for _ in range(10):
        before = [(f.stat().st_mtime_ns, f.stat().st_size) if f.exists() else None for f in (file, journal)]
        shutil.copyfile(file, copy)
        if before[1] is not None:
            shutil.copyfile(journal, folder / "copy.db-journal")
        if before == [(f.stat().st_mtime_ns, f.stat().st_size) if f.exists() else None for f in (file, journal)]:
            return copy
        (folder / "copy.db-journal").unlink(missing_ok=True)
    raise UserError(f"the storage {file} changes too often to be copied: run the command again later")


_NO_TABLE_CREATION: dict[str, Any] = {"skip_table_creation": True}


def _connect(file: str, **options: Any) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=_BUSY_S, check_same_thread=False, **options)


def _opened_file(connect: Callable[[], sqlite3.Connection], **options: Any) -> RDBStorage:
    # A function connects, since a URL cannot hold every file name.
    return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool}, **options)


def retry_while_unavailable(
    location: Location,
    operation: Callable[[], Result],
    is_temporary: Callable[[BaseException], bool] | None = None,
) -> Result:
    """The result of `operation`, which is repeated while the storage is unavailable and must be safe to repeat.

    It waits for the lock of an SQLite file as long as it takes, and for a server at most ten minutes.

    Args:
        is_temporary: which errors to wait out; `is_unavailable` by default.

    Raises:
        Exception: any other error, and the server's last one after ten minutes.
    """
    began, is_logged = time.monotonic(), False
    while True:
        try:
            return operation()
        except Exception as error:
            has_bound = not is_locked(error)
            is_over = has_bound and time.monotonic() - began > PATIENCE_S
            if is_over or not (is_temporary or is_unavailable)(error):
                raise
            if not is_logged:
                bound = f", at most {PATIENCE_S:g} s" if has_bound else ""
                _LOG.warning("waiting for the storage %s%s: %s", shown(location), bound, _cause(error))
                is_logged = True
            time.sleep(_RETRY_S)


def is_locked(error: BaseException) -> bool:
    """Whether another process holds the lock of an SQLite file."""
    return not _sqlite_codes(error).isdisjoint({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def is_full(error: BaseException) -> bool:
    """Whether the disk of an SQLite file may be full.

    A journal that cannot be made or synced, or a quota that is used up, has the code of any other failed access.
    """
    return not _sqlite_codes(error).isdisjoint({sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})


def _sqlite_codes(error: BaseException) -> set[int]:
    return {cause.sqlite_errorcode & 0xFF for cause in causes(error) if isinstance(cause, sqlite3.OperationalError)}


def is_unavailable(error: BaseException) -> bool:
    """Whether the storage is locked, or its server or the connection to it is down for now."""
    # SQLSTATE: shutting down or starting up, too many connections, deadlock, lock not available, connection lost.
    temporary = ("57P", "53300", "40P01", "40001", "55P03", "08")
    for cause in causes(error):
        if type(cause).__module__.split(".")[0] in ("psycopg", "psycopg2"):
            state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
            if type(cause).__name__ == "OperationalError" and state is None or (state or "").startswith(temporary):
                return True
    return is_locked(error)


@contextmanager
def errors_explained(
    location: Location, action: str, cure: str = "check --storage, and that it can be reached and written from here"
) -> Iterator[None]:
    """Turns every error of the storage into a UserError: each database and driver has errors of its own.

    It is a MachineFault where a server may answer later, so that a worker is started again.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind = MachineFault if is_unavailable(error) else UserError
        raise kind(f"cannot {action} the storage {shown(location)}: {_cause(error)}; {cure}") from error


@contextmanager
def failures_explained(location: Location) -> Iterator[None]:
    """Turns a failure of a storage that worked before into a UserError; other errors stay as they are."""
    try:
        yield
    except FAILURES as error:
        kept = "finished trials and checkpoints are kept, so run the command again when it is fixed"
        raise UserError(f"the storage {shown(location)} failed: {_cause(error)}; {kept}") from error


def _cause(error: BaseException) -> str:
    """The driver's message, without the wrapping errors of SQLAlchemy and Optuna; for a lock, also what to do."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    message = one_line(getattr(error, "orig", None) or error)[:300]
    return f"{message} {_LOCK_CURE}" if is_locked(error) else message


def shown(location: Location) -> str:
    """The location without its password."""
    head, at, tail = str(location).rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at and "://" in head else str(location)
