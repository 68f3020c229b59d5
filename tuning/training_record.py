"""How far a training has got, as plain data: what a checkpoint holds beside the arrays."""

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
    """What changes from step to step and from evaluation to evaluation."""

    global_step: int = 0
    has_ended_itself: bool = False  # the submission said that its training is complete
    is_evaluation_due: bool = False  # the parameters are prepared for an evaluation that has not been made
    reached: Reached | None = None
    best: Best | None = None
    validation_goal_reached: bool = False
    test_goal_reached: bool = False
    eval_seconds: float = 0.0
    logging_seconds: float = 0.0
    preemption_count: int = 0
    eval_results: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    resumptions: list[dict[str, Any]] = field(default_factory=list)  # global_step, and what had changed
    blocks: list[tuple[int, float]] = field(default_factory=list)  # steps between two waits, and a step's seconds
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
    """A training between two steps."""

    counters: Counters
    compiles: CompileCounts
    submission_seconds: float
    total_seconds: float  # wall seconds, set-up excluded
    since_evaluation_seconds: float  # wall seconds
    queue: Any  # the input queue's place; None if it cannot tell
    rows: dict[str, list[dict[str, Any]]]  # of the files of measurements

    def to_json(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # no copies of the rows, which are many
        return own | {"counters": asdict(self.counters), "compiles": asdict(self.compiles)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainingRecord":
        counters = Counters.from_json(content["counters"])
        return cls(**content | {"counters": counters, "compiles": CompileCounts(**content["compiles"])})
