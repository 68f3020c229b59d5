"""Disks and memory to test on: small ones, that a test may fill, or make read-only."""

import errno
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: str):
    """A file system of `size` mounted at `place`; skips where the tests may not mount."""
    place.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def read_only(folder: Path):
    """The folder, as it is, but nothing in it can be written, by root neither."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that leaves `leave` bytes of the disk free; deleting it frees the rest."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        try:
            while (state := os.statvfs(disk)).f_bavail * state.f_frsize > leave:
                file.write(bytes(state.f_frsize))
        except OSError as error:  # where others write meanwhile
            assert error.errno == errno.ENOSPC
    return filler


@contextmanager
def memory_limit(n_bytes: int):
    """Words before a command whose processes, together, are killed when they need more; skips without cgroups."""
    root = Path("/sys/fs/cgroup")
    group = (root / "memory" if (root / "memory").is_dir() else root) / f"test_{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"control groups are not permitted here: {error}")
    try:
        limits = [file for name in ("memory.max", "memory.limit_in_bytes") if (file := group / name).exists()]
        if not limits:
            pytest.skip("control groups have no memory limit here")
        limits[0].write_text(str(n_bytes))
        yield ["bash", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "limited"]
    finally:
        group.rmdir()


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
