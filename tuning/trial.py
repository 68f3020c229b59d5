"""One trial: a submission trains on a workload, and its files and its outcome are written."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuning import records
from tuning.checkpoint import Checkpoints
from tuning.errors import UserError, one_line
from tuning.outcome import Miss, Outcome, Progress
from tuning.randomness import Keys
from tuning.submission import Submission
from tuning.training import Training


def run_trial(
    workload: Any,
    submission: Submission,
    hyperparameters: tuple,
    *,
    workload_name: str,
    rng_seed: int,
    trial_index: int,
    trial_dir: str | Path,
    data_dir: str | Path,
    max_global_steps: int | None = None,
    stop_at_target: bool = True,
    report: Callable[[Progress], None] | None = None,
    cannot_win: Callable[[Progress], bool] = lambda progress: False,
    checkpoints_to_keep: int = 0,
    resume: bool = False,
    flags: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Runs one trial and writes its files under `trial_dir`, which is made once the set-up has succeeded.

    Args:
        hyperparameters: a namedtuple, one point of the search space.
        workload_name: what `get_batch_size` is asked about.
        trial_index: N of trial_N, from 1; with `rng_seed` it decides every random key.
        max_global_steps: lowers the budget, `workload.step_hint` steps; it never raises it.
        stop_at_target: False trains on to the budget after the target is reached.
        cannot_win: asked after every evaluation; True ends the trial as pruned.
        checkpoints_to_keep: how many of the newest checkpoints to keep, one made at every evaluation; 0 makes none.
        resume: go on from the newest checkpoint, if there is one.
        report: called after every step and evaluation.
        flags: what flags_0.json records.

    Raises:
        UserError: the set-up failed for a reason the user can cure; nothing is written.
        Exception: whatever the submission or the workload raised; outcome.json says "crashed" by then.
    """
    trial_dir = Path(trial_dir)
    step_budget = min(workload.step_hint, max_global_steps or workload.step_hint)
    logger = records.MetricsLogger(trial_dir)
    identity = {
        "workload": workload_name,
        "submission": submission.name,
        "hyperparameters": hyperparameters._asdict(),
        "rng_seed": rng_seed,
        "trial_index": trial_index,
    }
    described = identity | {"environment": records.environment()}
    checkpoints = None
    if checkpoints_to_keep or resume:
        checkpoints = Checkpoints(trial_dir / "checkpoints", identity, keep=checkpoints_to_keep or 2)
    keys = Keys(rng_seed, trial_index)
    training = Training(workload, submission, hyperparameters, keys, logger, step_budget, stop_at_target, checkpoints)
    try:
        training.set_up(workload_name, str(Path(data_dir).expanduser()))
        if resume:
            training.resume()
        _write_start(trial_dir, workload, described, flags)
        miss = training.run(report or (lambda progress: None), cannot_win)
    except UserError:
        raise
    except Exception as error:
        crash = _outcome(training, described, Miss.CRASHED, f"{type(error).__name__}: {one_line(error)}")
        records.write_json(trial_dir / "outcome.json", crash.to_json())
        logger.flush()
        raise
    finally:
        if checkpoints:
            checkpoints.close()
    outcome = _outcome(training, described, miss, error=None)
    records.write_json(trial_dir / "outcome.json", outcome.to_json())
    return outcome


def finished_outcome(
    trial_dir: Path, workload: Any, submission: Submission, hyperparameters: tuple, rng_seed: int
) -> Outcome | None:
    """The outcome in `trial_dir` of a trial that came to its end; None if there is none, or it crashed.

    Raises:
        UserError: the folder holds another trial.
    """
    file = trial_dir / "outcome.json"
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["reason"] == Miss.CRASHED:
        return None
    outcome = Outcome(**content)
    target = workload.validation_target_value if math.isfinite(workload.validation_target_value) else None
    found = outcome.submission, outcome.hyperparameters, outcome.rng_seed, outcome.target_value
    if found != (submission.name, hyperparameters._asdict(), rng_seed, target):
        problem = f"{str(trial_dir)!r} holds a trial of another submission, search space, seed or target"
        raise UserError(f"{problem}; choose another folder")
    return outcome


def _write_start(trial_dir: Path, workload: Any, described: dict[str, Any], flags: Mapping[str, Any]) -> None:
    records.write_json(trial_dir / "hparams.json", described["hyperparameters"])
    meta_data = records.workload_properties(workload) | described["environment"]
    records.write_json(trial_dir / "meta_data_0.json", meta_data | {"rng_seed": described["rng_seed"]})
    records.write_json(trial_dir / "flags_0.json", flags)


def _outcome(training: Training, described: dict[str, Any], miss: Miss | None, error: str | None) -> Outcome:
    step, seconds, compile_seconds = training.reached or (None, None, None)
    best_step, best_metric = training.best or (None, None)
    target = float(training.workload.validation_target_value)
    stepping_s = training.clock.seconds - training.compiles.seconds
    return Outcome(
        **described,
        target_metric=training.workload.target_metric_name,
        target_value=target if math.isfinite(target) else None,
        steps_to_target=step,
        seconds_to_target=seconds,
        compile_seconds_to_target=compile_seconds,
        reason=miss,
        error=error,
        global_step=training.global_step,
        step_budget=training.step_budget,
        submission_seconds=training.clock.seconds,
        compile_seconds=training.compiles.seconds,
        n_compiles=training.compiles.n_compiles,
        n_cache_hits=training.compiles.n_cache_hits,
        mean_step_seconds=stepping_s / training.global_step if training.global_step else None,
        best_validation_metric=best_metric,
        best_validation_step=best_step,
    )
