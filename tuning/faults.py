"""Whether the machine works, and whether an error was the machine's fault rather than the trial's.

A fault of the machine might not occur on another machine, or later. Three kinds of error count as such:

- an OSError (a resource ran out, a permission was missing, a device or a connection failed), unless its number means
  that the program asked for something impossible (a missing file, a bad argument);
- a MemoryError;
- an error of JAX's runtime, which may be a ValueError, whose status blames the runtime or the device.
"""

import errno
import re
import threading
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np

from tuning import disk
from tuning.errors import MachineFault, causes, one_line, system_error

_ANSWER_S = 120.0  # a device that needs longer for a small sum counts as hanging
# The program asked for what no machine could do.
_PROGRAM_ERRNOS = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.EBADF, errno.EFAULT,
    errno.ENAMETOOLONG, errno.ELOOP, errno.ESPIPE, errno.E2BIG, errno.ENOEXEC, errno.ECHILD, errno.EXDEV, errno.EDOM,
    errno.ERANGE, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP,
}  # fmt: skip
_MACHINE_STATUS = re.compile(
    r"\s*(RESOURCE_EXHAUSTED|INTERNAL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|DATA_LOSS|CANCELLED|UNKNOWN):"
)


def fault_in(error: BaseException) -> str | None:
    """The machine's fault that caused `error`, as one line; None if the program caused it."""
    found = None
    for cause in causes(error):
        if isinstance(cause, MachineFault):
            found = found or _as_line(cause)  # what it was raised from says more
            continue
        if isinstance(cause, OSError) and cause.errno is not None:
            is_fault = cause.errno not in _PROGRAM_ERRNOS
        elif isinstance(cause, jax.errors.JaxRuntimeError) or type(cause) is ValueError:  # of some transfers
            is_fault = _MACHINE_STATUS.match(str(cause)) is not None
        else:
            is_fault = isinstance(cause, MemoryError)
        if is_fault or system_error(cause, disk.MACHINE_ERRNOS) is not None:  # by the system's message, too
            return _as_line(cause)
    return found


def _as_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)[:300]}"


def is_full_disk(error: BaseException) -> bool:
    """Whether a disk had no space left; other workers on the same folder would meet the same."""
    return any(system_error(cause, disk.FULL) is not None for cause in causes(error))


def probe_devices() -> None:
    """Has every device of this process add a few numbers.

    Raises:
        MachineFault: there is no device, one fails, gives a wrong sum or does not answer, or JAX would use the CPU
            in silence where it is installed for GPUs.
    """
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_wrong_device()), name="device probe", daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    problem = answers[0] if answers else f"the devices do not answer within {_ANSWER_S:g} s"
    if problem is not None:
        raise MachineFault(f"{problem}; check the devices, CUDA_VISIBLE_DEVICES and JAX_PLATFORMS of this machine")


def _wrong_device() -> str | None:
    try:
        devices = jax.local_devices()
    except Exception as error:  # RuntimeError by JAX; a plugin raises its own
        return f"JAX finds no device to compute on ({one_line(error)[:300]})"
    for device in devices:
        try:
            total = float(_sum(jax.device_put(_NUMBERS, device)))
        except Exception as error:
            return f"device {device} fails ({one_line(error)[:300]})"
        if total != _TOTAL:
            return f"device {device} computes wrongly ({total} in place of {_TOTAL})"
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]  # JAX adds it at run time
    if devices[0].platform == "cpu" and not platforms and any(map(find_spec, _GPU_PLUGINS)):
        return "JAX is installed for GPUs, but sees none (docker needs --gpus=all); JAX_PLATFORMS=cpu trains on the CPU"
    return None


_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_NUMBERS = np.arange(64, dtype=np.float32)
_TOTAL = float(_NUMBERS @ _NUMBERS)  # below 2^24, so exact in any order of summation
_sum = jax.jit(lambda numbers: jnp.sum(numbers * numbers))
