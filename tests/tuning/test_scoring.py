"""Scores beside the published formulas, worked out another way."""

import math

import numpy as np
import pytest

from tuning import scoring


def test_first_hit():
    assert scoring.first_hit([0.1, 0.5, 0.9], 0.5, "accuracy") == 1
    assert scoring.first_hit([0.9, 0.5, 0.1], 0.5, "wer") == 1
    assert scoring.first_hit([math.nan, 0.4], 0.5, "accuracy") is None
    assert scoring.first_hit([], 0.5, "accuracy") is None


def test_median_of_best():
    inf = math.inf
    assert scoring.median_of_best({1: [5.0, 3.0], 2: [inf, 7.0], 3: [inf]}) == 7
    assert scoring.median_of_best({1: [5.0], 2: [inf], 3: []}) == inf
    assert scoring.median_of_best({1: [5.0], 2: [7.0]}) == 6


def test_ratios_by_hand():
    times = {"a": {"x": 10.0, "y": 30.0}, "b": {"x": 20.0, "y": 10.0}, "c": {"x": 41.0}}
    inf = math.inf
    assert scoring.performance_ratios(times) == {
        "a": {"x": 1.0, "y": 3.0},
        "b": {"x": 2.0, "y": 1.0},
        "c": {"x": inf, "y": inf},
    }


def test_a_ratio_of_exactly_four_counts_and_adds_nothing():
    ratios = scoring.performance_ratios({"a": {"x": 1.0}, "b": {"x": 4.0}})
    assert ratios["b"]["x"] == 4 and scoring.score(ratios["b"], 1) == 0


def test_where_nobody_reached_the_target_nobody_scores():
    ratios = scoring.performance_ratios({"a": {"x": math.inf}, "b": {"x": math.inf}})
    assert scoring.score(ratios["a"], 1) == 0


def test_score_is_the_profiles_integral():
    """By the midpoint rule over random times, and by the official denominator of eight workloads."""
    rng = np.random.default_rng(0)
    names = [f"w{i}" for i in range(5)]
    drawn = {submission: rng.uniform(10, 100, 5) for submission in "abcd"}
    times = {s: {w: t if t < 90 else math.inf for w, t in zip(names, own, strict=True)} for s, own in drawn.items()}
    taus = np.linspace(1, 4, 300_001)
    middles = (taus[1:] + taus[:-1]) / 2
    for own in scoring.performance_ratios(times).values():
        for n in (5, 8):
            heights = sum((middles >= ratio).astype(float) for ratio in own.values()) / n
            assert scoring.score(own, n) == pytest.approx(heights.mean(), abs=1e-5)
            assert scoring.profile(own, 2.0, n) == sum(ratio <= 2 for ratio in own.values()) / n


def test_speed_up():
    times, reference = {"x": 2.0, "y": 5.0, "z": math.inf}, {"x": 8.0, "y": 5.0, "z": 1.0}
    each, mean = scoring.speed_up(times, reference)
    assert each == {"x": 4.0, "y": 1.0} and mean == pytest.approx(2.0)
    assert scoring.speed_up({"x": 1.0}, {"x": math.inf}) == ({}, None)


def test_spread_and_interval():
    spread = scoring.Spread.of([1.0, 2.0, 3.0], 0)
    assert spread.mean == 2 and spread.standard_error == pytest.approx(1 / math.sqrt(3))
    assert scoring.Spread.of([1.0], 0).standard_error is None
    assert scoring.ratio_interval([1.0], [1.0, 2.0]) is None
    assert scoring.ratio_interval([2.0, 2.0], [4.0, 4.0]) == (0.5, 0.5)


def test_easier_targets_give_way_in_the_worse_direction():
    assert scoring.easier(0.8, 0.05, "accuracy") == pytest.approx(0.76)
    assert scoring.easier(0.1, 0.05, "wer") == pytest.approx(0.105)
    assert scoring.easier(-2.0, 0.05, "accuracy") == pytest.approx(-2.1)
