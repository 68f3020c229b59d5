"""Scores beside the published formulas, worked out another way."""

import math

import numpy as np
import pytest

from tuning import scoring


def test_first_hit():
    assert scoring.first_hit([0.1, 0.5, 0.9], 0.5, False) == 1
    assert scoring.first_hit([0.9, 0.5, 0.1], 0.5, True) == 1
    assert scoring.first_hit([math.nan, 0.4], 0.5, False) is None
    assert scoring.first_hit([math.inf, 0.6], 0.5, False) == scoring.first_hit([-math.inf, 0.4], 0.5, True) == 1
    assert scoring.first_hit([], 0.5, False) is None


def test_ratios_by_hand():
    times = {"a": {"x": 10.0, "y": 30.0}, "b": {"x": 20.0, "y": 10.0}, "c": {"x": 41.0}}
    inf = math.inf
    assert scoring.performance_ratios(times) == {
        "a": {"x": 1.0, "y": 3.0},
        "b": {"x": 2.0, "y": 1.0},
        "c": {"x": inf, "y": inf},
    }


def test_a_ratio_of_exactly_four_adds_half_a_cell_of_the_trapezoid_rule():
    ratios = scoring.performance_ratios({"a": {"x": 1.0}, "b": {"x": 4.0}})
    assert ratios["b"]["x"] == 4 and scoring.score(ratios["b"], 1) == pytest.approx(0.5 / 99)


def test_a_target_reached_at_once():
    ratios = scoring.performance_ratios({"a": {"x": 0.0}, "b": {"x": 0.0}, "c": {"x": 1.0}})
    assert (ratios["a"]["x"], ratios["b"]["x"], ratios["c"]["x"]) == (1, 1, math.inf)
    assert scoring.speed_up({"x": 0.0}, {"x": 1.0}) == ({}, None)


def test_where_nobody_reached_the_target_nobody_scores():
    ratios = scoring.performance_ratios({"a": {"x": math.inf}, "b": {"x": math.inf}})
    assert scoring.score(ratios["a"], 1) == 0


def test_score_is_the_official_rule_and_nearly_the_integral():
    """The trapezoid rule written out; each workload is off the exact integral by half a cell at most."""
    rng = np.random.default_rng(0)
    names = [f"w{i}" for i in range(5)]
    drawn = {submission: rng.uniform(10, 100, 5) for submission in "abcd"}
    times = {s: {w: t if t < 90 else math.inf for w, t in zip(names, own, strict=True)} for s, own in drawn.items()}
    for own in scoring.performance_ratios(times).values():
        for n in (5, 8):
            heights = [sum(ratio <= 1 + 3 * i / 99 for ratio in own.values()) / n for i in range(100)]
            rule = sum((left + right) / 2 for left, right in zip(heights, heights[1:], strict=False)) / 99
            exact = sum(max(0.0, 4 - ratio) for ratio in own.values()) / (3 * n)
            assert scoring.score(own, n) == pytest.approx(rule, abs=1e-12)
            assert abs(scoring.score(own, n) - exact) <= 5 / n * 0.5 / 99
            assert scoring.profile(own, 2.0, n) == sum(ratio <= 2 for ratio in own.values()) / n


def test_speed_up():
    times, reference = {"x": 2.0, "y": 5.0, "z": math.inf}, {"x": 8.0, "y": 5.0, "z": 1.0}
    each, mean = scoring.speed_up(times, reference)
    assert each == {"x": 4.0, "y": 1.0} and mean == pytest.approx(2.0)
    assert scoring.speed_up({"x": 1.0}, {"x": math.inf}) == ({}, None)


@pytest.mark.parametrize(
    ("values", "missed", "median", "is_lower_bound"),
    [
        ([3.0, 1.0, 2.0], [False] * 3, 2.0, False),
        ([1.0, 2.0, 9.0], [False, False, True], 2.0, False),
        ([1.0, 9.0, 9.0], [False, True, True], 9.0, True),
        ([1.0, 9.0], [False, True], 5.0, True),
        ([1.0, 0.5, 2.0], [False, True, False], 2.0, False),  # a miss is more than any hit, whatever it spent
        ([1.0, math.nan, 2.0], [False, True, False], 2.0, False),
    ],
)
def test_medians_count_misses_last(values, missed, median, is_lower_bound):
    found = scoring.SeedMedian.of(values, missed)
    assert (found.median, found.is_lower_bound, found.n_misses) == (median, is_lower_bound, sum(missed))


def _hits(*values):
    return scoring.SeedMedian.of(values, [False] * len(values))


def test_interval():
    assert scoring.ratio_interval(_hits(1.0), _hits(1.0, 2.0)) is None
    assert scoring.ratio_interval(_hits(1.0, 2.0), _hits(0.0, 2.0)) is None
    assert scoring.ratio_interval(_hits(2.0, 2.0), _hits(4.0, 4.0)) == (0.5, 0.5)


def test_an_interval_counts_misses_last():
    """Of seven values, 95 % of the medians lie from the second to the sixth; the miss, though short, is the seventh."""
    with_miss = scoring.SeedMedian.of([0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [True] + [False] * 6)
    assert scoring.ratio_interval(_hits(6.0, 6.0), with_miss) == (6 / 6, 6 / 2)
    assert scoring.ratio_interval(_hits(6.0, 6.0), _hits(*with_miss.values)) == (6 / 5, 6 / 1)


def test_no_interval_of_a_bound():
    all_missed = scoring.SeedMedian.of([9.0, 9.0, 9.0], [True] * 3)
    assert scoring.ratio_interval(all_missed, _hits(2.0, 3.0, 4.0)) is None
    assert scoring.ratio_interval(_hits(2.0, 3.0, 4.0), all_missed) is None


def test_easier_targets_give_way_in_the_worse_direction():
    assert scoring.easier(0.8, 0.05, False) == pytest.approx(0.76)
    assert scoring.easier(0.1, 0.05, True) == pytest.approx(0.105)
    assert scoring.easier(-2.0, 0.05, False) == pytest.approx(-2.1)
