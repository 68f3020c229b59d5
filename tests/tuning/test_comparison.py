"""Search, repetition, means and ratios of a comparison, on a fake workload whose every number is known."""

import dataclasses
import json

import pytest
from fake_trial import FakeWorkload, Point, fake_submission, run_fake_trial

from tuning import comparison
from tuning.comparison import Protocol, Result, fewest_steps, search_and_repeat
from tuning.errors import UserError
from tuning.outcome import Miss


@pytest.fixture
def outcome(tmp_path):
    """(**changes) -> a finished trial's outcome with these fields changed."""
    made = run_fake_trial(tmp_path / "made", FakeWorkload(target=0.1), fake_submission(), Point(1.0), rng_seed=1)
    return lambda **changes: dataclasses.replace(made, **changes)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A workload whose metric is learning rate × step / 100, three points, and a protocol over them."""
    ran = []

    def update(call):
        ran.append(call.hyperparameters.learning_rate)
        call.workload.evaluate = lambda step: call.hyperparameters.learning_rate * step / 100

    space = tmp_path / "counting" / "tuning_search_space.json"
    space.parent.mkdir()
    space.write_text(json.dumps([{"learning_rate": rate} for rate in (1.0, 2.0, 0.1)]))
    submission = fake_submission(update)
    submission = dataclasses.replace(submission, file=space.parent / "submission.py")
    workload = FakeWorkload(target=0.4)
    monkeypatch.setattr(comparison.registry, "load", lambda name: workload)
    monkeypatch.setattr(comparison.submission, "load", lambda path: submission)
    protocol = Protocol(n_points=3, seeds=(1, 2), search_seed=0, folder=tmp_path / "out", data_dir=str(tmp_path))
    return workload, protocol, ran


def go(protocol, rank=fewest_steps) -> Result:
    return search_and_repeat("fake", ["counting"], protocol, rank, say=lambda line: None)[0]


def test_the_point_with_the_fewest_steps_is_repeated_on_other_seeds(world):
    _, protocol, _ = world
    result = go(protocol)
    # Rates 1 and 2 reach 0.4 at steps 40 and 20; rate 0.1 ends its 40 steps at 0.04.
    assert [o.steps_to_target for o in result.search] == [40, 20, None]
    assert result.best_trial == 2
    assert [(o.rng_seed, o.steps_to_target) for o in result.repetitions] == [(1, 20), (2, 20)]
    files = [protocol.folder / "fake" / "counting" / comparison.repetition_place(2, seed) for seed in (1, 2)]
    assert all((file / "outcome.json").exists() for file in files)


def test_repetitions_take_turns(world, monkeypatch):
    _, protocol, ran = world
    both = {name: dataclasses.replace(comparison.submission.load(name), name=name) for name in ("one", "other")}
    monkeypatch.setattr(comparison.submission, "load", both.get)
    said = []
    results = search_and_repeat("fake", list(both), protocol, fewest_steps, say=said.append)
    assert [result.submission for result in results] == ["one", "other"]
    turns = [line.split(":")[0] for line in said if "repeat" in line]
    assert turns == [f"fake {name} {comparison.repetition_place(2, seed)}" for seed in (1, 2) for name in both]


def test_a_comparison_continues_runs_crashed_trials_again_and_refuses_others(world):
    workload, protocol, ran = world
    first = go(protocol)
    ran.clear()
    assert go(protocol) == first and not ran
    file = protocol.folder / "fake" / "counting" / "search" / "trial_3" / "outcome.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "reason": Miss.CRASHED}))
    assert go(protocol).search[2].reason == Miss.BUDGET and set(ran) == {0.1}
    changes = {"submission": "other", "hyperparameters": {"learning_rate": 5.0}, "rng_seed": 7, "target_value": 0.3}
    for change in ({name: value} for name, value in changes.items()):
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=f"outcome.json' has {next(iter(change))} .*, not "):
            go(protocol)


def test_the_searchs_seed_may_not_be_repeated(world):
    _, protocol, _ = world
    with pytest.raises(UserError, match="seed 0 is the search's"):
        go(dataclasses.replace(protocol, seeds=(0, 1)))


def test_points_that_miss_rank_behind_those_that_hit_and_then_by_metric(outcome):
    hit = outcome(steps_to_target=90, best_validation_metric=0.1)
    near = outcome(steps_to_target=None, best_validation_metric=0.9)
    far = outcome(steps_to_target=None, best_validation_metric=0.2)
    lost = outcome(steps_to_target=None, best_validation_metric=None)
    assert sorted([lost, far, near, hit], key=fewest_steps) == [hit, near, far, lost]


def test_means_count_a_miss_as_the_budget_and_ratios_are_to_the_better_reference(outcome):
    def result(name: str, steps: list[int | None]) -> Result:
        repetitions = [
            outcome(
                steps_to_target=n,
                step_budget=100,
                seconds_to_target=n and n / 10 + 3.0,
                compile_seconds_to_target=n and 3.0,
                submission_seconds=14.0,
                compile_seconds=4.0,
            )
            for n in steps
        ]
        return Result(name, 2, [outcome(steps_to_target=n) for n in (None, 5)], 2, repetitions)

    slow, better, fast = result("slow", [None, None]), result("better", [60, None]), result("fast", [20, 40])
    assert (slow.steps, better.steps, fast.steps) == (100, 80, 30)
    assert (slow.seconds, better.seconds, fast.seconds) == (10.0, 8.0, 3.0)
    assert (slow.hits, better.hits, fast.hits) == (0, 1, 2)
    rows = comparison.table([slow, better, fast], ["slow", "better"]).splitlines()[2:]
    assert rows[0] == "| slow | 2 | 2 | 1 | 0/2 | 100 (miss, miss) | 1.25 | 10.0 | 1.25 |"
    assert rows[2] == "| fast | 2 | 2 | 1 | 2/2 | 30 (20, 40) | 0.38 | 3.0 | 0.38 |"
