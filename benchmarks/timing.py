"""Times several functions in alternation, so that a change of the machine's speed affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


class Deadline:
    """A time after which no new measurement begins; without minutes there is no such time."""

    def __init__(self, minutes: float | None = None):
        self.minutes = minutes
        self._at = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    @property
    def has_passed(self) -> bool:
        return time.monotonic() > self._at

    def not_run(self, names: Sequence[Any]) -> str:
        """The line of a table that says what was left out."""
        return f"Not run, as the {self.minutes:g} minutes were over: {', '.join(map(str, names))}."


def in_turn(functions: Mapping[str, Callable[[], Any]], *, n_rounds: int, round_s: float = 0.2) -> dict[str, float]:
    """Seconds per call of each function: the median of rounds, in which each function runs for about `round_s`.

    Before that, all are called once to warm up. A function returns its arrays. The device carries out the calls in
    order, so a round ends when the arrays of the last call are ready.
    """
    calls = {}
    for name, function in functions.items():
        jax.block_until_ready(function())
        calls[name] = max(1, round(round_s / _seconds(function, 1)))
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(n_rounds):
        for name, function in functions.items():
            rounds[name].append(_seconds(function, calls[name]))
    return {name: statistics.median(seconds) for name, seconds in rounds.items()}


def _seconds(function: Callable[[], Any], n_calls: int) -> float:
    started = time.perf_counter()
    for _ in range(n_calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / n_calls


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats to three significant digits."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
