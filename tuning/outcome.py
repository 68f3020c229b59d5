"""What one trial came to, and how far a running one has got."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Miss(StrEnum):
    """Why a trial did not reach its target."""

    BUDGET = "budget"  # out of steps or time, or the submission ended training
    DIVERGED = "diverged"  # two logged losses in a row, or what an evaluation found, are not finite
    PRUNED = "pruned"  # stopped before the budget, as it could not win any more
    CRASHED = "crashed"  # an error in the submission or the workload


@dataclass(frozen=True)
class Outcome:
    """One trial. What is missing is None.

    Seconds are the submission's (AlgoPerf's score): compilation, data selection and prepare_for_eval are in
    them, set-up and evaluation are not.
    """

    workload: str
    submission: str
    hyperparameters: dict[str, Any]
    rng_seed: int
    trial_index: int
    target_metric: str
    target_value: float | None  # None when the workload has no target yet
    steps_to_target: int | None
    seconds_to_target: float | None  # compilation included
    compile_seconds_to_target: float | None
    reason: Miss | None  # why steps_to_target is None
    error: str | None  # of a crash, one line
    global_step: int  # steps done in all
    step_budget: int
    submission_seconds: float  # over the whole trial
    compile_seconds: float  # of submission_seconds
    n_compiles: int
    n_cache_hits: int  # of n_compiles, fetched from the persistent cache
    mean_step_seconds: float | None  # submission seconds without compilation, per step
    best_validation_metric: float | None
    best_validation_step: int | None
    environment: dict[str, Any]

    @property
    def training_seconds_to_target(self) -> float | None:
        """`seconds_to_target` without compilation."""
        if self.seconds_to_target is None or self.compile_seconds_to_target is None:
            return None
        return self.seconds_to_target - self.compile_seconds_to_target

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """Where a running trial stands, told after every step and evaluation without waiting for the device."""

    global_step: int
    step_budget: int
    submission_seconds: float
    metric_name: str
    metric: float | None  # of the latest evaluation on the validation split
    n_evaluations: int = 0  # so far
