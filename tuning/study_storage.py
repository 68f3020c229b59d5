"""The Optuna storage of a sweep: where it is, how it is opened, and what happens when it fails.

Whatever is wrong with a storage is told in one line. A lock, or a server that starts again, is waited for.
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

from tuning.errors import UserError, causes, one_line

Place = str | Path  # an SQLAlchemy URL, or an SQLite file, whose name may hold what a URL cannot
Result = TypeVar("Result")

PATIENCE_S = 600.0  # a storage that is away for longer fails the sweep
_LOOK_S = 1.0  # between two tries
_CONNECT_S = 10  # a host that does not answer is given up then
_BUSY_S = 5.0  # SQLite's own wait for a lock, of which it says nothing
FAILURES = (SQLAlchemyError, StorageInternalError)
_LOG = logging.getLogger(__name__)
_CURE = "give --storage=postgresql://USER@HOST/DATABASE or --storage=sqlite:////FOLDER/FILE.db"


def place_of(url: str) -> Place:
    """The storage of a URL that many processes can share.

    Raises:
        UserError: it is none that can be used: in memory, of another kind of database, or no URL.
    """
    with told(url, "use", _CURE):
        parts = make_url(url)
        kind = parts.get_backend_name()
    if kind == "postgresql":
        return url
    if kind != "sqlite":
        raise UserError(f"the storage {shown(url)} is of an unknown kind, {kind}: {_CURE}")
    file = parts.database or ":memory:"
    if file.startswith((":memory:", "file:")) or "?" in url:
        raise UserError(f"the storage {url} is no file that several processes can share: {_CURE}")
    return Path(file)


def open_shared(place: Place) -> RDBStorage:
    """The storage; tried again where several that start at once are in each other's way over its tables."""

    def opened() -> RDBStorage:
        if isinstance(place, Path):
            return _opened_file(lambda: _connect(str(place)))
        return RDBStorage(place, engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": _CONNECT_S}})

    for _ in range(5):
        try:
            return patiently(place, opened, is_locked)
        except Exception as error:
            if not any(sign in str(error).lower() for sign in ("already exists", "unique")):
                raise
            time.sleep(0.2)
    return opened()


@contextmanager
def opened_to_read(place: Place) -> Iterator[RDBStorage]:
    """The storage as it is; nothing is written, so that one without the right to write may look.

    Raises:
        UserError: there is no such file, or the storage cannot be read.
    """
    if not isinstance(place, Path):
        with told(place, "read"):
            yield RDBStorage(place, engine_kwargs={"connect_args": {"connect_timeout": _CONNECT_S}}, **_AS_IT_IS)
        return
    if not place.exists():
        raise UserError(f"no sweep is in {place}: check --experiment_dir and --experiment_name")
    with told(place, "read"), tempfile.TemporaryDirectory(prefix="sweep_") as folder:
        file = f"file:{quote(str(place.absolute()))}?mode=ro"
        if _is_interrupted(file):
            file = f"file:{quote(str(_copied(place, Path(folder))))}"
        storage = _opened_file(lambda: _connect(file, uri=True), **_AS_IT_IS)
        yield storage
        storage.engine.dispose()


def _is_interrupted(file: str) -> bool:
    """Whether a process died in the middle of a change: SQLite must take it back first, for which it has to write."""
    try:
        with closing(_connect(file, uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    return False


def _copied(file: Path, folder: Path) -> Path:
    """A copy of the database and its journal, both of one moment: another process may repair them meanwhile."""
    journal, copy = file.with_name(f"{file.name}-journal"), folder / "copy.db"
    for _ in range(10):
        before = [(f.stat().st_mtime_ns, f.stat().st_size) if f.exists() else None for f in (file, journal)]
        shutil.copyfile(file, copy)
        if before[1] is not None:
            shutil.copyfile(journal, folder / "copy.db-journal")
        if before == [(f.stat().st_mtime_ns, f.stat().st_size) if f.exists() else None for f in (file, journal)]:
            return copy
        (folder / "copy.db-journal").unlink(missing_ok=True)
    raise UserError(f"the storage {file} changes all the time: look again later")


_AS_IT_IS: dict[str, Any] = {"skip_table_creation": True}


def _connect(file: str, **options: Any) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=_BUSY_S, check_same_thread=False, **options)


def _opened_file(connect: Callable[[], sqlite3.Connection], **options: Any) -> RDBStorage:
    # By a function, since a URL cannot hold every file name.
    return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool}, **options)


def patiently(
    place: Place,
    operation: Callable[[], Result],
    is_passing: Callable[[BaseException], bool] | None = None,
) -> Result:
    """The result of `operation`, repeated while the storage is away; it must be safe to repeat.

    Args:
        is_passing: which errors to wait out; `is_away` if not given.

    Raises:
        Exception: any other error, and the last one after ten minutes.
    """
    began, is_told = time.monotonic(), False
    while True:
        try:
            return operation()
        except Exception as error:
            if not (is_passing or is_away)(error) or time.monotonic() - began > PATIENCE_S:
                raise
            if not is_told:
                _LOG.warning("waiting for the storage %s, at most %g s: %s", shown(place), PATIENCE_S, _cause(error))
                is_told = True
            time.sleep(_LOOK_S)


def is_locked(error: BaseException) -> bool:
    """Whether another process holds the storage's lock."""
    codes = [cause.sqlite_errorcode & 0xFF for cause in causes(error) if isinstance(cause, sqlite3.OperationalError)]
    return any(code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) for code in codes)


def is_away(error: BaseException) -> bool:
    """Whether the storage is locked, or its server or the connection to it is gone for now."""
    # Shut down or starting up, too many connections, deadlock, lock not available, connection lost.
    passing = ("57P", "53300", "40P01", "40001", "55P03", "08")
    for cause in causes(error):
        if type(cause).__module__.split(".")[0] in ("psycopg", "psycopg2"):
            state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
            if type(cause).__name__ == "OperationalError" and state is None or (state or "").startswith(passing):
                return True
    return is_locked(error)


@contextmanager
def told(place: Place, doing: str, cure: str = "check --storage, and that it can be reached and written from here"):
    """Turns whatever the storage raises into a UserError; each database and driver has its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot {doing} the storage {shown(place)}: {_cause(error)}; {cure}") from error


@contextmanager
def failure_told(place: Place) -> Iterator[None]:
    """Turns a failure of a storage that worked before into a UserError; other errors pass."""
    try:
        yield
    except FAILURES as error:
        kept = "finished trials and checkpoints are kept, so run the command again when it is mended"
        raise UserError(f"the storage {shown(place)} failed: {_cause(error)}; {kept}") from error


def _cause(error: BaseException) -> str:
    """The driver's own words, where SQLAlchemy or Optuna only say that it said something."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return one_line(getattr(error, "orig", None) or error)[:300]


def shown(place: Place) -> str:
    """The place without a password."""
    head, at, tail = str(place).rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at and "://" in head else str(place)
