"""What a trial is, and what may differ when it is resumed."""

import dataclasses
import json

import pytest
from fake_trial import FakeWorkload, fake_submission, log_loss, run_fake_trial

from tuning.claim import Claim
from tuning.description import FIELDS, OnResume, describe
from tuning.errors import UserError
from tuning.trial import finished_outcome, run_trial

OTHERS = {
    "workload": "other",
    "submission": "soap",
    "submission_path": "elsewhere/submission.py",
    "submission_version": "0123456789abcdef",
    "tuning_ruleset": "self",
    "hyperparameters": {"learning_rate": 0.2},
    "rng_seed": 6,
    "trial_index": 2,
    "batch_size": 16,
    "eval_batch_size": 16,
    "target_metric": "loss",
    "target_value": 0.7,
    "matmul_precision": "float32",
    "step_budget": 60,
    "time_budget_s": 20_000,
    "stop_at_target": False,
    "pruning": "median",
    "data_dir": "/elsewhere",
}


def description(folder, **options):
    own = dict(rng_seed=5, trial_index=1, data_dir=str(folder)) | options
    return describe("fake", FakeWorkload(target=0.9), fake_submission(), {"learning_rate": 0.1}, **own)


class Killed(BaseException):
    pass


def train(described, folder, kill_at=None, target=0.9):
    """As run_trial.py --resume does; without steps before a checkpoint they are repeated."""

    def report(progress):
        if progress.global_step == kill_at:
            raise Killed

    submission = fake_submission(log_loss)
    with Claim.take(folder) as claim:
        done = finished_outcome(described, folder)
        workload = FakeWorkload(target=target, step_hint=described.step_budget)
        own = dict(report=report, checkpoints_to_keep=2, resume=True)
        return done or run_trial(described, workload, submission, claim, **own)


def test_what_decides_the_numbers_must_match():
    assert OTHERS.keys() == FIELDS.keys()
    may_differ = {name for name, on_resume in FIELDS.items() if on_resume is OnResume.MAY_CHANGE}
    assert may_differ == {"submission_path", "step_budget", "time_budget_s", "stop_at_target", "pruning", "data_dir"}
    assert [name for name, on_resume in FIELDS.items() if on_resume is OnResume.WARN] == ["submission_version"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_changed_between_kill_and_resume_is_refused_or_recorded(tmp_path, name, caplog):
    first = description(tmp_path)
    with pytest.raises(Killed):
        train(first, tmp_path, kill_at=25)
    changed = dataclasses.replace(first, **{name: OTHERS[name]})
    pair = [getattr(first, name), OTHERS[name]]
    if FIELDS[name] is OnResume.MUST_MATCH:
        with pytest.raises(UserError) as error:
            train(changed, tmp_path)
        told = f"has {name} {json.dumps(pair[0])}, not {json.dumps(pair[1])}"
        assert told in str(error.value) and "\n" not in str(error.value)
        assert train(first, tmp_path).resumptions == [{"global_step": 20, "changes": {}}]
        return
    outcome = train(changed, tmp_path)
    assert outcome.resumptions == [{"global_step": 20, "changes": {name: pair}}]
    written = [json.loads((tmp_path / f"flags_{n}.json").read_text())[name] for n in (0, 1)]
    assert written == pair and json.loads((tmp_path / "outcome.json").read_text())[name] == pair[1]
    assert any(name in message for message in caplog.messages) == (FIELDS[name] is OnResume.WARN)


def test_a_larger_budget_goes_on_and_a_smaller_one_than_done_is_refused(tmp_path):
    short, long = description(tmp_path, max_global_steps=10), description(tmp_path, max_global_steps=40)
    assert train(short, tmp_path).global_step == 10
    assert train(short, tmp_path).resumptions == []  # finished: handed back
    outcome = train(long, tmp_path)
    assert (outcome.global_step, outcome.step_budget) == (40, 40)
    assert outcome.resumptions == [{"global_step": 10, "changes": {"step_budget": [10, 40]}}]
    whole = run_fake_trial(tmp_path / "whole", FakeWorkload(target=0.9), fake_submission(log_loss), rng_seed=5)
    assert (outcome.best_validation_metric, outcome.submission_seconds > 0) == (whole.best_validation_metric, True)
    measured = [(folder / "measurements.csv").read_text().count("\n") for folder in (tmp_path, tmp_path / "whole")]
    assert measured[0] == measured[1]
    with pytest.raises(UserError, match="has done 40 steps, more than the budget of 20: give --max_global_steps=40"):
        train(description(tmp_path, max_global_steps=20), tmp_path)
    with pytest.raises(Killed):
        train(long, tmp_path / "killed", kill_at=35)
    with pytest.raises(UserError, match="has done 30 steps, more than its budget of 20"):
        train(description(tmp_path / "killed", max_global_steps=20), tmp_path / "killed")


def test_after_a_hit_a_trial_that_goes_on_ends_with_its_budget_and_a_larger_one_goes_on(tmp_path):
    def train_on(n_steps, stop_at_target=False):
        own = dict(target_value=0.2, stop_at_target=stop_at_target)
        described = dataclasses.replace(description(tmp_path, max_global_steps=n_steps), **own)
        outcome = train(described, tmp_path, target=0.2)
        return outcome.steps_to_target, outcome.global_step, [one["global_step"] for one in outcome.resumptions]

    assert train_on(30) == (20, 30, [])
    assert train_on(30) == train_on(40, stop_at_target=True) == (20, 30, [])  # handed back
    assert train_on(40) == (20, 40, [30])
    assert train_on(40) == (20, 40, [30])


@pytest.mark.parametrize(
    ("change", "is_finished"),
    [
        ({}, True),
        ({"reason": "diverged"}, True),
        ({"reason": "pruned"}, True),
        ({"reason": "pruned", "pruning": "median"}, False),
        ({"reason": "crashed"}, False),
        ({"reason": None, "global_step": 20}, True),
        ({"reason": "budget", "global_step": 20, "step_budget": 20}, False),
        ({"reason": "budget", "global_step": 15, "submission_seconds": 1e6}, True),  # out of time
        ({"reason": "budget", "global_step": 15, "submission_seconds": 50.0, "time_budget_s": 40}, False),
        ({"reason": "budget", "global_step": 15, "submission_seconds": 5.0}, True),  # the submission ended it
    ],
)
def test_finished_is_what_more_budget_would_not_change(tmp_path, change, is_finished):
    first = description(tmp_path)
    train(first, tmp_path)
    file = tmp_path / "outcome.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert (finished_outcome(first, tmp_path) is not None) == is_finished


@pytest.mark.parametrize(
    ("change", "is_finished"),
    [
        ({"global_step": 20, "step_budget": 20}, False),
        ({"global_step": 40}, True),
        ({"global_step": 15}, True),  # the submission ended its training, or it diverged
        ({"global_step": 15, "submission_seconds": 50.0, "time_budget_s": 40}, False),
        ({"global_step": 15, "stop_at_target": True}, False),
    ],
)
def test_a_hit_is_finished_without_a_stop_at_the_target_if_more_budget_would_not_change_it(
    tmp_path, change, is_finished
):
    first = description(tmp_path, stop_at_target=False)
    train(first, tmp_path)
    file = tmp_path / "outcome.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"reason": None, "steps_to_target": 10} | change))
    assert (finished_outcome(first, tmp_path) is not None) == is_finished


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"x"', '{"reason": null}'])
def test_an_outcome_that_is_damaged_or_foreign_is_named_with_the_cure(tmp_path, content):
    (tmp_path / "outcome.json").write_text(content)
    with pytest.raises(UserError, match="outcome.json.*another --experiment_name") as error:
        finished_outcome(description(tmp_path), tmp_path)
    assert "\n" not in str(error.value)


def test_the_point_has_one_class_per_space(tmp_path):
    one, other = description(tmp_path).point, description(tmp_path, rng_seed=6).point
    assert one == (0.1,) and one.learning_rate == 0.1 and type(one) is type(other)
