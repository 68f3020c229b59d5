"""A worker of a sweep: one process that carries out points, one after another, so that they share compiled programs.

A worker needs two rights for each point. The lease, in the storage, reserves the point for this worker. The claim, in
the trial's folder, lets it write there. A worker that is suspended for too long loses both; it then stops and writes
nothing more.
"""

import faulthandler
import time
import traceback
from collections.abc import Callable
from typing import Any

from tuning import disk, faults, pruning, records
from tuning.checkpoint import AllDamaged
from tuning.claim import Claim, ClaimLost, FolderClaimed
from tuning.description import TrialDescription
from tuning.errors import MachineFault, UserError, one_line
from tuning.interruption import RUN_AGAIN, Interruption
from tuning.outcome import Miss, Progress
from tuning.plain_output import print_at_once
from tuning.point_queue import Lease
from tuning.sweep import Sweep
from tuning.trial import finished_outcome, run_trial
from workloads.spec import Direction

_IDLE_S = 1.0  # between two checks of a queue that has no free point
_PROBE_PERIOD_S = 60.0  # of an idle worker
_MAX_REFUSALS = 5  # a trial is postponed this many times, each for a heartbeat, if another process holds its folder

# Fields of the outcome that the storage keeps.
_SUMMARY_FIELDS = (
    *("steps_to_target", "seconds_to_target", "training_seconds_to_target", "compile_seconds_to_target"),
    *("reason", "error", "global_step", "step_budget", "best_validation_metric", "submission_seconds"),
)


class FaultInTrial(MachineFault):
    """The machine failed while a trial ran; the point was given back."""

    exit_code = 74  # EX_IOERR

    def __init__(self, index: int, fault: str):
        super().__init__(f"the machine failed during trial {index}, which returns to the queue: {fault}")
        self.fault = fault


class Worker:
    """A worker of a sweep, for the main thread of a process. Signals end it.

    Args:
        log: called with a line about each point.
    """

    def __init__(self, sweep: Sweep, log: Callable[[str], None] = print_at_once):
        self._sweep, self._request, self._log = sweep, sweep.request, log
        self._interruption = Interruption(RUN_AGAIN)
        self._probed_at = float("-inf")
        self._refusals: dict[tuple[int, int], int] = {}

    def work(self) -> None:
        """Carries out points until all are done. It also takes over the points of workers that die.

        Raises:
            UserError: a problem that the next point would meet as well, and that the user can cure.
            MachineFault: a problem that another process, or another machine, might not have.
            Interrupted: a signal came; the running trial was saved and its point given back.
        """
        faulthandler.enable()  # a crash in native code leaves a traceback in the worker's log
        with self._interruption:
            while True:
                self._probe()
                leases = ((study, queue.lease()) for study, queue in enumerate(self._sweep.queues, start=1))
                study, lease = next((pair for pair in leases if pair[1] is not None), (0, None))
                if lease is not None:
                    self._carry_out(study, lease)
                elif self._sweep.is_done():
                    return
                else:
                    self._wait(_IDLE_S)
                self._interruption.raise_if_signalled()

    def _probe(self) -> None:
        if time.monotonic() - self._probed_at > _PROBE_PERIOD_S:
            with self._interruption.interruptible():
                disk.check_writable(self._request.experiment_folder)
                faults.probe_devices()
            self._probed_at = time.monotonic()

    def _wait(self, seconds: float) -> None:
        with self._interruption.interruptible():
            time.sleep(seconds)

    def _carry_out(self, study: int, lease: Lease) -> None:
        queue = self._sweep.queues[study - 1]
        self._probed_at = float("-inf")  # probe the machine before the next point
        try:
            with queue.alive(lease):
                summary = self._summary(study, lease)
        except ClaimLost:
            self._log(f"trial {lease.index}: taken over, since this worker seemed dead")
            queue.release(lease)  # only has an effect if the folder alone was taken over
            return
        except FolderClaimed as error:
            queue.release(lease)
            self._put_off(study, lease, error)
            return
        except FaultInTrial as error:
            queue.release(lease, error.fault)
            raise
        except Exception as error:
            try:
                fault = self._fault_behind(error)
            except UserError:
                queue.release(lease)
                raise
            queue.release(lease, fault)
            if fault is None:
                raise
            raise FaultInTrial(lease.index, fault) from error
        except BaseException:
            queue.release(lease)
            raise
        self._refusals.clear()
        steps = summary.get("steps_to_target")
        if not queue.finish(lease, summary, summary.get("step_budget") if steps is None else steps):
            self._log(f"trial {lease.index}: done, but taken over meanwhile, since this worker seemed dead")
            return
        self._log(f"trial {lease.index}: {summary['reason'] or f'target at step {steps}'}")

    def _put_off(self, study: int, lease: Lease, error: FolderClaimed) -> None:
        """Postpones a trial whose folder another process holds, for example a worker that was suspended."""
        key = study, lease.index
        self._refusals[key] = self._refusals.get(key, 0) + 1
        if self._refusals[key] > _MAX_REFUSALS:
            raise error
        self._log(f"trial {lease.index}: put off, {one_line(error)}")
        self._wait(self._request.heartbeat_s)

    def _summary(self, study: int, lease: Lease) -> dict[str, Any]:
        """The part of the outcome that the storage keeps; the trial's folder has the whole outcome."""
        description = self._sweep.descriptions[study - 1][lease.index - 1]
        trial_dir = self._request.trial_dir(study, lease.index)
        with self._interruption.interruptible():
            claim = Claim.take(trial_dir, lease_s=3.0 * self._request.heartbeat_s)
        with claim:
            finished = finished_outcome(description, trial_dir)
            if finished is None and lease.n_deaths + len(lease.faults) > self._request.max_retries:
                return _given_up(lease, description, claim)
            outcome = self._run(study, lease, description, claim) if finished is None else finished.to_json()
            claim.check()
        direction = self._sweep.workload.validation_target.direction
        summary = {name: outcome.get(name) for name in _SUMMARY_FIELDS}
        return summary | {"higher_is_better": direction is Direction.HIGHER_IS_BETTER}

    def _run(self, study: int, lease: Lease, description: TrialDescription, claim: Claim) -> dict[str, Any]:
        """The trial's outcome as JSON. An error in training is a crash of the trial, unless the machine is at fault.

        Raises:
            UserError: the disk is full, or the set-up failed, as it would for the next point (for example no data set).
            FaultInTrial: the machine is at fault.
        """
        queue = self._sweep.queues[study - 1]

        def refuse_if_lost(progress: Progress) -> None:
            if lease.lost.is_set():
                raise ClaimLost(f"trial {lease.index} is another worker's by now")

        try:
            outcome = run_trial(
                description,
                self._sweep.workload,
                self._sweep.submission,
                claim,
                report=refuse_if_lost,
                should_prune=pruning.rule(pruning.Pruning(self._request.prune), queue, lease, self._sweep.workload),
                checkpoints_to_keep=self._request.checkpoints_to_keep,
                checkpoint_period_s=self._request.checkpoint_period_s,
                resume=True,
                interruption=self._interruption,
                monitoring=self._request.monitoring,
            )
            return outcome.to_json()
        except AllDamaged as error:
            return _crashed(description, claim, one_line(error))
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            if (fault := self._fault_behind(error)) is not None:
                raise FaultInTrial(lease.index, fault) from error
            return {"reason": str(Miss.CRASHED), "error": f"{type(error).__name__}: {one_line(error)}"}

    def _fault_behind(self, error: BaseException) -> str | None:
        """The machine's fault that made a trial fail, which another worker might not meet; None if there is none.

        Raises:
            UserError: the experiment's folder, which all workers need, cannot be written.
        """
        try:
            disk.check_writable(self._request.experiment_folder)
        except MachineFault as problem:
            return one_line(problem)
        if faults.is_full_disk(error) or isinstance(error, FolderClaimed):
            return None
        if (fault := faults.fault_in(error)) is not None:
            return fault
        try:
            faults.probe_devices()
        except MachineFault as problem:
            return one_line(problem)
        return None


def _given_up(lease: Lease, description: TrialDescription, claim: Claim) -> dict[str, Any]:
    """The outcome of a point that was given back too often."""
    reasons = []
    if lease.n_deaths:
        reasons.append(f"its worker died {lease.n_deaths} times; {lease.log or 'the logs folder'} says how")
    if lease.faults:
        last = lease.faults[-1]
        reasons.append(
            f"machines failed {len(lease.faults)} times, at last {last['machine']} ({last['error']}); "
            f"{last['log'] or 'the logs folder'} says more"
        )
    crash = _crashed(description, claim, "; ".join(reasons))
    return crash | ({"is_machine_fault": True} if lease.faults else {})


def _crashed(description: TrialDescription, claim: Claim, error: str) -> dict[str, Any]:
    """The outcome of a trial that cannot be carried out, which is written into its folder."""
    crash = {"reason": str(Miss.CRASHED), "error": error}
    records.write_json(claim.folder / "outcome.json", description.to_json() | crash, claim.write)
    return crash
