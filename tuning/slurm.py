"""Runs the workers of a sweep as a Slurm array, by submitit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuning.errors import UserError, one_line
from tuning.interruption import CHECKPOINTS_KEPT, RUN_AGAIN, Interrupted, Interruption
from tuning.launch import last_line
from tuning.sweep import Sweep
from tuning.sweep_view import counts

_PERIOD_S = 10.0  # between two checks of the sweep and the jobs


def submit(
    command: Sequence[str],
    sweep: Sweep,
    n_workers: int,
    devices_per_worker: int,
    show: Callable[[Sweep, int], None],
    *,
    options: Mapping[str, str],
) -> None:
    """Submits `n_workers` jobs of `command` and waits until the sweep is done. Then it cancels the remaining jobs.
    If the sweep is done it submits none.

    A job that Slurm preempts, or that reaches its time limit, is queued again and continues from its checkpoint. A job
    that dies is not replaced, but another worker takes over its trial.

    Args:
        devices_per_worker: GPUs of each job, if the cluster has GPUs.
        options: sbatch's options without the dashes, {"partition": "gpu", "time": "12:00:00"}. They override ours.

    Raises:
        UserError: there is no Slurm here, submitit is not installed, Slurm refuses the jobs, or all of them ended
            before the sweep did.
        Interrupted: a signal came; the jobs are cancelled, and save their state.
    """
    interruption, jobs, array, status = Interruption(), [], "", []
    with interruption:
        try:
            with interruption.interruptible():
                status = sweep.status()
            if any(point.state != "done" for _, point in status):
                executor = _executor(sweep, devices_per_worker, options)
                jobs = _submitted(executor, [sys.executable, *command], n_workers, interruption)
                array = jobs[0].job_id.split("_")[0]
            with interruption.interruptible():  # a signal while sbatch ran ends it here, when the jobs are known
                while True:
                    status = sweep.status()
                    if all(point.state == "done" for _, point in status):
                        break
                    n_alive = _n_alive(array, n_workers)
                    show(sweep, n_alive)
                    if n_alive == 0 and not sweep.is_done():
                        last_lines = sorted({last_line(job.paths.stderr) for job in jobs if job.paths.stderr.exists()})
                        problem = f"all workers ended before the sweep did, saying {' / '.join(last_lines)!r}"
                        raise UserError(f"{problem}; fix it and run the command again: what is done is kept")
                    time.sleep(_PERIOD_S)
        except Interrupted as stop:
            raise Interrupted(stop.signal_name, f"{counts(status)}; {CHECKPOINTS_KEPT}", RUN_AGAIN) from None
        finally:
            if array:
                subprocess.run(["scancel", array], capture_output=True)
    show(sweep, 0)


def _submitted(executor: Any, command: Sequence[str], n_workers: int, interruption: Interruption) -> list[Any]:
    try:
        with executor.batch():
            return [executor.submit(_picklable_run(), command) for _ in range(n_workers)]
    except Exception as error:  # submitit raises sbatch's message
        interruption.raise_if_signalled()  # Ctrl-C ends sbatch, too
        raise UserError(f"Slurm refused the jobs: {one_line(error)[:300]}; correct --slurm_option") from error


def _n_alive(array: str, n_workers: int) -> int:
    """The number of jobs that wait or run. submitit's own query needs Slurm's accounting, which some clusters lack."""
    squeue = subprocess.run(["squeue", "--noheader", "--array", "--jobs", array], capture_output=True, text=True)
    if squeue.returncode and "Invalid job id" not in squeue.stderr:
        return n_workers  # Slurm's controller is unavailable for a moment
    return len(squeue.stdout.splitlines())


def _executor(sweep: Sweep, devices_per_worker: int, options: Mapping[str, str]) -> Any:
    if shutil.which("sbatch") is None:
        raise UserError("no sbatch found, so no Slurm here: leave out --launcher=slurm, or run this on a login node")
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher=slurm needs submitit: run `pip install submitit`") from error
    executor = submitit.SlurmExecutor(folder=sweep.request.experiment_folder / "logs" / "%j")
    gpus = {"gpus_per_node": devices_per_worker} if devices_per_worker and _has_gpus(options) else {}
    executor.update_parameters(
        job_name="sweep",
        ntasks_per_node=1,
        time=None,  # the partition's limit, in place of submitit's five minutes
        additional_parameters={"requeue": True} | dict(options),
        **gpus,
    )
    return executor


def _picklable_run() -> Callable[[Sequence[str]], None]:
    def run(command: Sequence[str]) -> None:
        # submitit has Slurm send this signal to all processes of the job, some time before its end. The worker saves
        # its state, and only then the job is queued again, which ends its processes. submitit's own handler would
        # count preemptions as time limits if it does not know the limit. A job that is cancelled gets SIGTERM alone.
        warnings: list[int] = []
        signal.signal(signal.SIGUSR2, lambda number, _: warnings.append(number))
        code = subprocess.run(command).returncode
        if code == 75 and warnings:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        elif code:
            raise subprocess.CalledProcessError(code, command)

    return run  # a local function is pickled by value, so that the job need not find this module


def _has_gpus(options: Mapping[str, str]) -> bool:
    """Whether the cluster, or the partition among the options, has GPUs, as Slurm reports."""
    partition = ["-p", options["partition"]] if "partition" in options else []
    sinfo = subprocess.run(["sinfo", "--noheader", "--format=%G", *partition], capture_output=True, text=True)
    return "gpu" in sinfo.stdout
