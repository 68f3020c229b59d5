"""Runs the workers of a sweep as processes on this machine, and replaces those that die, until the sweep is done."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning import disk, machine, parent
from tuning.errors import MachineFault, UserError
from tuning.interruption import CHECKPOINTS_KEPT, RUN_AGAIN, Interrupted, Interruption
from tuning.point_status import PointStatus
from tuning.sweep import Sweep
from tuning.sweep_view import counts

_MAX_UNFIT = 2  # starts of a worker in a row that find the machine or its devices unfit
_PAUSE_S = 5.0  # before the next such start
# A worker that lived for longer than this had found the machine fit. A hanging device ends one after two minutes.
_WORKED_S = 600.0
_SAVE_S = 60.0  # time for workers to save their state when the sweep is stopped
_LOG = logging.getLogger(__name__)


@dataclass
class _Slot:
    """A slot for a worker process, with devices or cores of its own."""

    devices: str | None
    cores: list[int] | None
    log: Path
    process: subprocess.Popen | None = None
    n_unfit: int = 0  # workers in a row that found the machine unfit
    starts_at: float = 0.0
    started_at: float = 0.0

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


def supervise(
    command: Sequence[str],
    sweep: Sweep,
    n_workers: int,
    devices_per_worker: int,
    show: Callable[[Sweep, int], None],
    period_s: float = 1.0,
) -> None:
    """Runs `n_workers` processes of `command` until the sweep is done, and replaces those that die.

    Args:
        devices_per_worker: CUDA devices of each worker. On a machine without any, workers share the cores out.
        show: called periodically with the sweep and the number of living workers.

    Raises:
        UserError: there are too few devices, a worker met a problem that the user must solve, no worker's machine or
            device works, the disk is full, or workers die repeatedly while no trial ends.
        Interrupted: a signal came; the workers have saved their state and ended.
    """
    _Supervisor(command, sweep, device_shares(n_workers, devices_per_worker), show, period_s).run()


class _Supervisor:
    def __init__(
        self,
        command: Sequence[str],
        sweep: Sweep,
        shares: Sequence[str | None],
        show: Callable[[Sweep, int], None],
        period_s: float,
    ):
        self._command, self._sweep, self._show, self._period_s = command, sweep, show, period_s
        logs = sweep.request.experiment_folder / "logs"
        disk.check_writable(logs)
        name = f"worker_{socket.gethostname()}_{os.getpid()}"  # other supervisors write into this folder, too
        self._slots = [
            _Slot(devices, _cores_of_slot(i, len(shares)) if devices is None else None, logs / f"{name}_{i}.log")
            for i, devices in enumerate(shares)
        ]
        self._n_deaths = 0  # since a trial ended
        self._n_ended = _n_ended(sweep.status())  # at the last death
        self._has_worked = False  # whether a trial has ended under this supervisor

    def run(self) -> None:
        interruption, recovered_at, status = Interruption(), float("-inf"), []
        with interruption:
            try:
                while True:
                    with interruption.interruptible():  # a signal ends the wait for the storage
                        if time.monotonic() - recovered_at > self._sweep.request.heartbeat_s:
                            recovered_at = time.monotonic()
                            self._sweep.recover()
                        status = self._sweep.status()
                    if all(point.state == "done" for _, point in status):
                        break
                    for slot in self._slots:
                        self._tend(slot)
                    with interruption.interruptible():
                        self._show(self._sweep, sum(slot.is_alive for slot in self._slots))
                        time.sleep(self._period_s)
            except Interrupted as stop:
                raise Interrupted(stop.signal_name, f"{counts(status)}; {CHECKPOINTS_KEPT}", RUN_AGAIN) from None
            finally:
                self._end_workers()
        self._show(self._sweep, 0)

    def _tend(self, slot: _Slot) -> None:
        if slot.is_alive:
            return
        if slot.process is not None:
            returncode, slot.process = slot.process.returncode, None
            if returncode != 0:
                self._handle_death(slot, returncode)
        if slot.n_unfit < _MAX_UNFIT and time.monotonic() >= slot.starts_at:
            slot.process, slot.started_at = _start_worker(self._command, slot), time.monotonic()

    def _handle_death(self, slot: _Slot, returncode: int) -> None:
        """Raises UserError if another worker would die for the same reason."""
        disk.check_writable(self._sweep.request.experiment_folder)
        if returncode == UserError.exit_code:
            raise UserError(f"a worker cannot run: {last_line(slot.log)}")
        if returncode == MachineFault.exit_code:
            self._give_up_if_unfit(slot)
            return
        slot.n_unfit = 0
        status = self._sweep.status()
        n_ended = _n_ended(status)
        self._n_deaths = 1 if n_ended > self._n_ended else self._n_deaths + 1
        self._has_worked |= n_ended > self._n_ended
        self._n_ended = n_ended
        # A point crashes after `max_retries` + 1 deaths of its workers. More deaths than all points together can cause
        # have another reason. Until a trial has ended, perhaps no worker can run here at all, so the limit is lower:
        # it allows only as many points as there are workers.
        n_deadly = sum(point.state != "done" and point.n_deaths > 0 for _, point in status)
        n_points = max(len(self._slots), n_deadly) if self._has_worked else len(self._slots)
        if self._n_deaths > n_points * (self._sweep.request.max_retries + 1):
            deaths = f"workers died {self._n_deaths} times and no trial ended meanwhile"
            raise UserError(
                f"{deaths}, the last one {_cause_of_death(returncode, slot.log)}; "
                f"see {slot.log}, fix it and run the command again: what is done is kept"
            )

    def _give_up_if_unfit(self, slot: _Slot) -> None:
        now = time.monotonic()
        slot.n_unfit = 1 if now - slot.started_at > _WORKED_S else slot.n_unfit + 1
        slot.starts_at = now + _PAUSE_S
        if slot.n_unfit < _MAX_UNFIT:
            return
        if all(other.n_unfit >= _MAX_UNFIT for other in self._slots):
            raise MachineFault(f"no worker can run here: {last_line(slot.log)}; no point was lost")
        _LOG.warning("continuing with one worker fewer, since its device does not work: %s", last_line(slot.log))

    def _end_workers(self) -> None:
        """Lets the workers save their state, and kills those that take too long."""
        workers = [slot.process for slot in self._slots if slot.process is not None and slot.is_alive]
        for process in workers:
            process.terminate()
        deadline = time.monotonic() + _SAVE_S
        try:
            for process in workers:
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # at once after a second Ctrl-C
            left = [process for process in workers if process.poll() is None]
            for process in left:
                process.kill()
                process.wait()
            if left:
                self._sweep.give_back([process.pid for process in left])


def _n_ended(status: Sequence[tuple[int, PointStatus]]) -> int:
    """Trials that ended, by their own doing."""
    results = [point.result for _, point in status if point.result is not None]
    return sum(not result.get("is_machine_fault") for result in results)


def device_shares(n_workers: int, devices_per_worker: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker; None on a machine without CUDA devices.

    Raises:
        UserError: this process may use fewer devices than the workers need.
    """
    devices = machine.visible_cuda_devices()
    if not devices or devices_per_worker < 1:
        return [None] * n_workers
    if n_workers * devices_per_worker > len(devices):
        needed = f"{n_workers} workers of {devices_per_worker} devices each need {n_workers * devices_per_worker}"
        raise UserError(f"{needed}, but only {len(devices)} are visible: give fewer --workers or --devices_per_trial")
    firsts = range(0, n_workers * devices_per_worker, devices_per_worker)
    return [",".join(devices[first : first + devices_per_worker]) for first in firsts]


def _cores_of_slot(slot: int, n_workers: int) -> list[int]:
    """The cores that a worker is bound to; none where a system cannot bind processes."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[slot % len(cores) :: min(n_workers, len(cores))]


def _start_worker(command: Sequence[str], slot: _Slot) -> subprocess.Popen:
    environment = os.environ | {parent.SUPERVISOR: str(os.getpid())}
    if slot.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.devices
    with open(slot.log, "ab") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, env=environment)
    if slot.cores:
        os.sched_setaffinity(process.pid, slot.cores)  # JAX counts the cores later, at its first computation
    return process


def _cause_of_death(returncode: int, log: Path) -> str:
    if returncode < 0:
        return f"by {signal.Signals(-returncode).name}"
    return f"saying {last_line(log)!r}"


def last_line(log: Path) -> str:
    """The last line of a worker's output, which has the reason for its end."""
    return (log.read_text(errors="replace").splitlines() or [""])[-1].removeprefix("error: ")
