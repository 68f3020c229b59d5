"""A sweep: every point of a search space is carried out once, by any number of workers on any number of machines.

Supervisor and workers are processes. A worker claims points from the queue and runs their trials one after another, so
that they share what is compiled; the supervisor keeps the workers of one machine alive and shows how far the sweep is.
"""

import faulthandler
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuning import records, search_space, submission
from tuning.errors import UserError, one_line, setup_phase
from tuning.outcome import Miss, Outcome
from tuning.point_queue import Claim, PointQueue, PointStatus
from tuning.trial import finished_outcome, run_trial
from workloads import registry

_REFUSED = 2  # how a script ends after a UserError
_IDLE_S = 1.0  # between looks at a queue from which nothing is to be had


@dataclass(frozen=True)
class Request:
    """What to sweep, under the names of the script's flags.

    Attributes:
        storage: SQLAlchemy URL; None is an SQLite file in the experiment's folder.
        sampling: how ranges are drawn, a value of `search_space.Sampling`.
        prune: stop a trial at the steps in which the best one so far reached the target; not for official scores.
        max_retries: how many deaths of workers a point survives before it counts as crashed.
    """

    workload: str
    submission_path: str
    experiment_dir: str
    experiment_name: str
    tuning_search_space: str | None = None
    num_tuning_trials: int = 5
    num_studies: int = 1
    rng_seed: int = 0
    sampling: str = "random"
    storage: str | None = None
    data_dir: str = "~/data"
    max_global_steps: int | None = None
    batch_size: int | None = None
    eval_batch_size: int | None = None
    checkpoints_to_keep: int = 2
    max_retries: int = 3
    heartbeat_s: int = 20
    prune: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.experiment_dir).expanduser() / self.experiment_name

    @property
    def url(self) -> str:
        return self.storage or f"sqlite:///{self.folder.absolute() / 'study.db'}"

    def trial_dir(self, study: int, index: int) -> Path:
        """AlgoPerf's place for a trial, with a folder for its study where there are several."""
        place = self.folder / f"study_{study}" if self.num_studies > 1 else self.folder
        return place / f"{self.workload}_jax" / f"trial_{index}"


class Sweep:
    """The queues of a request's studies.

    Raises:
        UserError: the request cannot be carried out, before anything is trained.
    """

    def __init__(self, request: Request):
        self.request = request
        with setup_phase():
            self.workload = registry.load(request.workload)
            request.folder.mkdir(parents=True, exist_ok=True)
            _refuse_unwritable(request.folder)
        own = submission.load(request.submission_path)
        self.submission = own.with_batch_sizes(request.batch_size, request.eval_batch_size)
        space = search_space.read(request.tuning_search_space or own.search_space_file)
        self._points, self.queues = [], []
        for study in range(1, request.num_studies + 1):
            sampling = search_space.Sampling(request.sampling)
            points = search_space.points(space, request.num_tuning_trials, request.rng_seed + study - 1, sampling)
            identity = self._identity(space, len(points))
            name = f"{request.experiment_name}/{request.workload}/{own.name}/study_{study}"
            plain = [point._asdict() for point in points]
            self._points.append(points)
            self.queues.append(PointQueue(request.url, name, identity, plain, request.heartbeat_s))

    def work(self, say: Callable[[str], None] = print) -> None:
        """Carries out points until all are done, others' included, should those workers die."""
        faulthandler.enable()  # a death in native code shows in the worker's log
        while True:
            claims = ((study, queue.claim()) for study, queue in enumerate(self.queues, start=1))
            study, claim = next(((s, c) for s, c in claims if c is not None), (0, None))
            if claim is not None:
                self._carry_out(study, claim, say)
            elif self.is_done():
                return
            else:
                time.sleep(_IDLE_S)

    def is_done(self) -> bool:
        return all(queue.is_done() for queue in self.queues)

    def status(self) -> list[tuple[int, PointStatus]]:
        """(study, point) of every point."""
        return [(study, point) for study, queue in enumerate(self.queues, start=1) for point in queue.status()]

    def _carry_out(self, study: int, claim: Claim, say: Callable[[str], None]) -> None:
        queue, trial_dir = self.queues[study - 1], self.request.trial_dir(study, claim.index)
        seed, point = self.request.rng_seed + study - 1, self._points[study - 1][claim.index - 1]
        with queue.alive(claim):
            if claim.n_deaths > self.request.max_retries:
                outcome = _given_up(claim, trial_dir)
            else:
                outcome = finished_outcome(trial_dir, self.workload, point, seed)
                outcome = outcome or self._run(study, claim, point, seed, trial_dir)
        summary = _summary(outcome)
        value = float(summary["steps_to_target"] or summary["step_budget"] or 0)
        if not queue.finish(claim, summary, value):
            say(f"trial {claim.index}: done, but taken over meanwhile, since this worker seemed dead")
            return
        say(f"trial {claim.index}: {summary['reason'] or 'target at step ' + str(summary['steps_to_target'])}")

    def _steps_to_beat(self, study: int) -> float:
        """Steps to target of the study's best trial so far; infinite unless this sweep prunes."""
        if not self.request.prune:
            return math.inf
        done = [point.result for point in self.queues[study - 1].status() if point.result]
        return min((result["steps_to_target"] for result in done if result["steps_to_target"]), default=math.inf)

    def _run(self, study: int, claim: Claim, point: tuple, seed: int, trial_dir: Path) -> Mapping[str, Any]:
        """The trial's outcome; what it raises in training is its own failure, and the next trial is none the worse.

        Raises:
            UserError: the set-up failed, as the next one's would: no data set, say.
        """
        try:
            return run_trial(
                self.workload,
                self.submission,
                point,
                workload_name=self.request.workload,
                rng_seed=seed,
                trial_index=claim.index,
                trial_dir=trial_dir,
                data_dir=self.request.data_dir,
                max_global_steps=self.request.max_global_steps,
                cannot_win=lambda progress: progress.global_step >= self._steps_to_beat(study),
                checkpoints_to_keep=self.request.checkpoints_to_keep,
                resume=True,
                flags=asdict(self.request),
            )
        except UserError:
            raise
        except Exception as error:
            return {"reason": str(Miss.CRASHED), "error": f"{type(error).__name__}: {one_line(error)}"}

    def _identity(self, space: dict | list, n_points: int) -> dict[str, Any]:
        return {
            "workload": self.request.workload,
            "submission": self.submission.name,
            "search space": space,
            "number of points": n_points,
            "seed": self.request.rng_seed,
            "sampling": self.request.sampling,
            "number of steps": self.request.max_global_steps,
            "batch size": self.request.batch_size,
            "code version": records.code_version(),
        }


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
        UserError: a worker met what the user must cure, or workers die at once, again and again.
    """
    logs = sweep.request.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    workers: dict[int, tuple[subprocess.Popen, float]] = {}
    quick_deaths = 0
    try:
        while not sweep.is_done():
            for slot in range(n_workers):
                process, started = workers.get(slot, (None, 0.0))
                if process is not None and process.poll() is None:
                    continue
                if process is not None and process.returncode == _REFUSED:
                    raise UserError(f"a worker refused: {_last_line(logs / f'worker_{slot}.log')}")
                if process is not None and process.returncode != 0:
                    quick_deaths = quick_deaths + 1 if time.monotonic() - started < 5 * period_s else 0
                if quick_deaths > 3 * n_workers:
                    raise UserError(f"workers die as soon as they start: see {logs}/worker_{slot}.log")
                workers[slot] = _start_worker(command, slot, n_workers, devices_per_worker, logs), time.monotonic()
            show(sweep, sum(process.poll() is None for process, _ in workers.values()))
            time.sleep(period_s)
    finally:
        for process, _ in workers.values():
            process.terminate()
        for process, _ in workers.values():
            process.wait()
    show(sweep, 0)


def submit_to_slurm(
    command: Sequence[str],
    sweep: Sweep,
    n_workers: int,
    devices_per_worker: int,
    show: Callable[[Sweep, int], None],
    period_s: float = 10.0,
) -> None:
    """As `supervise`, with the workers a Slurm array; one that dies is not replaced, but its trial is taken over.

    Raises:
        UserError: there is no Slurm here, or submitit is not installed.
    """
    if shutil.which("sbatch") is None:
        raise UserError("no sbatch found, so no Slurm here: leave out --launcher=slurm, or run this on a login node")
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher=slurm needs submitit: run `pip install submitit`") from error
    executor = submitit.AutoExecutor(folder=sweep.request.folder / "logs", cluster="slurm")
    executor.update_parameters(name="sweep", tasks_per_node=1, gpus_per_node=devices_per_worker)
    with executor.batch():
        function = submitit.helpers.CommandFunction([sys.executable, *command])
        jobs = [executor.submit(function) for _ in range(n_workers)]
    while not sweep.is_done():
        n_alive = sum(not job.done() for job in jobs)
        show(sweep, n_alive)
        if n_alive == 0:
            raise UserError(f"all workers ended before the sweep did: see {executor.folder}")
        time.sleep(period_s)
    show(sweep, 0)


def _start_worker(command: Sequence[str], slot: int, n_workers: int, n_devices: int, logs: Path) -> subprocess.Popen:
    devices = _devices(slot, n_devices)
    environment = os.environ | ({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})
    cores = sorted(os.sched_getaffinity(0))
    own = cores if devices else cores[slot % len(cores) :: min(n_workers, len(cores))]
    with open(logs / f"worker_{slot}.log", "ab") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, env=environment)
    os.sched_setaffinity(process.pid, own)  # JAX counts its cores later, when it first computes
    return process


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").splitlines() or [""])[-1].removeprefix("error: ")


def _devices(slot: int, n_devices: int) -> str | None:
    """CUDA devices of one worker, of those that this process may use; None on a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    drivers = Path("/proc/driver/nvidia/gpus")
    if visible is None and drivers.is_dir():
        visible = ",".join(str(i) for i in range(len(list(drivers.iterdir()))))
    if not visible:
        return None
    devices = visible.split(",")
    first = slot * n_devices % len(devices)
    return ",".join(devices[first : first + n_devices])


def _given_up(claim: Claim, trial_dir: Path) -> Mapping[str, Any]:
    error = f"its worker died {claim.n_deaths} times; the logs folder says how"
    outcome = {"reason": str(Miss.CRASHED), "error": error, "hyperparameters": claim.point}
    records.write_json(trial_dir / "outcome.json", outcome)
    return outcome


def _summary(outcome: Outcome | Mapping[str, Any]) -> dict[str, Any]:
    """What the storage keeps of an outcome; the trial's folder has all of it."""
    found = outcome.to_json() if isinstance(outcome, Outcome) else outcome
    names = ("steps_to_target", "seconds_to_target", "compile_seconds_to_target", "reason", "error")
    names += ("global_step", "step_budget", "best_validation_metric", "submission_seconds")
    return {name: found.get(name) for name in names}


def _refuse_unwritable(folder: Path) -> None:
    probe = folder / f".writable_{os.getpid()}"
    try:
        probe.write_bytes(b"\0" * 2**16)
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror}): choose another --experiment_dir") from error
    finally:
        probe.unlink(missing_ok=True)
