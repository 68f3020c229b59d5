"""The molecules of `b3db` for all tests, and the processes they start: to featurise them takes seconds."""

import fcntl
import functools
from pathlib import Path

from workloads import registry

FOLDER: Path | None = None  # of this run of pytest, which its workers share; set by conftest.py


@functools.cache
def data_dir() -> Path:
    """A --data_dir with them. The first process that asks for it makes it, and others wait."""
    folder = FOLDER / "molecules"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        registry.load("b3db")._load(str(folder))
    return folder
