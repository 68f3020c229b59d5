"""The two clocks of a trial: submission seconds, and the part of them that compilation takes.

Submission seconds are AlgoPerf's, and include compilation. Training seconds are submission seconds without compilation.
A device may still compute earlier steps while the host compiles the next one. Therefore the timer waits for the device
before each compilation. This wait counts as training, so that the compilation seconds contain compilation alone.
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
    """Adds up the seconds of timed blocks. A block's clock stops only when the block's device work is done."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._finished_s = 0.0
        self._started_at: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of all timed blocks, including the running one up to now, without waiting for a device."""
        running_s = 0.0 if self._started_at is None else self._now() - self._started_at
        return self._finished_s + running_s

    def add(self, seconds: float) -> None:
        """Adds seconds of an earlier process."""
        self._finished_s += seconds

    @contextmanager
    def timed(self) -> Iterator[Callable[[Any], None]]:
        """Times a block. It yields `wait_for(tree)`: the block ends only when the tree's arrays are computed.

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
    """Seconds and numbers of compilations."""

    seconds: float = 0.0
    n_compiles: int = 0  # programs compiled or fetched from the persistent cache
    n_cache_hits: int = 0  # programs fetched from it


class CompileTimer:
    """Times compilation (tracing, lowering, backend) in a `with` block, and waits for the device before it.

    The timer may be entered repeatedly, and adds up. Nested and concurrent compilations count once. For a program in
    the persistent cache it counts the time of fetching the program.

    Args:
        wait: called before a compilation; by default `wait_for_device`.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, wait: Callable[[], None] | None = None):
        self._now, self._wait = now, wait or wait_for_device
        self._earlier_s = 0.0  # of earlier processes, which the two numbers below include
        self._n_compiles = self._n_cache_hits = 0
        self._compiling: list[tuple[float, float]] = []
        self._waiting: list[tuple[float, float]] = []
        self._starts: dict[int, list[float]] = defaultdict(list)  # thread -> starts of its nested parts
        self._thread: int | None = None
        self._entered_at = 0.0

    def __enter__(self) -> "CompileTimer":
        _register_listeners()
        self._starts.clear()
        self._thread, self._entered_at = threading.get_ident(), self._now()
        _active_timers.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _active_timers.remove(self)

    @property
    def counts(self) -> CompileCounts:
        # The difference of the two unions is the compilation outside the waits.
        seconds = union_s(self._compiling + self._waiting) - union_s(self._waiting)
        return CompileCounts(self._earlier_s + seconds, self._n_compiles, self._n_cache_hits)

    def add_earlier(self, counts: CompileCounts) -> None:
        """Adds the counts of an earlier process."""
        self._earlier_s += counts.seconds
        self._n_compiles += counts.n_compiles
        self._n_cache_hits += counts.n_cache_hits

    def begin(self) -> None:
        """A part of a compilation begins in this thread."""
        thread, start = threading.get_ident(), self._now()
        if thread == self._thread and not self._starts[thread]:
            self._wait()
            self._waiting.append((start, self._now()))
        self._starts[thread].append(start)

    def end(self, event: str, duration_s: float) -> None:
        """The part that began last in this thread has ended.

        If it began before this timer was entered, only its end is seen. Its start is then taken from the duration.
        """
        end, starts = self._now(), self._starts[threading.get_ident()]
        start = starts.pop() if starts else max(self._entered_at, end - duration_s)
        self._compiling.append((start, end))
        self._n_compiles += event == _BACKEND_COMPILE

    def add_cache_hit(self) -> None:
        self._n_cache_hits += 1


def wait_for_device() -> None:
    """Returns once every live array is computed, including arrays that only the submission refers to."""
    for array in jax.live_arrays():
        if not array.is_deleted():
            array.block_until_ready()


def union_s(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of the intervals (start, end), in seconds."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


_active_timers: list[CompileTimer] = []


@functools.cache
def _register_listeners() -> None:
    """Registers the listeners, once per process: JAX 0.7 cannot unregister them."""
    jax.monitoring.register_scalar_listener(_on_begin)
    jax.monitoring.register_event_duration_secs_listener(_on_end)
    jax.monitoring.register_event_listener(_on_event)


def _on_begin(event: str, value: float | int, **_: Any) -> None:
    if event.startswith(_COMPILE_EVENTS):
        for timer in _active_timers:
            timer.begin()


def _on_end(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith(_COMPILE_EVENTS):
        for timer in _active_timers:
            timer.end(event, duration_secs)


def _on_event(event: str, **_: Any) -> None:
    if event == _CACHE_HIT:
        for timer in _active_timers:
            timer.add_cache_hit()
