"""Space that is kept on the disk of an SQLite storage, so that points can be given back when the disk is full."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tuning import study_storage

Result = TypeVar("Result")

_N_BYTES = 2**18  # several times what SQLite writes, with its journal, to end a trial and to enqueue its point
_TRIES_S = 10.0  # another process may fill the freed space with a new reserve, which it frees when it needs the space
_RETRY_S = 0.1


class StorageReserve:
    """A file beside the SQLite file, which all processes of a sweep share. Other storages have none.

    Only changes that give a point back or store its result may use the space (`change`). Heartbeats and take-overs may
    not: a full disk must not let one process end the trials of others whose heartbeats it stops.
    """

    def __init__(self, location: study_storage.Location):
        self._file = location.with_name(f"{location.name}.reserve") if isinstance(location, Path) else None

    def keep(self) -> None:
        """Makes the file if there is none, or an incomplete one, and the disk has room for it."""
        if self._file is None:
            return
        try:
            if self._file.exists() and self._file.stat().st_size == _N_BYTES:
                return
            self._file.write_bytes(os.urandom(_N_BYTES))  # some file systems store no zeros
        except OSError:
            self._free()

    def change(self, operation: Callable[[], Result]) -> Result:
        """The result of `operation`, which is repeated with the space freed if the disk is full.

        It must be safe to repeat.

        Raises:
            Exception: any other error, and the last one if the disk stays full for ten seconds.
        """
        began = time.monotonic()
        while True:
            try:
                return operation()
            except study_storage.FAILURES as error:
                if not study_storage.is_full(error) or time.monotonic() - began > _TRIES_S:
                    raise
            self._free()
            time.sleep(_RETRY_S)

    def _free(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # another process has removed it, or the disk is read-only
                self._file.unlink()
