"""Several trials of one submission on one workload, in one process, so that they share what is compiled."""

import logging
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import disk, machine, submission
from tuning.claim import Claim, NoClaim
from tuning.description import MatmulPrecision, TrialDescription, describe
from tuning.errors import UserError, setup_phase
from tuning.interruption import Interruption
from tuning.outcome import Outcome
from tuning.processes import Processes
from tuning.progress import ProgressLine
from tuning.ruleset import TuningRuleset, space_and_points
from tuning.trial import Checkpointing, finished_outcome, run_trial
from tuning.watching import Watching, steps
from workloads import registry


@dataclass(frozen=True)
class Request:
    """What to run, under the names of AlgoPerf's flags."""

    workload: str
    submission_path: str
    experiment_dir: str
    experiment_name: str
    tuning_ruleset: str = TuningRuleset.EXTERNAL
    tuning_search_space: str | None = None  # a file; None is the submission's own
    num_tuning_trials: int = 1  # a list of fewer points is run to its end
    rng_seed: int = 0
    max_global_steps: int | None = None
    hardware_profile: str | None = None  # whose budget of an official workload; None is the workload's own
    batch_size: int | None = None  # None is the submission's own
    eval_batch_size: int | None = None  # None is the submission's or the workload's own
    matmul_precision: str = MatmulPrecision.DEFAULT
    data_dir: str = "~/data"
    overwrite: bool = False  # remove an earlier experiment of this name; without it that is an error
    resume: bool = False  # continue an earlier experiment of this name, from its newest checkpoints
    checkpoints_to_keep: int = 2  # of each trial
    checkpoint_period_s: int = 0  # between two evaluations; 0 makes none there
    profile: str | None = None  # FIRST:LAST, the steps of a trace
    tensorboard: bool = False
    wandb_project: str | None = None  # of Weights & Biases

    @property
    def watching(self) -> Watching:
        """May raise UserError."""
        return Watching(steps(self.profile) if self.profile else None, self.tensorboard, self.wandb_project)

    @property
    def folder(self) -> Path:
        return experiment_folder(self.experiment_dir, self.experiment_name) / f"{self.workload}_jax"


def experiment_folder(experiment_dir: str, experiment_name: str) -> Path:
    """The folder of one experiment: always directly in the folder of all, and of exactly its name.

    Raises:
        UserError: the name is no name of one folder.
    """
    name = experiment_name.rstrip("/")
    if not name or "/" in name or name in (".", "..") or not name.isprintable():
        raise UserError(f"--experiment_name={experiment_name!r} is no name of a folder; give one without '/'")
    return disk.expanded(experiment_dir, "experiment_dir") / name


def run_experiment(
    request: Request, interruption: Interruption | None = None, processes: Processes | None = None
) -> list[Outcome]:
    """Runs the trials, each in `trial_N` of the request's folder, N from 1.

    Args:
        interruption: signals that end it.
        processes: those that carry it out together; without the first one's files the others have no outcome of a
            trial that was done before.

    Raises:
        UserError: the request cannot be carried out as it stands; the message says what to change. The folder
            is untouched unless all but the hyperparameters' values and the data were right.
        Interrupted: a signal ended it; it can be resumed.
    """
    processes = processes or Processes()
    with processes.led():
        return _run(request, interruption, processes)


def _run(request: Request, interruption: Interruption | None, processes: Processes) -> list[Outcome]:
    if request.overwrite and request.resume:
        raise UserError("--overwrite removes what --resume would go on with; give one of them")
    folder = request.folder
    request.watching.refuse_missing()
    machine.refuse_without_devices()
    with setup_phase():
        workload = registry.load(request.workload, request.hardware_profile)
    chosen = submission.load(request.submission_path).with_batch_sizes(request.batch_size, request.eval_batch_size)
    _, points = space_and_points(
        TuningRuleset(request.tuning_ruleset),
        request.tuning_search_space,
        chosen.search_space_file,
        request.num_tuning_trials,
        request.rng_seed,
    )
    if len(points) < request.num_tuning_trials:
        logging.warning("the search space lists %d points: running those", len(points))
    descriptions = [
        describe(
            request.workload,
            workload,
            chosen,
            point,
            rng_seed=request.rng_seed,
            trial_index=trial_index,
            data_dir=request.data_dir,
            max_global_steps=request.max_global_steps,
            matmul_precision=request.matmul_precision,
        )
        for trial_index, point in enumerate(points, start=1)
    ]
    with _claim(folder, processes) as claim:
        if processes.is_first:
            _clear(request, claim)
        outcomes = [
            _outcome(request, each, len(descriptions), workload, chosen, interruption, processes)
            for each in descriptions
        ]
        return [outcome for outcome in outcomes if outcome is not None]


def _claim(folder: Path, processes: Processes) -> Claim:
    return Claim.take(folder) if processes.is_first else NoClaim(folder)


def _outcome(
    request: Request,
    description: TrialDescription,
    n_trials: int,
    workload: Any,
    chosen: submission.Submission,
    interruption: Interruption | None,
    processes: Processes,
) -> Outcome | None:
    """The outcome of one trial: found, where it is finished and to be resumed, or of its run."""
    with _claim(request.folder / f"trial_{description.trial_index}", processes) as claim:
        done = finished_outcome(description, claim.folder) if request.resume and processes.is_first else None
        if processes.same(done is not None):
            return done
        title = f"{request.workload} {chosen.name} trial {description.trial_index}/{n_trials}"
        with ProgressLine(title, workload.validation_target_value) if processes.is_first else nullcontext() as report:
            return run_trial(
                description,
                workload,
                chosen,
                claim,
                report=report,
                checkpointing=Checkpointing(request.checkpoints_to_keep, request.checkpoint_period_s or None),
                resume=request.resume,
                interruption=interruption,
                processes=processes,
                watching=request.watching,
            )


def _clear(request: Request, claim: Claim) -> None:
    """Removes an earlier experiment where that was asked for; every trial folder is claimed for it first."""
    own = [path for path in claim.folder.iterdir() if not path.name.startswith(".claim")]
    if request.resume or not own:
        return
    if not request.overwrite:
        taken = f"experiment {str(claim.folder)!r} exists"
        raise UserError(f"{taken}; give --resume, --overwrite or another --experiment_name")
    with ExitStack() as claims, disk.failure_told(claim.folder):
        for trial_dir in sorted(claim.folder.glob("trial_*")):
            if trial_dir.is_dir():
                claims.enter_context(Claim.take(trial_dir))
        for path in own:
            claim.discard(path)
