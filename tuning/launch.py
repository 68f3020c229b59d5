"""Workers of a sweep as processes on this machine, kept alive until the sweep is done."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tuning import disk
from tuning.errors import UserError
from tuning.sweep import Sweep

_REFUSED = 2  # how a script ends after a UserError


def supervise(
    command: Sequence[str],
    sweep: Sweep,
    n_workers: int,
    devices_per_worker: int,
    show: Callable[[Sweep, int], None],
    period_s: float = 1.0,
) -> None:
    """Runs `n_workers` processes of `command` until the sweep is done, starting another for each that dies.

    Args:
        devices_per_worker: CUDA devices that a worker sees; without any, the cores are divided.
        show: called now and then with the sweep and the number of living workers.

    Raises:
        UserError: there are too few devices, a worker met what the user must cure, the disk is full, or workers die
            at once, again and again.
    """
    shares = device_shares(n_workers, devices_per_worker)
    logs = sweep.request.folder / "logs"
    disk.refuse_unwritable(logs)
    workers: dict[int, tuple[subprocess.Popen, float]] = {}
    quick_deaths = 0
    try:
        while not sweep.is_done():
            for slot, devices in enumerate(shares):
                process, started = workers.get(slot, (None, 0.0))
                if process is not None and process.poll() is None:
                    continue
                if process is not None and process.returncode != 0:
                    _look_into_death(process.returncode, sweep.request.folder, _log(logs, slot))
                    quick_deaths = quick_deaths + 1 if time.monotonic() - started < 5 * period_s else 0
                if quick_deaths > 3 * n_workers:
                    raise UserError(f"workers die as soon as they start: see {_log(logs, slot)}")
                cores = _own_cores(slot, n_workers) if devices is None else None
                workers[slot] = _start_worker(command, devices, cores, _log(logs, slot)), time.monotonic()
            show(sweep, sum(process.poll() is None for process, _ in workers.values()))
            time.sleep(period_s)
    finally:
        for process, _ in workers.values():
            process.terminate()
        for process, _ in workers.values():
            process.wait()
    show(sweep, 0)


def device_shares(n_workers: int, devices_per_worker: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker, of the devices that this process may use; None on a machine without.

    Raises:
        UserError: there are not as many as the workers need: two on one would be out of memory.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    drivers = Path("/proc/driver/nvidia/gpus")
    if visible is None and drivers.is_dir():
        visible = ",".join(str(i) for i in range(len(list(drivers.iterdir()))))
    if not visible or devices_per_worker < 1:
        return [None] * n_workers
    devices = visible.split(",")
    if n_workers * devices_per_worker > len(devices):
        needed = f"{n_workers} workers of {devices_per_worker} devices each need {n_workers * devices_per_worker}"
        raise UserError(f"{needed}, but here are {len(devices)}: give fewer --workers or --devices_per_trial")
    firsts = range(0, n_workers * devices_per_worker, devices_per_worker)
    return [",".join(devices[first : first + devices_per_worker]) for first in firsts]


def _own_cores(slot: int, n_workers: int) -> list[int]:
    cores = sorted(os.sched_getaffinity(0))
    return cores[slot % len(cores) :: min(n_workers, len(cores))]


def _start_worker(
    command: Sequence[str], devices: str | None, cores: list[int] | None, log_file: Path
) -> subprocess.Popen:
    environment = os.environ | ({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})
    with open(log_file, "ab") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, env=environment)
    if cores:
        os.sched_setaffinity(process.pid, cores)  # JAX counts its cores later, when it first computes
    return process


def _look_into_death(returncode: int, folder: Path, log: Path) -> None:
    """Raises UserError where another worker would die of the same."""
    disk.refuse_unwritable(folder)
    if returncode == _REFUSED:
        raise UserError(f"a worker refused: {last_line(log)}")


def last_line(log: Path) -> str:
    """Of a worker's output, where its refusal is."""
    return (log.read_text(errors="replace").splitlines() or [""])[-1].removeprefix("error: ")


def _log(logs: Path, slot: int) -> Path:
    return logs / f"worker_{socket.gethostname()}_{slot}.log"  # other machines write into the same folder
