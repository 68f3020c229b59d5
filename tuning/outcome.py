"""The result of one trial, and how far a running one has got."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from tuning.description import TrialDescription


class Miss(StrEnum):
    """Why a trial did not reach its target."""

    BUDGET = "budget"  # out of steps or time, or the submission ended training
    DIVERGED = "diverged"  # two successive logged losses, or a loss or metric of an evaluation, are not finite
    PRUNED = "pruned"  # stopped before the budget, as it could hardly win any more
    CRASHED = "crashed"  # an error in the submission or the workload


@dataclass(frozen=True, kw_only=True)
class Outcome(TrialDescription):
    """The description of one trial and its result, as in outcome.json. Missing values are None.

    Submission seconds are AlgoPerf's: they include compilation, data selection and prepare_for_eval, but not set-up and
    evaluation. Training seconds are submission seconds without compilation.
    """

    steps_to_target: int | None
    seconds_to_target: float | None  # submission seconds
    compile_seconds_to_target: float | None  # of seconds_to_target
    reason: Miss | None  # why steps_to_target is None
    error: str | None  # message of a crash, one line
    global_step: int  # number of steps in all
    submission_seconds: float  # over the whole trial
    compile_seconds: float  # of submission_seconds
    n_compiles: int
    n_cache_hits: int  # programs of n_compiles that the persistent cache held
    mean_step_seconds: float | None  # training seconds per step
    best_validation_metric: float | None
    best_validation_step: int | None
    resumptions: list[dict[str, Any]]  # first step of each, and changes: [earlier value, new value]
    environment: dict[str, Any]  # of the last process
    # {"5": …, "50": …, "95": …} over steps. The training seconds of a step are a mean over the steps between two waits
    # for the device, since a wait after every step would take time.
    step_seconds_percentiles: dict[str, float] | None = None
    peak_device_memory_bytes: int | None = None  # of the device with the most, since its process began
    target_direction: str | None = None  # of the target's metric: "higher" or "lower" is better
    profiled_steps: tuple[int, int] | None = None  # first and last traced step; a trace slows the trial down

    @property
    def training_seconds(self) -> float:
        return self.submission_seconds - self.compile_seconds

    @property
    def training_seconds_to_target(self) -> float | None:
        if self.seconds_to_target is None or self.compile_seconds_to_target is None:
            return None
        return self.seconds_to_target - self.compile_seconds_to_target

    def to_json(self) -> dict[str, Any]:
        training = ("training_seconds", "training_seconds_to_target")
        return asdict(self) | {name: getattr(self, name) for name in training}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Outcome":
        """Raises KeyError, with the field's name, if a field without a default is missing."""
        names = [f.name for f in fields(cls) if f.default is MISSING or f.name in content]
        return cls(**{name: content[name] for name in names})

    @property
    def is_final(self) -> bool:
        """Whether a larger budget would change nothing: it diverged, or the submission ended its training.

        False for a hit that ended the trial.
        """
        if self.reason == Miss.DIVERGED:
            return True
        if self.reason not in (None, Miss.BUDGET) or (self.reason is None and self.stop_at_target):
            return False
        is_out_of_time = self.time_budget_s is not None and self.submission_seconds >= self.time_budget_s
        return self.global_step < self.step_budget and not is_out_of_time


@dataclass(frozen=True)
class Progress:
    """The progress of a running trial, reported after every step and evaluation without waiting for the device."""

    global_step: int
    step_budget: int
    metric_name: str
    metric: float | None  # of the latest evaluation on the validation split
    n_evaluations: int = 0  # so far
