"""The self-tuning ruleset in trials and sweeps: no hyperparameters, and a longer budget."""

import json

import pytest
from fake_trial import FakeWorkload, fake_submission

from tuning.claim import Claim
from tuning.description import describe
from tuning.errors import UserError
from tuning.ruleset import TuningRuleset
from tuning.trial import run_trial
from tuning.trials_request import TrialsRequest


def description(point, folder, **options):
    workload = FakeWorkload(step_hint=20)
    return describe("fake", workload, fake_submission(), point, rng_seed=0, trial_index=1, data_dir=folder, **options)


def test_the_submission_is_given_none_and_a_longer_budget(tmp_path):
    seen = []
    described, external = (description(point, str(tmp_path)) for point in ({}, {"learning_rate": 0.1}))
    assert (described.step_budget, external.step_budget) == (30, 20)
    assert described.time_budget_s == 1.5 * external.time_budget_s
    assert description({}, str(tmp_path), max_global_steps=7).step_budget == 7
    submission = fake_submission(lambda call: seen.append(call.hyperparameters))
    with Claim.take(tmp_path / "trial_1") as claim:
        outcome = run_trial(described, FakeWorkload(step_hint=20, target=2.0), submission, claim)
    assert outcome.global_step == 30 and seen == [None] * 30
    written = json.loads((tmp_path / "trial_1" / "outcome.json").read_text())
    assert written["tuning_ruleset"] == "self" and written["hyperparameters"] == {}
    assert json.loads((tmp_path / "trial_1" / "hparams.json").read_text()) == {}


def test_a_study_under_self_tuning_is_one_trial_without_a_space(tmp_path):
    def study(**changes):
        request = TrialsRequest("fake", "counting", str(tmp_path), "e", **changes)
        return request.describe_trials(FakeWorkload(), fake_submission(), seed=0)

    space, (described,) = study(tuning_ruleset=TuningRuleset.SELF)
    assert space is None and described.hyperparameters == {}
    with pytest.raises(UserError, match="--num_tuning_trials=1.*--num_studies"):
        study(tuning_ruleset=TuningRuleset.SELF, num_tuning_trials=5)
    with pytest.raises(UserError, match="--tuning_search_space is for --tuning_ruleset=external"):
        study(tuning_ruleset=TuningRuleset.SELF, tuning_search_space="space.json")
    with pytest.raises(UserError, match="none_here.json"):
        study(tuning_search_space="none_here.json")
