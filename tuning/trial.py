"""One trial: it trains a submission on a workload, and writes the trial's files and outcome."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuning import disk, faults, machine, records
from tuning.checkpoint import Checkpoints
from tuning.claim import Claim
from tuning.description import FIELDS, TrialDescription, missing_field_error
from tuning.errors import MachineFault, UserError, one_line
from tuning.interruption import Interruption
from tuning.metrics_logger import MetricsLogger
from tuning.monitoring import Monitoring, Scalars, StepTrace
from tuning.outcome import Miss, Outcome, Progress
from tuning.processes import Processes
from tuning.submission import Submission
from tuning.training import Training

_OUTPUT_FILES = ("outcome.json", "measurements.csv", "eval_measurements.csv", "flags_*.json", "meta_data_*.json")
_WORKLOAD_PROPERTIES = (
    "target_metric_name validation_target_value test_target_value num_train_examples num_eval_train_examples "
    "num_validation_examples num_test_examples eval_batch_size max_allowed_runtime_sec eval_period_time_sec "
    "eval_period_steps step_hint hardware_profile"
).split()


def run_trial(
    description: TrialDescription,
    workload: Any,
    submission: Submission,
    claim: Claim,
    *,
    report: Callable[[Progress], None] | None = None,
    should_prune: Callable[[Progress], bool] = lambda progress: False,
    checkpoints_to_keep: int = 0,
    checkpoint_period_s: float = 0,
    resume: bool = False,
    interruption: Interruption | None = None,
    processes: Processes | None = None,
    monitoring: Monitoring | None = None,
) -> Outcome:
    """Runs one trial and writes its files into the claimed folder. Nothing is written before the set-up has succeeded.

    Args:
        workload, submission: those that the description was made of.
        claim: of the trial's folder. Every write requires that this process still holds it.
        report: called after every step and evaluation.
        should_prune: called after every evaluation; True ends the trial as pruned.
        checkpoints_to_keep: how many of the newest stay; 0 saves none. Every evaluation saves one.
        checkpoint_period_s: wall seconds after which one is saved between two evaluations; 0 for never.
        resume: continue from the newest checkpoint, if there is one.
        interruption: signals that end the trial with a checkpoint.
        processes: those that carry out the trial together. The first one has the claim, the others have `NoClaim`.
        monitoring: displays of the running trial, by the first process.

    Raises:
        UserError: the set-up failed for a reason that the user can remove, and nothing is written; or, during training,
            the machine failed or the claim was lost.
        Interrupted: a signal ended the trial, which can be resumed.
        Exception: an error of the submission or the workload; outcome.json has "crashed" by then.
    """
    processes, environment, checkpoints = processes or Processes(), machine.environment(), None
    may_differ = ("data_dir", "submission_path")
    processes.check_same_in_all({k: v for k, v in description.to_json().items() if k not in may_differ}, "trial")
    if processes.is_first and (checkpoints_to_keep or resume):
        checkpoints = Checkpoints(claim, description, environment, keep=checkpoints_to_keep)
    monitoring = monitoring if monitoring and processes.is_first else Monitoring()
    training = Training(
        description,
        workload,
        submission,
        MetricsLogger(claim.folder, claim.write),
        interruption or Interruption(),
        checkpoints,
        checkpoint_period_s,
        processes,
        StepTrace(monitoring.profile, claim.folder / "profile"),
    )
    try:
        with jax.default_matmul_precision(description.matmul_precision):
            training.set_up()
            if not (resume and training.resume()):
                _remove_earlier_files(claim)
            elif processes.is_first:
                _remove_earlier_outcome(claim)
            if not checkpoints_to_keep:
                training.checkpoints = None  # it was only to be read
            miss = _train(training, claim, environment, monitoring, report or (lambda progress: None), should_prune)
        outcome = _outcome(training, environment, miss, error=None)
        records.write_json(claim.folder / "outcome.json", outcome.to_json(), claim.write)
        return outcome
    except UserError:
        raise
    except Exception as error:
        _raise_if_machine_fault(error, claim, processes, training.interruption.how_to_go_on)
        _write_crash(training, environment, error, claim)
        raise
    finally:
        if checkpoints is not None:
            checkpoints.close()  # while the claim is still held


def _train(
    training: Training,
    claim: Claim,
    environment: Mapping[str, Any],
    monitoring: Monitoring,
    report: Callable[[Progress], None],
    should_prune: Callable[[Progress], bool],
) -> Miss | None:
    """Writes the files that describe the trial, and trains. Returns why the target was missed, None for a hit."""
    first_step, description = training.counters.global_step, training.description.to_json()
    with closing(Scalars(monitoring, claim.folder, first_step, description)) as scalars:
        training.logger.show = scalars
        for row in training.logger.rows()["rows"]:
            if row["global_step"] >= first_step:  # the checkpoint's evaluation, which TensorBoard hides with lost steps
                scalars(row)
        _write_start(claim, training, environment)
        return training.run(report, should_prune)


def _raise_if_machine_fault(error: Exception, claim: Claim, processes: Processes, how_to_go_on: str) -> None:
    """Raises UserError if the machine, and not the trial, caused the error. The traceback goes to standard error."""
    disk.raise_if_disk_failed(error, claim.folder)
    if fault := faults.fault_in(error):
        traceback.print_exc()  # a program can cause such an error, too, as by a batch that is too large
        if processes.count > 1:
            problem = f"a device, or another of the {processes.count} processes, failed ({fault})"
            raise MachineFault(f"{problem}: start all of them again with --resume") from error
        raise MachineFault(f"the machine failed ({fault}): free or repair it, then {how_to_go_on}") from error


def finished_outcome(description: TrialDescription, trial_dir: Path) -> Outcome | None:
    """The outcome in `trial_dir`, if the described trial has ended.

    None if there is no outcome, if the trial crashed, or if it would go on with this description: it ended by a smaller
    budget, by another pruning rule, or at the target, where this description does not stop.

    Raises:
        UserError: the folder holds another trial, or outcome.json cannot be read.
    """
    file = trial_dir / "outcome.json"
    content = _read_outcome(file)
    if content is None or (content["reason"] == Miss.CRASHED and not FIELDS.keys() <= content.keys()):
        return None
    changes = description.changes_from(content, repr(str(file)))
    if content["reason"] == Miss.CRASHED:
        return None
    try:
        outcome = Outcome.from_json(content)
    except KeyError as error:
        raise missing_field_error(repr(str(file)), error.args[0]) from error
    if outcome.global_step > description.step_budget:
        problem = f"the trial of {str(file)!r} has done {outcome.global_step} steps, more than the budget of"
        raise UserError(f"{problem} {description.step_budget}: give --max_global_steps={outcome.global_step} or more")
    if outcome.is_final:
        return outcome
    if outcome.reason == Miss.PRUNED:
        return None if "pruning" in changes else outcome
    if outcome.reason is None and description.stop_at_target:
        return outcome
    is_out_of_steps = outcome.global_step >= description.step_budget
    is_out_of_time = description.time_budget_s is not None and outcome.submission_seconds >= description.time_budget_s
    return outcome if is_out_of_steps or is_out_of_time else None


def _read_outcome(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
        content["reason"]  # which any outcome has
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        cure = "remove it to run the trial again, or give another --experiment_name"
        raise UserError(f"{str(file)!r} is damaged or no outcome of a trial ({one_line(error)}): {cure}") from error
    return content


def _remove_earlier_files(claim: Claim) -> None:
    """Removes the files of an earlier start of the trial, which saved no checkpoint."""
    for pattern in _OUTPUT_FILES:
        for file in claim.folder.glob(pattern):
            claim.discard(file)


def _remove_earlier_outcome(claim: Claim) -> None:
    """Removes the outcome of an earlier end, as the trial goes on: if it is stopped now, it has not ended."""
    if (file := claim.folder / "outcome.json").exists():
        claim.discard(file)


def _write_start(claim: Claim, training: Training, environment: Mapping[str, Any]) -> None:
    """Writes the files that describe the trial. Each resumption adds files of its own, as in AlgoPerf."""
    folder, write, description = claim.folder, claim.write, training.description
    preemption_count = training.counters.preemption_count
    records.write_json(folder / "hparams.json", description.hyperparameters, write)
    meta_data = {**_workload_properties(training.workload), **environment, "rng_seed": description.rng_seed}
    records.write_json(folder / f"meta_data_{preemption_count}.json", meta_data, write)
    records.write_json(folder / f"flags_{preemption_count}.json", description.to_json(), write)


def _workload_properties(workload: Any) -> dict[str, Any]:
    """The workload's constants, under the names of AlgoPerf's meta data."""
    found = {f"workload.{name}": getattr(workload, name) for name in _WORKLOAD_PROPERTIES}
    return found | {"workload.target_direction": workload.validation_target.direction.value}


def _write_crash(training: Training, environment: Mapping[str, Any], error: Exception, claim: Claim) -> None:
    crash = _outcome(training, environment, Miss.CRASHED, f"{type(error).__name__}: {one_line(error)}")
    with disk.errors_explained(claim.folder):
        records.write_json(claim.folder / "outcome.json", crash.to_json(), claim.write)
        training.logger.flush()


def _outcome(training: Training, environment: Mapping[str, Any], miss: Miss | None, error: str | None) -> Outcome:
    counters, compiles, seconds = training.counters, training.compiles.counts, training.clock.seconds
    reached, best, steps = counters.reached, counters.best, counters.global_step
    return Outcome(
        **training.description.to_json(),
        steps_to_target=reached.step if reached else None,
        seconds_to_target=reached.submission_seconds if reached else None,
        compile_seconds_to_target=reached.compile_seconds if reached else None,
        reason=miss,
        error=error,
        global_step=steps,
        submission_seconds=seconds,
        compile_seconds=compiles.seconds,
        n_compiles=compiles.n_compiles,
        n_cache_hits=compiles.n_cache_hits,
        mean_step_seconds=(seconds - compiles.seconds) / steps if steps else None,
        best_validation_metric=best.metric if best else None,
        best_validation_step=best.step if best else None,
        resumptions=counters.resumptions,
        environment=dict(environment),
        step_seconds_percentiles=_percentiles(counters.blocks),
        peak_device_memory_bytes=counters.peak_device_memory_bytes,
        target_direction=training.workload.validation_target.direction.value,
        profiled_steps=counters.profiled_steps,
    )


def _percentiles(blocks: Sequence[tuple[int, float]]) -> dict[str, float] | None:
    """Percentiles over steps; every step of a block counts with the block's seconds per step."""
    if not blocks:
        return None
    n_steps, seconds = zip(*blocks, strict=True)
    step_seconds = np.repeat(seconds, n_steps)
    return {str(q): float(np.percentile(step_seconds, q)) for q in (5, 50, 95)}
