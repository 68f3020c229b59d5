"""What counts as the machine's fault, and what the probe of the devices finds."""

import errno
import threading

import jax
import jax.numpy as jnp
import pytest

from tuning import faults
from tuning.errors import MachineFault, UserError


def _raised_from(cause, error):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "is_fault"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.EREMOTEIO, "Remote I/O error"), True),  # of any number that is not the program's
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (MemoryError(), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS"), True),
        (
            ValueError("INTERNAL: /data/x: No space left on device"),
            True,
        ),  # a library's own words for the system's error
        (ValueError("UNKNOWN: Gloo AllGather failed: Read error: closed"), True),  # another process was killed
        (ValueError("UNKNOWN parameter"), False),
        (_raised_from(OSError(errno.EIO, "Input/output error"), UserError("cannot write")), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (OSError("Unsupported image"), False),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ"), False),
        (ValueError("INTERNAL"), False),
        (ZeroDivisionError("division by zero"), False),
        (_raised_from(KeyError("a"), UserError("no such key")), False),
    ],
)
def test_errors_are_the_machines_or_the_programs(error, is_fault):
    assert (faults.fault_in(error) is not None) == is_fault


def test_a_full_disk_is_told_from_other_faults():
    assert faults.is_full_disk(
        _raised_from(OSError(errno.ENOSPC, "No space left on device"), UserError("cannot write"))
    )
    assert not faults.is_full_disk(OSError(errno.EMFILE, "Too many open files"))


def test_devices_that_work_pass():
    faults.probe_devices()


def test_a_gpu_that_is_not_seen_is_named_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(faults, "find_spec", lambda name: name == "jax_cuda12_plugin")
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", None)
        with pytest.raises(MachineFault, match="sees none .docker needs --gpus=all.; JAX_PLATFORMS=cpu"):
            faults.probe_devices()
        jax.config.update("jax_platforms", "cpu")
        faults.probe_devices()
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("kind", ["missing", "failing", "wrong", "hanging"])
def test_devices_that_do_not_work_are_named_in_one_line(monkeypatch, kind):
    stop = threading.Event()

    def fails(*_):
        raise RuntimeError("Unable to initialize backend 'foo'\nmore" if kind == "missing" else "INTERNAL: lost")

    if kind == "missing":
        monkeypatch.setattr(jax, "local_devices", fails)
    else:
        sums = {"failing": fails, "wrong": lambda x: jnp.float32(1), "hanging": lambda x: stop.wait(10)}
        monkeypatch.setattr(faults, "_sum", sums[kind])
    monkeypatch.setattr(faults, "_ANSWER_S", 0.2 if kind == "hanging" else 60.0)
    words = {
        "missing": "JAX finds no device to compute on .Unable to initialize backend 'foo' more.",
        "failing": "fails .INTERNAL: lost.",
        "wrong": "computes wrongly .1.0 in place of 85344.0.",
        "hanging": "do not answer within 0.2 s",
    }
    with pytest.raises(MachineFault, match=f"{words[kind]}.*; check the devices") as error:
        faults.probe_devices()
    stop.set()
    assert "\n" not in str(error.value) and error.value.exit_code == 69
