"""Budgets of official workloads, by hardware profile."""

import pytest

from tuning.trial import _workload_properties
from workloads import budgets, registry


@pytest.mark.parametrize(
    ("name", "profile", "limit_s", "period_s"),
    [
        ("ogbg", None, 12_011, 240),
        ("ogbg", "v100x8", 12_011, 240),
        ("ogbg_gelu", "a100x4", 11_303, 452),
        ("imagenet_vit", None, 69_768, 420),
        ("imagenet_vit_map", "a100x4", 64_292, 2_571),
    ],
)
def test_a_profile_sets_the_budget_and_is_recorded(name, profile, limit_s, period_s):
    workload = registry.load(name, profile)
    assert (workload.max_allowed_runtime_sec, workload.eval_period_time_sec) == (limit_s, period_s)
    recorded = _workload_properties(workload)
    assert recorded["workload.hardware_profile"] == profile
    assert recorded["workload.max_allowed_runtime_sec"] == limit_s
    assert recorded["workload.target_direction"] == "higher"


def test_a_workload_without_an_official_budget_is_refused():
    with pytest.raises(ValueError, match="a100x4 has no budget for 'mnist_vit', only for criteo1tb, fastmri"):
        registry.load("mnist_vit", "a100x4")


@pytest.mark.parametrize(
    ("profile", "present", "n"),
    [("v100x8", ["ogbg"], 8), ("a100x4", ["ogbg"], 9), ("v100x8", ["finewebedu_lm", "b3db"], 9), ("v100x8", [], 8)],
)
def test_the_later_round_has_one_more_base_workload(profile, present, n):
    assert len(budgets.base_workloads(profile, present)) == n
