"""Several trials of one submission on one workload, in one process, so that they share what is compiled."""

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tuning import search_space, submission
from tuning.errors import UserError, setup_phase
from tuning.outcome import Outcome
from tuning.progress import ProgressLine
from tuning.trial import finished_outcome, run_trial
from workloads import registry


@dataclass(frozen=True)
class Request:
    """What to run, under the names of AlgoPerf's flags; flags_0.json of each trial records it."""

    workload: str
    submission_path: str
    experiment_dir: str
    experiment_name: str
    tuning_search_space: str | None = None  # a file; None is the submission's own
    num_tuning_trials: int = 1  # a list of fewer points is run to its end
    rng_seed: int = 0
    max_global_steps: int | None = None
    batch_size: int | None = None  # None is the submission's own
    eval_batch_size: int | None = None  # None is the submission's or the workload's own
    data_dir: str = "~/data"
    overwrite: bool = False  # remove an earlier experiment of this name; without it that is an error
    resume: bool = False  # go on with an earlier experiment of this name, from its newest checkpoints
    checkpoints_to_keep: int = 2  # of each trial

    @property
    def folder(self) -> Path:
        return Path(self.experiment_dir).expanduser() / self.experiment_name / f"{self.workload}_jax"


def run_experiment(request: Request) -> list[Outcome]:
    """Runs the trials, each in `trial_N` of the request's folder, N from 1.

    Raises:
        UserError: the request cannot be carried out as it stands; the message says what to change. The folder
            is untouched unless all but the hyperparameters' values and the data were right.
    """
    with setup_phase():
        workload = registry.load(request.workload)
    chosen = submission.load(request.submission_path).with_batch_sizes(request.batch_size, request.eval_batch_size)
    space = search_space.read(request.tuning_search_space or chosen.search_space_file)
    points = search_space.points(space, request.num_tuning_trials, request.rng_seed)
    if len(points) < request.num_tuning_trials:
        logging.warning("the search space lists %d points: running those", len(points))
    _clear(request)
    outcomes = []
    for trial_index, point in enumerate(points, start=1):
        title = f"{request.workload} {chosen.name} trial {trial_index}/{len(points)}"
        trial_dir = request.folder / f"trial_{trial_index}"
        done = finished_outcome(trial_dir, workload, chosen, point, request.rng_seed) if request.resume else None
        if done is not None:
            outcomes.append(done)
            continue
        with ProgressLine(title, workload.validation_target_value) as report:
            outcome = run_trial(
                workload,
                chosen,
                point,
                workload_name=request.workload,
                rng_seed=request.rng_seed,
                trial_index=trial_index,
                trial_dir=trial_dir,
                data_dir=request.data_dir,
                max_global_steps=request.max_global_steps,
                report=report,
                checkpoints_to_keep=request.checkpoints_to_keep,
                resume=request.resume,
                flags=asdict(request),
            )
        outcomes.append(outcome)
    return outcomes


def _clear(request: Request) -> None:
    if request.overwrite and request.resume:
        raise UserError("--overwrite removes what --resume would go on with; give one of them")
    if request.resume or not request.folder.exists():
        return
    if not request.overwrite:
        taken = f"experiment {str(request.folder)!r} exists"
        raise UserError(f"{taken}; give --resume, --overwrite or another --experiment_name")
    with setup_phase():
        shutil.rmtree(request.folder)
