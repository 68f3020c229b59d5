"""The description of one trial: everything that decides its result, made once and passed on.

The trial's checkpoints, outcome.json and flags_N.json all hold it, so that a later process can check whether they
belong to the trial that it was asked for. Each field states what happens when a resumed trial's value differs.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from tuning import disk, search_space, submission_version
from tuning.errors import UserError, setup_phase, short_json
from tuning.ruleset import TuningRuleset
from tuning.submission import Submission

_LOG = logging.getLogger(__name__)
_LARGEST_SEED = 2**64 - 1
START_AGAIN = "give another --experiment_name, or remove that trial's folder"


class OnResume(StrEnum):
    """What happens to a resumed trial if its value of a field differs from the earlier one."""

    MUST_MATCH = "must match"  # refused, and both values named
    MAY_CHANGE = "may change"  # goes on; the change is recorded
    WARN = "warn"  # goes on with a warning; the change is recorded


class MatmulPrecision(StrEnum):
    """How matrix products of float32 arrays are computed, unless an operation asks for another precision."""

    DEFAULT = "default"  # the device's: TF32 on NVIDIA GPUs since Ampere, float32 on older ones and on CPUs
    TENSORFLOAT32 = "tensorfloat32"
    FLOAT32 = "float32"


def _field(on_resume: OnResume) -> Any:
    return field(metadata={"on_resume": on_resume})


@dataclass(frozen=True, kw_only=True)
class TrialDescription:
    """One trial. Values are plain data, as JSON holds them."""

    workload: str = _field(OnResume.MUST_MATCH)
    submission: str = _field(OnResume.MUST_MATCH)
    submission_path: str = _field(OnResume.MAY_CHANGE)
    submission_version: str = _field(OnResume.WARN)  # hash of the submission's files and of the code it imports
    tuning_ruleset: str = _field(OnResume.MUST_MATCH)
    hyperparameters: dict[str, Any] = _field(OnResume.MUST_MATCH)  # empty under the self-tuning ruleset
    rng_seed: int = _field(OnResume.MUST_MATCH)
    trial_index: int = _field(OnResume.MUST_MATCH)  # N of trial_N, from 1; with the seed it decides every random key
    batch_size: int = _field(OnResume.MUST_MATCH)
    eval_batch_size: int = _field(OnResume.MUST_MATCH)
    target_metric: str = _field(OnResume.MUST_MATCH)
    target_value: float | None = _field(OnResume.MUST_MATCH)  # None while the workload has no target
    matmul_precision: str = _field(OnResume.MUST_MATCH)
    step_budget: int = _field(OnResume.MAY_CHANGE)
    time_budget_s: float | None = _field(OnResume.MAY_CHANGE)  # None is unlimited
    stop_at_target: bool = _field(OnResume.MAY_CHANGE)
    pruning: str = _field(OnResume.MAY_CHANGE)  # the rule that may end the trial before its budget
    data_dir: str = _field(OnResume.MAY_CHANGE)

    @property
    def point(self) -> tuple | None:
        """The hyperparameters as the namedtuple that the submission receives; None under the self-tuning ruleset."""
        if self.tuning_ruleset == TuningRuleset.SELF:
            return None
        return search_space.as_hyperparameters(self.hyperparameters)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FIELDS}

    def changes_from(self, earlier: Mapping[str, Any], source: str) -> dict[str, list[Any]]:
        """{field: [earlier value, new value]} of the fields that differ; warns of `OnResume.WARN` fields.

        Args:
            earlier: another description's JSON.
            source: what holds it, for the messages.

        Raises:
            UserError: a field that must match differs, or is missing.
        """
        new, changes = json.loads(json.dumps(self.to_json())), {}
        for name, on_resume in FIELDS.items():
            if name not in earlier:
                raise missing_field_error(source, name)
            if earlier[name] == new[name]:
                continue
            if on_resume is OnResume.MUST_MATCH:
                difference = f"{source} has {name} {short_json(earlier[name])}, not {short_json(new[name])}"
                raise UserError(f"{difference}: give the earlier value to resume, or {START_AGAIN}")
            if on_resume is OnResume.WARN:
                _LOG.warning(
                    "%s has %s %s, now it is %s", source, name, short_json(earlier[name]), short_json(new[name])
                )
            changes[name] = [earlier[name], new[name]]
        return changes


FIELDS: dict[str, OnResume] = {f.name: f.metadata["on_resume"] for f in fields(TrialDescription)}


def missing_field_error(source: str, name: str) -> UserError:
    """The error to raise if `source`, written by another version, lacks the field `name`."""
    return UserError(f"{source} was written by another version of this project (it has no {name}); {START_AGAIN}")


def describe(
    workload_name: str,
    workload: Any,
    submission: Submission,
    point: Mapping[str, Any],
    *,
    rng_seed: int,
    trial_index: int,
    data_dir: str,
    max_global_steps: int | None = None,
    stop_at_target: bool = True,
    pruning: str = "none",
    matmul_precision: str = MatmulPrecision.DEFAULT,
) -> TrialDescription:
    """The description of a trial of `submission` at `point`.

    Args:
        point: of the search space; an empty one is a trial under the self-tuning ruleset.
        max_global_steps: lowers the budget, which is the ruleset's factor times `workload.step_hint` steps.
        stop_at_target: False trains to the end of the budget after the target is reached.

    Raises:
        UserError: the seed is out of range, or the submission has no usable batch size for this workload.
    """
    if not 0 <= rng_seed <= _LARGEST_SEED:
        raise UserError(f"seed {rng_seed} is out of range; give one from 0 to {_LARGEST_SEED}")
    ruleset = TuningRuleset.EXTERNAL if point else TuningRuleset.SELF
    max_steps = int(ruleset.budget_factor * workload.step_hint)
    with setup_phase():
        batch_size = submission.training_batch_size(workload_name, workload)
        eval_batch_size = submission.evaluation_batch_size(workload_name, workload)
        version = submission_version.of(submission.file)
    return TrialDescription(
        workload=workload_name,
        submission=submission.name,
        submission_path=str(submission.file),
        submission_version=version,
        tuning_ruleset=str(ruleset),
        hyperparameters=dict(point),
        rng_seed=rng_seed,
        trial_index=trial_index,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        target_metric=workload.target_metric_name,
        target_value=_finite(workload.validation_target_value),
        matmul_precision=str(matmul_precision),
        step_budget=min(max_steps, max_global_steps or max_steps),
        time_budget_s=_finite(ruleset.budget_factor * workload.max_allowed_runtime_sec),
        stop_at_target=stop_at_target,
        pruning=pruning,
        data_dir=str(disk.expanded(str(data_dir), "data_dir")),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
