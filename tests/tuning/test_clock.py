import time

import jax
import jax.numpy as jnp
import pytest
from fake_trial import FakeTime

from tuning.clock import CompileTimer, SubmissionClock, union_s

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


def test_nested_events_count_once_and_only_backend_events_are_compiles():
    timer = CompileTimer()
    timer.add(TRACE, 2.0, 3.0)
    timer.add(TRACE, 1.0, 4.0)
    timer.add(BACKEND, 4.0, 9.0)
    assert (timer.seconds, timer.n_compiles) == (8.0, 1)


def test_a_real_compilation_is_counted_once_and_a_second_call_not_at_all():
    x = jnp.ones((3, 5))
    inner = jax.jit(lambda x: jnp.sin(x) @ x.T)
    outer = jax.jit(lambda x: inner(x) + inner(2 * x))
    timer, outside = CompileTimer(), CompileTimer()
    began = time.perf_counter()
    with timer:
        outer(x)
    elapsed = time.perf_counter() - began
    assert timer.n_compiles == 1
    assert 0 < timer.seconds <= elapsed
    counted = timer.seconds
    with timer:
        outer(x)
    assert (timer.seconds, timer.n_compiles) == (counted, 1)
    assert (outside.seconds, outside.n_compiles) == (0.0, 0)
