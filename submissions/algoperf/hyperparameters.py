"""Hyperparameters: read from a search space's point, validated, and divided into traced numbers and static values."""

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any

Static = tuple[tuple[str, Hashable], ...]  # names and values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What every training algorithm here takes; a submission's own class adds to it.

    Defaults, here and in those classes, are choices of this project unless a source is named.

    Attributes:
        learning_rate: peak of the schedule.
        weight_decay: as the algorithm defines it.
        schedule_fraction: length of the learning-rate schedule as a fraction of the workload's `step_hint`.
        warmup_factor: fraction of the schedule that is linear warm-up.
        grad_clip: largest global norm of the gradient; None for no bound.
        label_smoothing: passed to the workload's loss.
        dropout_rate: passed to the workload's model; None for the workload's own.
        micro_batches: number of parts that a batch is divided into, to save memory. The parts are processed in turn,
            and their gradients and factors are summed. Only random draws (dropout, pseudo-targets, the rows that a
            factor is estimated from) and the statistics of batch normalisation, which are each part's own, differ from
            an undivided batch. Not for graphs.
    """

    learning_rate: float
    weight_decay: float = 0.0
    schedule_fraction: float = 1.0
    warmup_factor: float = 0.05
    grad_clip: float | None = None
    label_smoothing: float = 0.0
    dropout_rate: float | None = None
    micro_batches: int = 1

    # name -> (least, most), both included. A subclass adds the bounds of its own fields.
    bounds: typing.ClassVar[dict[str, tuple[float, float]]] = {
        "learning_rate": (0, float("inf")),
        "weight_decay": (0, float("inf")),
        "schedule_fraction": (1e-6, 10),
        "warmup_factor": (0, 1),
        "grad_clip": (0, float("inf")),
        "label_smoothing": (0, 1),
        "dropout_rate": (0, 1),
        "micro_batches": (1, float("inf")),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearDecay(Hyperparameters):
    """Hyperparameters of linear warm-up and linear decay, see `schedule.polynomial`.

    Attributes:
        decay_steps_factor: part of the schedule after the warm-up in which the learning rate decays.
        end_factor: the rate after that, as a fraction of the peak. Training goes on well at a tenth, so that a schedule
            may be shorter than the time to a target. Source: docs/ablations.md; also Hoffmann et al.,
            "Training Compute-Optimal Large Language Models", 2022.
    """

    decay_steps_factor: float = 1.0
    end_factor: float = 0.1

    bounds = {"decay_steps_factor": (0, 1), "end_factor": (0, 1)}


def read(kind: type[Hyperparameters], point: Any) -> Hyperparameters:
    """Validate a search point (a namedtuple).

    Raises:
        ValueError: an unknown or missing name (the known ones are listed), or a value of the wrong type or range.
    """
    given = point._asdict()
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    unknown, missing = sorted(set(given) - set(fields)), sorted(required - set(given))
    if unknown or missing:
        problem = f"unknown hyperparameter {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise ValueError(f"{problem}; known are {', '.join(fields)} (needed: {', '.join(sorted(required))})")
    hints, bounds = _hints_and_bounds(kind)  # type: ignore[arg-type]  # mypy looks at the instances' hash
    values = {name: _convert(name, value, hints[name]) for name, value in given.items()}
    for name, (least, most) in bounds.items():
        if values.get(name) is not None and not least <= values[name] <= most:
            raise ValueError(f"hyperparameter {name} is {values[name]}, outside [{least}, {most}]")
    return kind(**values)


def static_and_numbers(hyperparameters: Hyperparameters) -> tuple[Static, dict[str, float]]:
    """(static values, numbers): numbers are arguments of the compiled step, so that trials share one compilation.

    Floating-point values are numbers; integers, choices and None are static. So is the dropout rate, on which a model
    may branch.
    """
    values = dataclasses.asdict(hyperparameters)
    numbers = {name: value for name, value in values.items() if isinstance(value, float) and name != "dropout_rate"}
    return tuple((name, value) for name, value in values.items() if name not in numbers), numbers


def join(static: Static, numbers: Mapping[str, Any]) -> types.SimpleNamespace:
    """The inverse of `static_and_numbers`: all hyperparameters by name; in a compiled step the numbers are arrays."""
    return types.SimpleNamespace(**dict(static), **numbers)


@functools.cache
def _hints_and_bounds(kind: type[Hyperparameters]) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """The type hints and the bounds, by name, of the class and of its base classes."""
    classes = reversed(kind.__mro__)
    return typing.get_type_hints(kind), {
        name: ends for own in classes for name, ends in vars(own).get("bounds", {}).items()
    }


def _convert(name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        known = [member.value for member in hint]
        if value not in known and not isinstance(value, hint):
            raise ValueError(f"hyperparameter {name} is {value!r}; known are {', '.join(map(str, known))}")
        return hint(value)
    accepted = typing.get_args(hint) or (hint,)
    if value is None and type(None) in accepted:
        return None
    if float in accepted and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) in accepted:
        return value
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in accepted)
    raise ValueError(f"hyperparameter {name} is {value!r}; it takes {names}")
