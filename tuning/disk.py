"""Whether a folder can be written, whether an error means that it cannot, and when a file is safely on disk."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuning.errors import MachineFault, UserError, causes, system_error

_PROBE_BYTES = 2**16
_RUN_AGAIN = "run the command again (run_trial.py with --resume): what is done is kept"
_OTHER_FOLDER = "give another --experiment_dir or --experiment_name"
_CURES = {
    errno.ENAMETOOLONG: "give a shorter --experiment_name or --experiment_dir",
    errno.EACCES: _OTHER_FOLDER,
    errno.EPERM: _OTHER_FOLDER,
    errno.ENOTDIR: _OTHER_FOLDER,
    errno.EEXIST: _OTHER_FOLDER,
    errno.EMFILE: f"raise the limit of open files (ulimit -n), and {_RUN_AGAIN}",
    errno.ENFILE: f"raise the limit of open files, and {_RUN_AGAIN}",
    errno.ENOMEM: f"free some memory, and {_RUN_AGAIN}",
}
_DEFAULT_CURE = f"free some space or choose another --experiment_dir, and {_RUN_AGAIN}"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_PROCESS_LIMIT_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # another process may have what this one lacks
# Faults of the machine, not of the data to be written.
MACHINE_ERRNOS = FULL | {errno.EIO, errno.ESTALE} | _PROCESS_LIMIT_ERRNOS | {errno.EACCES, errno.EPERM}


def expanded(path: str, flag: str | None = None) -> Path:
    """The path with `~` as the home folder.

    Raises:
        UserError: there is no home folder. If the path is the value of a `flag`, the message names the flag.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        cure = f"give --{flag}" if flag else "give the path in full"
        raise UserError(f"{path!r} needs a home folder, and this user has none: {cure}, or set HOME") from error


def check_writable(folder: Path) -> None:
    """Makes the folder if it is missing, and writes a small file into it.

    Raises:
        MachineFault: this process has no files or memory left.
        UserError: the folder cannot be written.
    """
    with errors_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A file without a name: nothing of it stays on the disk if the process is killed.
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"\0" * _PROBE_BYTES)


@contextmanager
def errors_explained(folder: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes into `folder`, into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _write_error(folder, error.errno, os.strerror(error.errno) if error.errno else str(error)) from error


def raise_if_disk_failed(error: BaseException, folder: Path) -> None:
    """
    Raises:
        UserError: the disk or the system caused `error`, of a trial that wrote into `folder`.
    """
    for cause in causes(error):
        number = system_error(cause, MACHINE_ERRNOS)
        if number is None:
            continue
        file = getattr(cause, "filename", None)
        if isinstance(file, str) and not Path(file).absolute().is_relative_to(folder.absolute()):
            cure = _CURES[number] if number in _PROCESS_LIMIT_ERRNOS else f"fix that, and {_RUN_AGAIN}"
            raise MachineFault(f"cannot use {file!r} ({os.strerror(number)}): {cure}") from error
        raise _write_error(folder, number, os.strerror(number)) from error


def sync_folder(folder: Path) -> None:
    """Returns once the folder's list of files is on disk. Before, a loss of power could undo the renaming of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(folder: Path, number: int | None, cause: str) -> UserError:
    kind = MachineFault if number in _PROCESS_LIMIT_ERRNOS else UserError
    return kind(f"cannot write into {folder} ({cause}): {_CURES.get(number or 0, _DEFAULT_CURE)}")
