"""The rules by which a running trial is stopped, on a real queue whose trials report what the test says."""

import pytest

from tests.tuning.fake_trial import FakeWorkload, fake_submission, run_fake_trial
from tuning.outcome import Progress
from tuning.point_queue import PointQueue
from tuning.pruning import Pruning, rule
from workloads.spec import Direction

N_POINTS = 9


@pytest.fixture
def queue(tmp_path):
    points = [{"learning_rate": 0.1 * i} for i in range(N_POINTS)]
    return PointQueue(f"sqlite:///{tmp_path}/s.db", "e/study_1", {}, points)


def _progress(step, metric, n_evaluations=1):
    return Progress(step, 100, "score", metric, n_evaluations)


def _carry_out(queue, workload, metrics, result=None, step=10, pruning=Pruning.MEDIAN):
    """What the rule said after each evaluation of a trial with these metrics, at steps 10, 20, …"""
    claim = queue.lease()
    should_prune = rule(pruning, queue, claim, workload)
    said = [should_prune(_progress(step * (i + 1), metric, i + 1)) for i, metric in enumerate(metrics)]
    queue.finish(claim, {"steps_to_target": None, "reason": "budget"} | (result or {}), 100.0)
    return said


def test_the_median_of_five_finished_trials_decides(queue):
    workload = FakeWorkload()
    for metric in (0.1, 0.2, 0.3, 0.4):
        assert _carry_out(queue, workload, [metric, 0.5]) == [False, False]
    assert _carry_out(queue, workload, [0.0, 0.5]) == [False, False]  # the worst, but four trials are too few
    # The medians are 0.2 at step 10 and 0.5 at step 20.
    assert _carry_out(queue, workload, [0.2, 0.5]) == [False, False]
    assert _carry_out(queue, workload, [0.19]) == [True]
    # What a trial reached before counts for it: its best is compared, not its last.
    assert _carry_out(queue, workload, [0.6, 0.4]) == [False, False]


def test_lower_is_better_where_the_target_says_so(queue):
    workload = FakeWorkload(direction=Direction.LOWER_IS_BETTER)
    for metric in (0.1, 0.2, 0.3, 0.4, 0.5):
        _carry_out(queue, workload, [metric])
    assert _carry_out(queue, workload, [0.31]) == [True] and _carry_out(queue, workload, [0.29]) == [False]


def test_pruned_and_crashed_trials_are_no_measure(queue):
    workload = FakeWorkload()
    for metric in (0.1, 0.2, 0.3, 0.4):
        _carry_out(queue, workload, [metric])
    _carry_out(queue, workload, [0.9], {"reason": "pruned"})
    _carry_out(queue, workload, [0.9], {"reason": "crashed"})
    assert _carry_out(queue, workload, [0.0]) == [False]  # the fifth
    assert _carry_out(queue, workload, [0.15]) == [True]
    assert [point.result["reason"] for point in queue.status()[4:6]] == ["pruned", "crashed"]
    assert queue.lease().index == N_POINTS  # none of them is run again


def test_evaluations_by_the_clock_are_compared_by_their_number(queue):
    workload = FakeWorkload()
    workload.eval_period_steps = None
    for i in range(5):
        _carry_out(queue, workload, [0.5], step=7 + i)
    assert _carry_out(queue, workload, [0.4], step=20) == [True]


def test_a_trial_taken_over_keeps_what_it_reported(queue):
    workload = FakeWorkload()
    for _ in range(5):
        _carry_out(queue, workload, [0.5, 0.6])
    claim = queue.lease()
    assert not rule(Pruning.MEDIAN, queue, claim, workload)(_progress(10, 0.7))
    queue.release(claim)
    again = queue.lease()
    while again.index != claim.index:
        again = queue.lease()
    assert again.n_deaths == 0 and not rule(Pruning.MEDIAN, queue, again, workload)(_progress(20, 0.4, 2))


def test_the_best_ones_steps_decide(queue):
    workload = FakeWorkload()
    assert _carry_out(queue, workload, [0.1] * 9, pruning=Pruning.BEST) == [False] * 9
    _carry_out(queue, workload, [0.1], {"steps_to_target": 30, "reason": None})
    assert _carry_out(queue, workload, [0.9, 0.9, 0.9, 0.9], pruning=Pruning.BEST) == [False, False, True, True]
    assert _carry_out(queue, workload, [0.0] * 5, pruning=Pruning.NONE) == [False] * 5


def test_real_trials_are_pruned_marked_so_and_no_misses_of_the_budget(queue, tmp_path):
    """A trial's metric is the same at every evaluation."""

    def carry_out(metric):
        claim, workload = queue.lease(), FakeWorkload(step_hint=40, target=7.5)
        workload.evaluate = lambda step: metric
        outcome = run_fake_trial(
            tmp_path / f"trial_{claim.index}",
            workload,
            fake_submission(),
            trial_index=claim.index,
            should_prune=rule(Pruning.MEDIAN, queue, claim, workload),
        )
        queue.finish(claim, {"reason": outcome.reason, "steps_to_target": outcome.steps_to_target}, 40.0)
        return outcome.reason, outcome.global_step

    found = [carry_out(metric) for metric in (5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 6.5, 6.9, 7.1)]
    # 8 and 9 are at their target at step 10, the first evaluation, where the median is 7; at step 20 it is 6.
    assert found == [("budget", 40)] * 3 + [(None, 10)] * 2 + [("pruned", 10)] * 3 + [("budget", 40)]
    states = [trial.state.name for trial in queue._study.trials()]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"] * 3 + ["COMPLETE"]
    assert queue._study.study.best_trial.number == 0 and queue.is_done()
