"""A sweep: any number of workers, on any number of machines, carry out every point of a search space once.

This module has the request and the queues of its points. `worker` carries out points; `launch` and `slurm` start
workers.
"""

import os
import socket
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import disk, machine, search_space, study_storage
from tuning.description import TrialDescription
from tuning.point_queue import PointQueue
from tuning.point_status import PointStatus, study_name
from tuning.trials_request import SWEEP_DATABASE, SWEEP_ID, TrialsRequest

# Fields of a trial's description that may differ between workers, and those that differ between trials.
_WORKER_FIELDS = ("data_dir", "submission_path")
_TRIAL_FIELDS = ("hyperparameters", "trial_index")


@dataclass(frozen=True)
class Request(TrialsRequest):
    """What to sweep, under the names of the script's flags.

    Attributes:
        storage: SQLAlchemy URL; None is an SQLite file in the experiment's folder.
        sampling: how ranges are drawn, a value of `search_space.Sampling`.
        prune: the rule that stops trials early, a value of `pruning.Pruning`; not for official scores.
        max_retries: number of workers' deaths and machines' faults that a point survives. With the next it has crashed.
    """

    num_tuning_trials: int = 5
    num_studies: int = 1
    sampling: str = "random"
    storage: str | None = None
    checkpoint_period_s: int = 600
    max_retries: int = 3
    heartbeat_s: int = 20
    prune: str = "none"

    @property
    def storage_location(self) -> study_storage.Location:
        """Where the queues of points are stored."""
        if self.storage is None:
            return self.experiment_folder.absolute() / SWEEP_DATABASE
        return study_storage.location_of(self.storage)

    def trial_dir(self, study: int, index: int) -> Path:
        """AlgoPerf's folder for a trial, inside a folder for its study if there are several studies."""
        folder = self.experiment_folder / f"study_{study}" if self.num_studies > 1 else self.experiment_folder
        return folder / f"{self.workload}_jax" / f"trial_{index}"


class Sweep:
    """The queues of a request's studies.

    Attributes:
        descriptions: study by study, the descriptions of its trials.

    Raises:
        UserError: the request cannot be carried out. Nothing has been trained by then.
    """

    def __init__(self, request: Request):
        self.request = request
        location = request.storage_location
        request.monitoring.check_libraries()
        self.workload, self.submission = request.load()
        numbers = range(1, request.num_studies + 1)
        sampling = search_space.Sampling(request.sampling)
        studies = [
            request.describe_trials(
                self.workload, self.submission, request.rng_seed + number - 1, sampling, pruning=request.prune
            )
            for number in numbers
        ]
        self.descriptions = [trials for _, trials in studies]
        disk.check_writable(request.experiment_folder)
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.queues = [
            PointQueue(
                location,
                study_name(request.experiment_folder.name, number),
                self._identity(trials, space),
                [trial.hyperparameters for trial in trials],
                heartbeat_s=request.heartbeat_s,
                log=_log_file(),
                id_file=None if request.storage is None else request.experiment_folder / SWEEP_ID,
                machine=f"{socket.gethostname()}{f' devices {devices}' if devices else ''}",
            )
            for number, (space, trials) in zip(numbers, studies, strict=True)
        ]

    def is_done(self) -> bool:
        return all(queue.is_done() for queue in self.queues)

    def status(self) -> list[tuple[int, PointStatus]]:
        """(study, point) of every point."""
        return [(study, point) for study, queue in enumerate(self.queues, start=1) for point in queue.status()]

    def recover(self) -> None:
        """Gives the points of dead workers to others. It must be called repeatedly."""
        for queue in self.queues:
            queue.recover()

    def give_back(self, process_ids: Collection[int]) -> None:
        """Gives back the points of processes on this machine that were ended on purpose."""
        for queue in self.queues:
            queue.give_back(process_ids)

    def retry_crashed(self) -> int:
        """Enqueues every crashed point again; returns their number."""
        return sum(queue.retry_crashed() for queue in self.queues)

    def _identity(self, trials: list[TrialDescription], space: dict | list | None) -> dict[str, Any]:
        """The values that must be equal for all workers."""
        description = trials[0].to_json()
        shared = {name: value for name, value in description.items() if name not in (*_WORKER_FIELDS, *_TRIAL_FIELDS)}
        return shared | {
            "search space": space,
            "number of points": len(trials),
            "number of studies": self.request.num_studies,
            "sampling": self.request.sampling,
            "code version": machine.code_version(),
        }


def _log_file() -> str | None:
    """The file that this process's stderr goes to; None if that is no file, or unknown."""
    try:
        target = os.readlink(f"/proc/self/fd/{sys.stderr.fileno()}")
    except (OSError, ValueError, AttributeError):
        return None
    return target if os.path.isfile(target) else None
