"""Several trials of one submission on one workload, in one process, so that they share compiled programs."""

import logging
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tuning import disk, faults
from tuning.claim import Claim, NoClaim
from tuning.description import TrialDescription
from tuning.errors import UserError
from tuning.interruption import Interruption
from tuning.monitoring import Monitoring, parse_steps
from tuning.outcome import Outcome
from tuning.processes import Processes
from tuning.progress import ProgressLine
from tuning.trial import finished_outcome, run_trial
from tuning.trials_request import SWEEP_DATABASE, SWEEP_ID, TrialsRequest


@dataclass(frozen=True)
class Request(TrialsRequest):
    """What to run, under the names of AlgoPerf's flags."""

    overwrite: bool = False  # remove an earlier experiment of this name; without it that is an error
    resume: bool = False  # continue an earlier experiment of this name, from its newest checkpoints
    profile: str | None = None  # FIRST:LAST, the steps of a trace

    @property
    def monitoring(self) -> Monitoring:
        """May raise UserError."""
        return replace(super().monitoring, profile=parse_steps(self.profile) if self.profile else None)

    @property
    def folder(self) -> Path:
        """The folder of the trials' folders."""
        return self.experiment_folder / f"{self.workload}_jax"


def run_experiment(
    request: Request, interruption: Interruption | None = None, processes: Processes | None = None
) -> list[Outcome]:
    """Runs the trials, each in `trial_N` of the request's folder, N from 1.

    Args:
        interruption: signals that end the trials with a checkpoint.
        processes: those that carry out the trials together. Only the first one has the outcomes of trials that were
            finished before.

    Raises:
        UserError: the request cannot be carried out; the message says what to change. The folder is unchanged, unless
            only the data or the values of the hyperparameters are wrong.
        MachineFault: no device, or one that does not work.
        Interrupted: a signal ended a trial, which can be resumed.
    """
    interruption, processes = interruption or Interruption(), processes or Processes()
    with processes.telling_others_of_errors():
        return _run(request, interruption, processes)


def _run(request: Request, interruption: Interruption, processes: Processes) -> list[Outcome]:
    if request.overwrite and request.resume:
        raise UserError("--overwrite removes the trials that --resume would continue; give only one of the two flags")
    folder = request.folder
    request.monitoring.check_libraries()
    with interruption.interruptible():
        faults.probe_devices()
    workload, submission = request.load()
    _, descriptions = request.describe_trials(workload, submission, request.rng_seed)
    if len(descriptions) < request.num_tuning_trials:
        logging.warning("the search space lists %d points: running those", len(descriptions))

    def outcome(description: TrialDescription) -> Outcome | None:
        """Runs one trial and returns its outcome. A finished trial that is to be resumed does not run again."""
        with _claim(folder / f"trial_{description.trial_index}", processes, interruption) as claim:
            done = finished_outcome(description, claim.folder) if request.resume and processes.is_first else None
            if processes.from_first(done is not None):
                return done
            title = f"{request.workload} {submission.name} trial {description.trial_index}/{len(descriptions)}"
            target = workload.validation_target_value
            with ProgressLine(title, target) if processes.is_first else nullcontext() as report:
                return run_trial(
                    description,
                    workload,
                    submission,
                    claim,
                    report=report,
                    checkpoints_to_keep=request.checkpoints_to_keep,
                    checkpoint_period_s=request.checkpoint_period_s,
                    resume=request.resume,
                    interruption=interruption,
                    processes=processes,
                    monitoring=request.monitoring,
                )

    with _claim(folder, processes, interruption) as claim:
        if processes.is_first:
            _clear(request, claim)
        outcomes = [outcome(description) for description in descriptions]
        return [known for known in outcomes if known is not None]


def _claim(folder: Path, processes: Processes, interruption: Interruption) -> Claim:
    with interruption.interruptible():  # the wait for a silent owner
        return Claim.take(folder) if processes.is_first else NoClaim(folder)


def _clear(request: Request, claim: Claim) -> None:
    """Removes an earlier experiment if the request says so. It claims every trial folder first."""
    entries = [path for path in claim.folder.iterdir() if not path.name.startswith(".claim")]
    if request.resume or not entries:
        return
    if not request.overwrite:
        problem = f"experiment {str(claim.folder)!r} exists"
        raise UserError(f"{problem}; give --resume, --overwrite or another --experiment_name")
    if any((request.experiment_folder / name).exists() for name in (SWEEP_DATABASE, SWEEP_ID)):
        problem = f"{str(request.experiment_folder)!r} belongs to a sweep, whose storage counts these trials as done"
        raise UserError(f"{problem}; give another --experiment_name, or remove that folder")
    with ExitStack() as claims, disk.errors_explained(claim.folder):
        for trial_dir in sorted(claim.folder.glob("trial_*")):
            if trial_dir.is_dir():
                claims.enter_context(Claim.take(trial_dir))
        for path in entries:
            claim.discard(path)
