"""What is timed: the submission's seconds, and the seconds of them that went into compilation.

There are two clocks. Submission seconds are AlgoPerf's, compilation included. Training seconds are submission seconds
without compilation. A device may still compute earlier steps while the host compiles the next. Therefore the device
runs dry before each compilation begins: that wait is training, and what follows is compilation alone.
"""

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
        """Adds what was timed before this process."""
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


@dataclass(frozen=True)
class CompileCounts:
    """What was spent on compilation."""

    seconds: float = 0.0
    n_compiles: int = 0  # programs compiled or fetched from the persistent cache
    n_cache_hits: int = 0  # programs fetched from it


class CompileTimer:
    """Times compilation (tracing, lowering, backend) while the timer is entered, and lets the device run dry before.

    May be entered again and adds up. Nested and concurrent compilations count once. A program in the persistent cache
    counts the time of fetching it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, run_dry: Callable[[], None] | None = None):
        self._now, self._run_dry = now, run_dry or wait_for_device
        self._earlier = CompileCounts()
        self._n_compiles = self._n_cache_hits = 0
        self._compiling: list[tuple[float, float]] = []
        self._waiting: list[tuple[float, float]] = []
        self._begun: dict[int, list[float]] = defaultdict(list)  # thread -> starts of what it is at, outermost first
        self._thread: int | None = None
        self._entered_at = 0.0

    def __enter__(self) -> "CompileTimer":
        _listen()
        self._begun.clear()
        self._thread, self._entered_at = threading.get_ident(), self._now()
        _entered.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _entered.remove(self)

    @property
    def counts(self) -> CompileCounts:
        # Both unions are over the same line of time, so the difference is the compilation outside the waits.
        seconds = union_s(self._compiling + self._waiting) - union_s(self._waiting)
        return CompileCounts(
            self._earlier.seconds + seconds,
            self._earlier.n_compiles + self._n_compiles,
            self._earlier.n_cache_hits + self._n_cache_hits,
        )

    def add_earlier(self, counts: CompileCounts) -> None:
        """Adds what was timed before this process."""
        before = self._earlier
        self._earlier = CompileCounts(
            before.seconds + counts.seconds,
            before.n_compiles + counts.n_compiles,
            before.n_cache_hits + counts.n_cache_hits,
        )

    def begin(self) -> None:
        """A part of a compilation begins in this thread."""
        thread, start = threading.get_ident(), self._now()
        if thread == self._thread and not self._begun[thread]:
            self._run_dry()
            self._waiting.append((start, self._now()))
        self._begun[thread].append(start)

    def end(self, event: str, duration_s: float) -> None:
        """The part that began last in this thread has ended. Old versions of JAX tell the end alone."""
        end, begun = self._now(), self._begun[threading.get_ident()]
        start = begun.pop() if begun else max(self._entered_at, end - duration_s)
        self._compiling.append((start, end))
        self._n_compiles += event == _BACKEND_COMPILE

    def add_cache_hit(self) -> None:
        self._n_cache_hits += 1


def wait_for_device() -> None:
    """Returns once every array that is still alive is computed; what a submission holds for itself is among them."""
    for array in jax.live_arrays():
        if not array.is_deleted():
            array.block_until_ready()


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
    jax.monitoring.register_scalar_listener(_on_begin)
    jax.monitoring.register_event_duration_secs_listener(_on_end)
    jax.monitoring.register_event_listener(_on_event)


def _on_begin(event: str, value: float | int, **_: Any) -> None:
    if event.startswith(_COMPILE_EVENTS):
        for timer in _entered:
            timer.begin()


def _on_end(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith(_COMPILE_EVENTS):
        for timer in _entered:
            timer.end(event, duration_secs)


def _on_event(event: str, **_: Any) -> None:
    if event == _CACHE_HIT:
        for timer in _entered:
            timer.add_cache_hit()
