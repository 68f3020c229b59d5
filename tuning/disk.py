"""Whether a folder can be written, and whether an error says that it cannot."""

import errno
import os
from pathlib import Path

from tuning.errors import UserError

_PROBE_BYTES = 2**16
_CURE = "free some space or choose another --experiment_dir, and run the command again: what is done is kept"
# Of the machine, not of what was to be written.
_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


def refuse_unwritable(folder: Path) -> None:
    """Makes the folder where it is missing, and writes a little into it.

    Raises:
        UserError: that did not work.
    """
    probe = folder / f".writable_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * _PROBE_BYTES)
    except OSError as error:
        raise _refusal(folder, os.strerror(error.errno) if error.errno else str(error)) from error
    finally:
        try:
            probe.unlink(missing_ok=True)
        except OSError:
            pass  # there is none where none could be made


def refuse_if_unwritable(error: BaseException, folder: Path) -> None:
    """After `error` while a trial wrote into `folder`: tells a full or failing disk from the trial's own failure.

    Raises:
        UserError: the disk it was.
    """
    cause: BaseException | None = error
    while cause is not None:
        # Orbax writes by a library of its own, whose errors have the system's words but not its number.
        for number in _ERRNOS:
            if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                raise _refusal(folder, os.strerror(number)) from error
        cause = cause.__cause__ or cause.__context__


def _refusal(folder: Path, cause: str) -> UserError:
    return UserError(f"cannot write into {folder} ({cause}): {_CURE}")
