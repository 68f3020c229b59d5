"""The progress of a training as plain data, which a checkpoint holds besides the arrays."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tuning.clock import CompileCounts


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
    blocks: list[tuple[int, float]] = field(default_factory=list)  # number of steps between two waits, seconds per step
    peak_device_memory_bytes: int | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Counters":
        reached, best = content["reached"], content["best"]
        return cls(
            **content
            | {
                "reached": Reached(**reached) if reached else None,
                "best": Best(**best) if best else None,
                "eval_results": [(step, result) for step, result in content["eval_results"]],
            }
        )


@dataclass(frozen=True)
class TrainingRecord:
    """The state of a training between two steps, without its arrays."""

    counters: Counters
    compiles: CompileCounts
    submission_seconds: float
    total_seconds: float  # wall seconds, set-up excluded
    since_evaluation_seconds: float  # wall seconds
    queue: Any  # the input queue's position; None if the queue has no get_state
    rows: dict[str, list[dict[str, Any]]]  # of the measurement files

    def to_json(self) -> dict[str, Any]:
        content = {f.name: getattr(self, f.name) for f in fields(self)}  # not asdict, which would copy all rows
        return content | {"counters": asdict(self.counters), "compiles": asdict(self.compiles)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainingRecord":
        counters = Counters.from_json(content["counters"])
        return cls(**content | {"counters": counters, "compiles": CompileCounts(**content["compiles"])})
