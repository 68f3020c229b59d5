"""What is timed: the submission's seconds, and the seconds of them that went into compilation."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

_COMPILE_EVENTS = "/jax/core/compile/"
_BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class SubmissionClock:
    """Adds up the seconds of timed blocks; device work handed to a block is done before its clock stops."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._finished_s = 0.0
        self._started_at: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of all timed blocks, with the running one up to now. Waits for no device."""
        running_s = 0.0 if self._started_at is None else self._now() - self._started_at
        return self._finished_s + running_s

    def add(self, seconds: float) -> None:
        """Takes up what was timed before this process."""
        self._finished_s += seconds

    @contextmanager
    def timed(self) -> Iterator[Callable[[Any], None]]:
        """Times a block. Yields `wait_for(tree)`: the block ends only when the trees' arrays are computed.

        Raises:
            RuntimeError: the clock is running already.
        """
        if self._started_at is not None:
            raise RuntimeError("the submission clock is running already; end the timed block before the next")
        pending: list[Any] = []
        self._started_at = self._now()
        try:
            yield pending.append
            jax.block_until_ready(pending)
        finally:
            self._finished_s += self._now() - self._started_at
            self._started_at = None


class CompileTimer:
    """Seconds this process spent on compilation (tracing, lowering, backend) while the timer was entered.

    May be entered again and adds up. Nested and concurrent events count once. A program in the persistent
    cache counts the time of fetching it.
    """

    def __init__(self) -> None:
        self.n_compiles = 0  # programs compiled or fetched from the persistent cache
        self.n_cache_hits = 0  # of those, fetched
        self._intervals: list[tuple[float, float]] = []
        self._earlier_s = 0.0
        self._entered_at = 0.0

    def __enter__(self) -> "CompileTimer":
        _listen()
        self._entered_at = time.perf_counter()
        _entered.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _entered.remove(self)

    @property
    def seconds(self) -> float:
        return self._earlier_s + union_s(self._intervals)

    def add_earlier(self, seconds: float, n_compiles: int, n_cache_hits: int) -> None:
        """Takes up what was timed before this process."""
        self._earlier_s += seconds
        self.n_compiles += n_compiles
        self.n_cache_hits += n_cache_hits

    def add(self, event: str, start: float, end: float) -> None:
        """Takes up one compilation event; start and end in seconds of time.perf_counter."""
        self._intervals.append((max(start, self._entered_at), end))
        self.n_compiles += event == _BACKEND_COMPILE


def union_s(intervals: Iterable[tuple[float, float]]) -> float:
    """[(start, end)] -> length of their union, all in seconds."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


_entered: list[CompileTimer] = []


@functools.cache
def _listen() -> None:
    """Registers the listeners, once per process: JAX 0.7 offers no way to take them out again."""
    jax.monitoring.register_event_duration_secs_listener(_on_duration)
    jax.monitoring.register_event_listener(_on_event)


def _on_duration(event: str, duration_s: float, **_: Any) -> None:
    if event.startswith(_COMPILE_EVENTS):
        end = time.perf_counter()
        for timer in _entered:
            timer.add(event, end - duration_s, end)


def _on_event(event: str, **_: Any) -> None:
    if event == _CACHE_HIT:
        for timer in _entered:
            timer.n_cache_hits += 1
