import pytest

from benchmarks import timing
from benchmarks.timing import Deadline
from benchmarks.workload_steps import StepCosts, measure, table
from tuning.submission import load


def test_a_run_is_the_mean_of_its_steps_weighted_by_how_often_it_takes_each():
    """900 steps of 20 ms and 100 of 60 ms are 24 ms a step; the machine is three times slower in the second round."""
    first = StepCosts("first", 3.0, {False: [0.010, 0.030]}, {False: 1000}, {False: 100})
    timings = {False: [0.020, 0.060], True: [0.060, 0.180]}
    own = StepCosts("own", 7.0, timings, {False: 900, True: 100}, {False: 60, True: 40})
    assert table([first, own]).splitlines()[2:] == [
        "| first | 3.0 | 20.0 | - | 0 of 1000 | 1.00 | 1.00 |",
        "| own | 7.0 | 40.0 | 120.0 | 100 of 1000 | 2.40 | 3.60 |",
    ]


def test_a_deadline_passes_after_its_minutes_and_without_minutes_never(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(timing.time, "monotonic", lambda: now)
    deadline, endless = Deadline(2), Deadline()
    now += 119.0
    assert not deadline.has_passed
    now += 2.0
    assert deadline.has_passed and not endless.has_passed


@pytest.mark.slow
def test_steps_with_and_without_a_refresh_are_timed():
    (costs,) = measure(
        "mnist_vit",
        [load("submissions/kfac_reduce")],
        batch_size=8,
        micro_batches=1,
        synthetic=True,
        n_rounds=2,
        seed=0,
        data_dir="",
        deadline=Deadline(),
    )
    assert set(costs.timings) == set(costs.in_run) and len(costs.timings) == 2
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in costs.timings.values())
    assert costs.compile_s > 0
