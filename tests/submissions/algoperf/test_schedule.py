"""The host schedules equal the optax schedules of the AlgoPerf reference submissions at every step."""

from types import SimpleNamespace

import optax
import pytest

from submissions.algoperf import schedule


def reference_polynomial(peak, length, warmup_factor, decay_steps_factor, end_factor):
    warmup = int(warmup_factor * length)
    decay = optax.polynomial_schedule(peak, peak * end_factor, 1, int((length - warmup) * decay_steps_factor))
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def reference_cosine(peak, length, warmup_factor):
    warmup = int(warmup_factor * length)
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup), optax.cosine_decay_schedule(peak, length - warmup)], [warmup]
    )


STEPS = [0, 1, 2999, 3000, 3001, 30_000, 51_000, 52_104, 52_105, 59_999, 60_000, 70_000]


@pytest.mark.parametrize("step", STEPS)
def test_polynomial_with_the_papers_values(step):
    shape = {"warmup_factor": 0.05, "decay_steps_factor": 0.861509027839639, "end_factor": 1e-3}
    expected = float(reference_polynomial(2.4917727606918423, 60_000, **shape)(step))
    # optax computes in float32, so the difference is measured against the peak.
    h = SimpleNamespace(learning_rate=2.4917727606918423, **shape)
    assert schedule.polynomial(step, 60_000, h) == pytest.approx(expected, abs=1e-6)


def test_polynomial_lengths_of_the_papers_run():
    """Warm-up ends after 3,000 of 60,000 steps, and the end factor holds from 3,000 + 0.8615 × 57,000 on."""
    shape = {"warmup_factor": 0.05, "decay_steps_factor": 0.861509027839639, "end_factor": 1e-3}
    h = SimpleNamespace(learning_rate=2.0, **shape)
    assert schedule.polynomial(3000, 60_000, h) == 2.0
    assert schedule.polynomial(3000 + 49_106, 60_000, h) == pytest.approx(2e-3, rel=1e-9)
    assert schedule.polynomial(3000 + 49_105, 60_000, h) > 2e-3


@pytest.mark.parametrize("step", [0, 4, 5, 6, 50, 99, 100, 200])
@pytest.mark.parametrize(("warmup_factor", "decay_steps_factor"), [(0.05, 0.0), (1.0, 1.0), (0.5, 0.001), (0.05, 1.0)])
def test_polynomial_without_steps_to_decay_in(step, warmup_factor, decay_steps_factor):
    shape = {"warmup_factor": warmup_factor, "decay_steps_factor": decay_steps_factor, "end_factor": 0.1}
    expected = float(reference_polynomial(1.0, 100, **shape)(step))
    h = SimpleNamespace(learning_rate=1.0, **shape)
    assert schedule.polynomial(step, 100, h) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("step", STEPS)
def test_cosine(step):
    expected = float(reference_cosine(8.4e-4, 60_000, 0.05)(step))
    h = SimpleNamespace(learning_rate=8.4e-4, warmup_factor=0.05)
    assert schedule.cosine(step, 60_000, h) == pytest.approx(expected, abs=1e-9)


def test_without_warm_up_the_first_step_has_the_peak():
    assert schedule.cosine(0, 10, SimpleNamespace(learning_rate=3.0, warmup_factor=0.0)) == 3.0
