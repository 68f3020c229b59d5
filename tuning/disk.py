"""Whether a folder can be written, whether an error says that it cannot, and what is on disk for good."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuning.errors import MachineFault, UserError, causes

_PROBE_BYTES = 2**16
_AGAIN = "run the command again: what is done is kept"
_OTHER_PLACE = "give another --experiment_dir or --experiment_name"
_CURES = {
    errno.ENAMETOOLONG: "give a shorter --experiment_name or --experiment_dir",
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.ENOTDIR: _OTHER_PLACE,
    errno.EEXIST: _OTHER_PLACE,
    errno.EMFILE: f"raise the limit of open files (ulimit -n), and {_AGAIN}",
    errno.ENFILE: f"raise the limit of open files, and {_AGAIN}",
    errno.ENOMEM: f"free some memory, and {_AGAIN}",
}
_DEFAULT_CURE = f"free some space or choose another --experiment_dir, and {_AGAIN}"
# Of the machine, not of what was to be written.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
_OF_THE_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # another one may have what this one lacks
_OF_THE_MACHINE = _OF_THE_DISK | _OF_THE_PROCESS | {errno.EACCES, errno.EPERM}


def expanded(path: str, flag: str) -> Path:
    """The path with `~` as the home folder.

    Raises:
        UserError: there is no home folder; the message names the flag that makes one unnecessary.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path!r} needs a home folder, and this user has none: give --{flag}, or set HOME") from error


def refuse_unwritable(folder: Path) -> None:
    """Makes the folder where it is missing, and writes a little into it.

    Raises:
        MachineFault: this process has no files or memory left.
        UserError: the folder cannot be written.
    """
    with failure_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name, so that a kill leaves nothing behind.
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"\0" * _PROBE_BYTES)


@contextmanager
def failure_told(folder: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes into `folder`, into a UserError with the cure."""
    try:
        yield
    except OSError as error:
        raise _refusal(folder, error.errno, os.strerror(error.errno) if error.errno else str(error)) from error


def refuse_if_unwritable(error: BaseException, folder: Path) -> None:
    """After `error` while a trial wrote into `folder`: tells a fault of the machine from the trial's own.

    Raises:
        UserError: the machine it was.
    """
    for cause in causes(error):
        # Libraries in other languages raise errors with the system's words but not its number.
        for number in _OF_THE_MACHINE:
            if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                place = getattr(cause, "filename", None)
                if isinstance(place, str) and not Path(place).absolute().is_relative_to(folder.absolute()):
                    cure = _CURES[number] if number in _OF_THE_PROCESS else f"mend that, and {_AGAIN}"
                    raise MachineFault(f"cannot use {place!r} ({os.strerror(number)}): {cure}") from error
                raise _refusal(folder, number, os.strerror(number)) from error


def sync_folder(folder: Path) -> None:
    """Returns once the folder's list of files is on disk: a renamed file is not there after a loss of power before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(folder: Path, number: int | None, cause: str) -> UserError:
    kind = MachineFault if number in _OF_THE_PROCESS else UserError
    return kind(f"cannot write into {folder} ({cause}): {_CURES.get(number or 0, _DEFAULT_CURE)}")
