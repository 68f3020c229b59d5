"""The counters of a training, which a checkpoint holds as plain data."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reached:
    """Where the target was reached for the first time."""

    step: int
    submission_seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Best:
    """The best evaluation of the validation metric."""

    step: int
    metric: float


@dataclass
class Counters:
    """The values that change with steps and evaluations."""

    global_step: int = 0
    has_ended_itself: bool = False  # the submission said that its training is complete
    is_evaluation_due: bool = False  # the parameters are prepared, but not evaluated yet
    reached: Reached | None = None
    best: Best | None = None
    validation_goal_reached: bool = False
    test_goal_reached: bool = False
    eval_seconds: float = 0.0
    logging_seconds: float = 0.0
    preemption_count: int = 0
    eval_results: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    resumptions: list[dict[str, Any]] = field(default_factory=list)  # global_step and changes of each
    blocks: list[tuple[int, float]] = field(
        default_factory=list
    )  # steps between two waits for the device, seconds a step
    peak_device_memory_bytes: int | None = None
    profiled_steps: tuple[int, int] | None = None  # first and last step of the last trace

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Counters":
        reached, best, profiled = content["reached"], content["best"], content.get("profiled_steps")
        return cls(
            **content
            | {
                "reached": Reached(**reached) if reached else None,
                "best": Best(**best) if best else None,
                "profiled_steps": tuple(profiled) if profiled else None,
                "eval_results": [(step, result) for step, result in content["eval_results"]],
            }
        )
