"""The machine and the code that a number comes from."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import joblib

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_CUDA_VERSIONS = (12, 13)  # that JAX has a plugin for
_COMMIT_VARIABLE = "ALGOPERF_KFAC_COMMIT"
_PROJECT = Path(__file__).resolve().parents[1]


def visible_cuda_devices() -> list[str]:
    """The CUDA devices that JAX may use: those in CUDA_VISIBLE_DEVICES, or all of the driver's if it is not set.

    Empty if JAX cannot use CUDA. Initialises no device.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    visible, drivers = os.environ.get("CUDA_VISIBLE_DEVICES"), Path("/proc/driver/nvidia/gpus")
    if visible is not None:
        return [] if visible in ("", "-1", "NoDevFiles") else visible.split(",")
    if not drivers.is_dir() or not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in _CUDA_VERSIONS):
        return []
    return [str(i) for i in range(len(list(drivers.iterdir())))]


def code_version() -> str | None:
    """The commit of this checkout. Outside a checkout: the value of ALGOPERF_KFAC_COMMIT, or None if it is not set.

    Unlike `environment`, this function initialises no device.
    """
    return _git_state()[0]


def environment() -> dict[str, Any]:
    """Commit, package versions and hardware; `git_dirty` is None outside a checkout."""
    commit, dirty = _git_state()
    devices = jax.devices()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "n_devices": len(devices),
        "n_processes": jax.process_count(),
        "cpu_model": _cpu_model(),
        "n_cpu_cores": joblib.cpu_count(),  # those that this process may use
        "memory_gib": _memory_gib(),
    }


def peak_device_memory_bytes() -> int | None:
    """The largest peak of this process's devices so far; None for devices without this statistic, such as CPUs."""
    all_stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((stats["peak_bytes_in_use"] for stats in all_stats if "peak_bytes_in_use" in stats), default=None)


def provenance(e: Mapping[str, Any]) -> str:
    """One line with the machine, the versions and the commit of an `environment`."""
    machine = f"{e['cpu_model']}, {e['n_cpu_cores']} cores, {e['memory_gib']} GiB"
    devices = f"{e['n_devices']} × {e['device_kind']} ({e['platform']})"
    versions = ", ".join(f"{name} {e[name]}" for name in ("python", *_PACKAGES))
    commit = f"{(e['git_commit'] or 'unknown')[:10]}{' with uncommitted changes' if e['git_dirty'] else ''}"
    return f"Machine: {machine}; {devices}. Versions: {versions}. Commit: {commit}."


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(_PROJECT), *arguments]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()


def _git_state() -> tuple[str | None, bool | None]:
    # An installed copy may lie inside another repository, whose commit is not this code's.
    top = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "HEAD") if top is not None and Path(top).resolve() == _PROJECT else None
    if commit is None:  # a container image or an installed copy has no repository; the variable may hold its commit
        return os.environ.get(_COMMIT_VARIABLE) or None, None
    return commit, bool(_git("status", "--porcelain"))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
