"""The paper's settings, as search-space files: the learning rate at the start, the end of warm-up and the end."""

import json
from pathlib import Path

import pytest

from submissions.algoperf import hyperparameters
from submissions.kfac.algoperf.classical import KFACHyperparameters
from tuning import search_space, submission
from workloads import registry

PRESETS = Path(__file__).parents[1] / "presets"
# file -> steps of warm-up, of the whole schedule, and the last rate as part of the peak.
SCHEDULES = {
    "ogbg_nesterov": (3_000, 3_000 + int(57_000 * 0.861509027839639), 1e-3),
    "ogbg_kfac_expand": (2_250, 2_250 + int(42_750 * 0.861509027839639), 1e-3),
    "ogbg_kfac_reduce": (2_250, 2_250 + int(42_750 * 0.861509027839639), 1e-3),
    "imagenet_vit_nadamw": (6_999, 139_999, 0.0),
    "imagenet_vit_kfac_expand": (5_249, 104_999, 1e-3),
    "imagenet_vit_kfac_reduce": (5_249, 104_999, 1e-3),
}


def test_every_preset_is_tested():
    """Here, or as the reference run of a workload whose target was set."""
    results = [json.loads(file.read_bytes()) for file in (PRESETS.parent / "results" / "targets").glob("*.json")]
    references = {f"{found['workload']}_{found['reference']}" for found in results}
    assert set(SCHEDULES) | references == {file.stem for file in PRESETS.glob("*.json")}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    workload_name, kind = ("ogbg", name[5:]) if name.startswith("ogbg") else ("imagenet_vit", name[13:])
    own = submission.load(f"submissions/{kind}")
    point = search_space.points(search_space.read(PRESETS / f"{name}.json"), 1, seed=0)[0]
    algorithm = own.update_params.__self__._algorithm
    h = hyperparameters.read(algorithm.hyperparameters, search_space.as_hyperparameters(point))
    hint = registry.load(workload_name).step_hint
    warmup, length, last = SCHEDULES[name]
    rate = {step: algorithm.learning_rate(step, hint, h) for step in (0, 1, warmup, length - 1, length, 2 * length)}
    assert rate[0] == 0 and rate[1] == pytest.approx(h.learning_rate / warmup)
    assert rate[warmup] == h.learning_rate
    assert rate[length] == rate[2 * length] == pytest.approx(last * h.learning_rate, abs=1e-12)
    assert rate[length - 1] > rate[length]


def test_kfac_presets_search_learning_rate_and_damping_alone_and_evaluate_the_last_iterate():
    for name in SCHEDULES:
        space = search_space.read(PRESETS / f"{name}.json")
        searched = {key for key, choices in space.items() if "min" in choices}
        assert searched == ({"learning_rate", "damping"} if "kfac" in name else set())
        if "kfac" in name:
            (point,) = search_space.points(space, 1, seed=0)
            assert hyperparameters.read(KFACHyperparameters, search_space.as_hyperparameters(point)).averaged_share == 0
