"""Identifies a process, so that another one on the same machine can check whether it still runs."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def current() -> dict[str, Any]:
    """Host, process id, and what distinguishes a reused process id or another machine of the same name.

    Values that are unknown are None.
    """
    return {"host": socket.gethostname(), "process_id": os.getpid(), "start": _start(os.getpid()), **_machine()}


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether the process that `current` described is known to be gone; False for a process of another machine."""
    machine = _machine()
    if None in machine.values() or any(process.get(name) != value for name, value in machine.items()):
        return False
    start = _start(process["process_id"])
    return not _is_hidden(process["process_id"]) if start is None else start != process["start"]


def _is_hidden(process_id: int) -> bool:
    """Whether it is a live process of another user, which /proc does not show if it is mounted with hidepid."""
    try:
        os.kill(process_id, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


def _machine() -> dict[str, Any]:
    """The values that two processes share if and only if one can look up the other's process id."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "id_namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": None, "id_namespace": None}


def _start(process_id: int) -> int | None:
    """Clock ticks between the machine's start and the process's start; None if the process is gone or a zombie."""
    try:
        words = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else int(words[19])
