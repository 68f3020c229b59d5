import math
import time

import jax
import jax.numpy as jnp
import pytest
from fake_trial import FakeTime

from tuning.clock import CompileCounts, CompileTimer, SubmissionClock, union_s

BACKEND = "/jax/core/compile/backend_compile_duration"
TRACE = "/jax/core/compile/jaxpr_trace_duration"


class SlowArray:
    """An array whose computation takes 5 s more."""

    def __init__(self, now):
        self._now = now

    def block_until_ready(self):
        self._now.advance(5.0)
        return self


def test_blocks_add_up_and_wait_for_the_device():
    now = FakeTime()
    clock = SubmissionClock(now)
    with clock.timed() as wait_for:
        now.advance(1.0)
        assert clock.seconds == 1.0
        wait_for((SlowArray(now), None, {"f": len}))
    now.advance(100.0)
    with clock.timed():
        now.advance(2.0)
    assert clock.seconds == 8.0


def test_a_block_that_raises_is_counted_and_the_clock_goes_on():
    now = FakeTime()
    clock = SubmissionClock(now)
    with pytest.raises(KeyError), clock.timed():
        now.advance(3.0)
        raise KeyError
    with clock.timed():
        now.advance(1.0)
        with pytest.raises(RuntimeError, match="running already"), clock.timed():
            pass
    assert clock.seconds == 4.0


def test_union_counts_nested_and_overlapping_time_once():
    assert union_s([]) == 0.0
    assert union_s([(5, 6), (0, 4), (1, 2), (3, 4.5)]) == 5.5


def test_nested_parts_count_once_and_the_wait_before_them_is_no_compilation():
    now, n_waits = FakeTime(), []

    def wait_for_device():
        n_waits.append(now.now)
        now.advance(7.0)

    timer = CompileTimer(now, wait_for_device)
    with timer:
        timer.begin()
        now.advance(1.0)
        timer.begin()
        now.advance(2.0)
        timer.end(TRACE, math.nan)
        timer.end(TRACE, math.nan)
        now.advance(50.0)
        timer.begin()
        now.advance(4.0)
        timer.end(BACKEND, math.nan)
    assert (timer.counts.seconds, timer.counts.n_compiles, len(n_waits)) == (3.0 + 4.0, 1, 2)


def test_a_version_of_jax_that_tells_the_end_alone_is_timed_by_what_it_tells():
    now = FakeTime()
    timer = CompileTimer(now, lambda: None)
    with timer:
        now.advance(5.0)
        timer.end(BACKEND, 3.0)
        now.advance(1.0)
        timer.end(BACKEND, 60.0)  # it began before the timer was entered
    assert (timer.counts.seconds, timer.counts.n_compiles) == (6.0, 2)


def test_a_real_compilation_is_counted_once_and_a_second_call_not_at_all():
    x = jnp.ones((3, 5))
    inner = jax.jit(lambda x: jnp.sin(x) @ x.T)
    outer = jax.jit(lambda x: inner(x) + inner(2 * x))
    timer, outside = CompileTimer(), CompileTimer()
    began = time.perf_counter()
    with timer:
        outer(x)
    elapsed = time.perf_counter() - began
    counted = timer.counts
    assert counted.n_compiles == 1
    assert 0 < counted.seconds <= elapsed
    with timer:
        outer(x)
    assert timer.counts == counted
    assert outside.counts == CompileCounts()


def test_known_device_work_is_training_also_while_the_next_program_compiles():
    """Work is dispatched whose duration is known, and then a program is compiled for longer than it lasts."""

    def turns(x):
        return jax.lax.fori_loop(0, 300, lambda _, y: y @ x, x)

    work, x = jax.jit(turns), jnp.eye(256)
    work(x).block_until_ready()

    def known_s(n_times):
        return min(_seconds(lambda: work(x).block_until_ready()) for _ in range(n_times))

    traced_s = 5 * known_s(3)

    def slow_to_trace(x):
        time.sleep(traced_s)  # tracing is host work, and counts as compilation
        return x + 1

    then, clock, timer = jax.jit(slow_to_trace), SubmissionClock(), CompileTimer()
    with timer, clock.timed() as wait_for:
        pending = work(x)
        wait_for((pending, then(x)))
    assert timer.counts.n_compiles == 1 and timer.counts.seconds >= traced_s
    # Work that counted as compilation would leave nothing. On a loaded machine the measured durations differ.
    assert clock.seconds - timer.counts.seconds >= 0.5 * min(known_s(5), traced_s / 5)


def _seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
