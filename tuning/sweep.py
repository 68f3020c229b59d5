"""A sweep: every point of a search space is carried out once, by any number of workers on any number of machines.

A worker is a process that claims points from the queue and runs their trials one after another, so that they share what
is compiled. `launch` and `slurm` start workers.
"""

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import disk, machine, pruning, records, search_space, submission
from tuning.claim import Claim as FolderClaim
from tuning.description import TrialDescription, describe
from tuning.errors import UserError, one_line, setup_phase
from tuning.outcome import Miss, Outcome
from tuning.point_queue import Claim, PointQueue
from tuning.point_status import PointStatus, study_name
from tuning.trial import Checkpointing, finished_outcome, run_trial
from workloads import registry

_IDLE_S = 1.0  # between looks at a queue from which nothing is to be had


@dataclass(frozen=True)
class Request:
    """What to sweep, under the names of the script's flags.

    Attributes:
        storage: SQLAlchemy URL; None is an SQLite file in the experiment's folder.
        sampling: how ranges are drawn, a value of `search_space.Sampling`.
        prune: when a trial is stopped before its budget, a value of `pruning.Pruning`; not for official scores.
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
    prune: str = "none"

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
        own = submission.load(request.submission_path)
        self.submission = own.with_batch_sizes(request.batch_size, request.eval_batch_size)
        space = search_space.read(request.tuning_search_space or own.search_space_file)
        disk.refuse_unwritable(request.folder)
        self._points, self.queues = [], []
        for study in range(1, request.num_studies + 1):
            sampling = search_space.Sampling(request.sampling)
            points = search_space.points(space, request.num_tuning_trials, request.rng_seed + study - 1, sampling)
            identity = self._identity(space, len(points))
            name, plain = study_name(request.experiment_name, study), [point._asdict() for point in points]
            self._points.append(points)
            self.queues.append(PointQueue(request.url, name, identity, plain, request.heartbeat_s, _own_log()))

    def work(self, say: Callable[[str], None] = print) -> None:
        """Carries out points until all are done, others' included, should those workers die.

        For the main thread of a process: SIGTERM, and SIGUSR2, Slurm's warning, end it and give its point back.
        """
        faulthandler.enable()  # a death in native code shows in the worker's log
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
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
        try:
            with queue.alive(claim):
                if claim.n_deaths > self.request.max_retries:
                    outcome = _given_up(claim, trial_dir)
                else:
                    description = self._describe(claim.index, point, seed)
                    with FolderClaim.take(trial_dir) as folder_claim:
                        outcome = finished_outcome(description, trial_dir)
                        outcome = outcome or self._run(study, claim, description, folder_claim)
        except BaseException as error:
            queue.release(claim)
            disk.refuse_if_unwritable(error, trial_dir)
            raise
        summary = _summary(outcome)
        if not queue.finish(claim, summary, summary["steps_to_target"] or summary["step_budget"]):
            say(f"trial {claim.index}: done, but taken over meanwhile, since this worker seemed dead")
            return
        say(f"trial {claim.index}: {summary['reason'] or 'target at step ' + str(summary['steps_to_target'])}")

    def _describe(self, index: int, point: tuple, seed: int) -> TrialDescription:
        return describe(
            self.request.workload,
            self.workload,
            self.submission,
            point,
            rng_seed=seed,
            trial_index=index,
            data_dir=self.request.data_dir,
            max_global_steps=self.request.max_global_steps,
            pruning=self.request.prune,
        )

    def _run(
        self, study: int, claim: Claim, description: TrialDescription, folder_claim: FolderClaim
    ) -> Mapping[str, Any]:
        """The trial's outcome; what it raises in training is its own failure, and the next trial is none the worse.

        Raises:
            UserError: the set-up failed, as the next one's would: no data set, say. Or the disk is full.
        """
        cannot_win = pruning.rule(pruning.Pruning(self.request.prune), self.queues[study - 1], claim, self.workload)
        try:
            return run_trial(
                description,
                self.workload,
                self.submission,
                folder_claim,
                cannot_win=cannot_win,
                checkpointing=Checkpointing(self.request.checkpoints_to_keep),
                resume=True,
            )
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc()
            return {"reason": str(Miss.CRASHED), "error": f"{type(error).__name__}: {one_line(error)}"}

    def _identity(self, space: dict | list, n_points: int) -> dict[str, Any]:
        return {
            "workload": self.request.workload,
            "submission": self.submission.name,
            "search space": space,
            "number of points": n_points,
            "number of studies": self.request.num_studies,
            "seed": self.request.rng_seed,
            "sampling": self.request.sampling,
            "number of steps": self.request.max_global_steps,
            "batch size": self.request.batch_size,
            "pruning": self.request.prune,
            "code version": machine.code_version(),
        }


def _given_up(claim: Claim, trial_dir: Path) -> Mapping[str, Any]:
    error = f"its worker died {claim.n_deaths} times; {claim.log or 'the logs folder'} says how"
    outcome = {"reason": str(Miss.CRASHED), "error": error, "hyperparameters": claim.point}
    records.write_json(trial_dir / "outcome.json", outcome)
    return outcome


def _summary(outcome: Outcome | Mapping[str, Any]) -> dict[str, Any]:
    """What the storage keeps of an outcome; the trial's folder has all of it."""
    found = outcome.to_json() if isinstance(outcome, Outcome) else outcome
    names = ("steps_to_target", "seconds_to_target", "compile_seconds_to_target", "reason", "error")
    names += ("global_step", "step_budget", "best_validation_metric", "submission_seconds")
    return {name: found.get(name) for name in names}


def _own_log() -> str | None:
    """The file that this process's errors go to; None if they go elsewhere, or the system does not tell."""
    try:
        target = os.readlink(f"/proc/self/fd/{sys.stderr.fileno()}")
    except (OSError, ValueError, AttributeError):
        return None
    return target if os.path.isfile(target) else None
