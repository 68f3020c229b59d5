"""Trial folders as they are found: whole, cut short, or not what they should be."""

import json

import pytest

from tests.tuning.report.folders import write_trial
from tuning.report import archive, reading

# A workload that is evaluated by steps, as this project's are: the period in seconds is the time limit.
STEPWISE = {"workload.eval_period_steps": 10, "workload.eval_period_time_sec": 20}


def only(folder):
    records = reading.read([folder])
    (trial,) = records.trials
    return trial, [f"{problem.file} {problem.what}" for problem in records.problems]


def test_the_official_harnesss_layout(tmp_path):
    """No outcome.json: the submission is the experiment's folder, the state follows from the evaluations."""
    place = tmp_path / "their_adamw" / "study_3" / "ogbg_jax" / "trial_4"
    write_trial(place, [0.5, 0.85], point={"learning_rate": 0.1})
    trial, problems = only(tmp_path)
    assert (trial.workload, trial.submission, trial.study) == ("ogbg", "their_adamw", 3)
    assert (trial.state, trial.steps[trial.hit_at(0.8)], trial.budget) == ("hit", 20, 100)
    assert trial.compile_seconds is None and not problems


def test_a_submission_by_its_path(tmp_path):
    place = write_trial(tmp_path / "e" / "ogbg_jax" / "trial_1", [0.9], point={})
    (place / "flags_0.json").write_text('{"submission_path": "submissions/kfac_reduce/submission.py"}')
    assert only(tmp_path)[0].submission == "kfac_reduce"


@pytest.mark.parametrize(
    ("values", "state"), [([0.1] * 10, "budget"), ([0.1, 0.2], "unfinished"), ([0.1, float("nan")], "diverged")]
)
def test_states_without_an_outcome(tmp_path, values, state):
    write_trial(tmp_path / "digits_jax" / "trial_1", values, point={})
    assert only(tmp_path)[0].state == state


def test_reached_means_at_least_the_target(tmp_path):
    write_trial(tmp_path / "digits_jax" / "trial_1", [0.7999, 0.8, 0.9], point={})
    trial, _ = only(tmp_path)
    assert trial.hit_at(trial.target) == 1


@pytest.mark.parametrize("n_letters", [1, 2, 4, 12])
def test_a_last_line_cut_short_is_left_out_and_named(tmp_path, n_letters):
    """Be it by its end alone, or in a number, of which the rest would be a number too."""
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.5, 0.6, 0.9125], point={})
    file = place / "eval_measurements.csv"
    content = file.read_bytes().replace(b"\r\n", b"\n")
    file.write_bytes(content[:-n_letters])
    trial, problems = only(tmp_path)
    assert list(trial.values) == [0.5, 0.6] and trial.state == "unfinished"
    assert problems == [f"{file} line 4 is left out: it was cut short"]


def test_the_outcome_says_whether_less_is_better(tmp_path):
    """Of a metric that is not known otherwise, be the other file damaged or of another opinion."""
    for index, (direction, content) in enumerate((("lower", "{"), ("lower", None), ("higher", "{")), start=1):
        own = {"target_metric": "goodness", "target_direction": direction}
        place = write_trial(tmp_path / f"{index}" / "digits_jax" / "trial_1", [0.9, 0.5], point={}, outcome=own)
        if content:
            (place / "meta_data_0.json").write_text(content)
        (trial,) = reading.read([tmp_path / f"{index}"]).trials
        assert trial.lower_is_better == (direction == "lower")


def test_a_line_of_too_few_cells_is_left_out_and_named(tmp_path):
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.5, 0.6, 0.9], point={})
    file = place / "eval_measurements.csv"
    lines = file.read_text().splitlines()
    lines[2] = lines[2].rsplit(",", 2)[0]
    file.write_text("\n".join(lines) + "\n")
    trial, problems = only(tmp_path)
    assert list(trial.values) == [0.5, 0.9]
    assert problems == [f"{file} line 3 is left out: has 7 of 9 cells"]


def test_a_missing_column(tmp_path):
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.5, 0.9], point={})
    file = place / "eval_measurements.csv"
    file.write_text(file.read_text().replace("validation/accuracy", "validation/other"))
    trial, problems = only(tmp_path)
    assert not trial.values.size and trial.state == "unfinished"
    assert problems == [f"{file} has no column validation/accuracy"]


def test_nan_is_never_a_hit_and_is_told(tmp_path):
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.5, float("nan"), 0.9], point={})
    trial, problems = only(tmp_path)
    assert trial.steps[trial.hit_at(trial.target)] == 30 and trial.best == 0.9
    assert problems == [f"{place / 'eval_measurements.csv'} validation/accuracy is not a number in 1 of 3 rows"]


def test_an_infinite_metric_is_no_hit(tmp_path):
    """As in the trial itself, which trains on."""
    write_trial(tmp_path / "digits_jax" / "trial_1", [0.5, float("inf"), 0.9], point={})
    trial, _ = only(tmp_path)
    assert trial.steps[trial.hit_at(trial.target)] == 30


def test_an_empty_cell_of_the_metric_is_no_number_and_means_diverged(tmp_path):
    """As the official harness writes it."""
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.5, 0.6], point={})
    file = place / "eval_measurements.csv"
    file.write_text(file.read_text().replace(",0.6\n", ",\n"))
    trial, problems = only(tmp_path)
    assert trial.state == "diverged" and "is not a number in 1 of 2 rows" in problems[0]


@pytest.mark.parametrize(
    ("more", "workload", "state"),
    [
        ({"workload.max_allowed_runtime_sec": 20, "workload.eval_period_time_sec": 10}, "digits", "budget"),
        ({"workload.max_allowed_runtime_sec": 20.9, "workload.eval_period_time_sec": 10}, "digits", "budget"),
        ({"workload.max_allowed_runtime_sec": 22, "workload.eval_period_time_sec": 10}, "digits", "unfinished"),
        ({"workload.max_allowed_runtime_sec": None}, "digits", "unfinished"),
        (STEPWISE | {"workload.max_allowed_runtime_sec": 20}, "digits", "unfinished"),
        (STEPWISE | {"workload.max_allowed_runtime_sec": 10}, "digits", "budget"),
        # The hardware profile: 12,011 s, and an evaluation every 240.
        ({"workload.max_allowed_runtime_sec": None}, "ogbg", "unfinished"),
    ],
)
def test_a_last_evaluation_a_period_before_the_limit_is_the_budgets(tmp_path, more, workload, state):
    write_trial(tmp_path / f"{workload}_jax" / "trial_1", [0.1], point={}, seconds_a_step=1.0, meta=more)
    assert only(tmp_path)[0].state == state


@pytest.mark.parametrize(("seconds", "state"), [(11_760, "budget"), (11_700, "unfinished")])
def test_a_hardware_profile_fills_in_the_limit(tmp_path, seconds, state):
    """Without one on record: v100x8 has 12,011 s and 240 s between evaluations, a100x4 11,303 s and 452 s."""
    meta = {"workload.max_allowed_runtime_sec": None}
    place = tmp_path / "ogbg_jax" / "trial_1"
    write_trial(place, [0.1], point={}, seconds_a_step=seconds / 10, meta=meta)
    assert reading.read([tmp_path], "v100x8").trials[0].state == state
    assert reading.read([tmp_path], "a100x4").trials[0].state == "budget"


@pytest.mark.parametrize(("seconds", "state"), [(16_600, "budget"), (10_868, "unfinished")])
def test_self_tuning_has_half_as_much_time_again(tmp_path, seconds, state):
    """1.5 · 11,303 s, less a period of 452 s."""
    meta = {"workload.max_allowed_runtime_sec": 11_303, "workload.eval_period_time_sec": 452}
    place = tmp_path / "ogbg_jax" / "trial_1"
    write_trial(place, [0.1], point={}, seconds_a_step=seconds / 10, meta=meta)
    (place / "hparams.json").unlink()  # there is no point
    (place / "flags_0.json").write_text(json.dumps({"tuning_ruleset": "self"}))
    trial, problems = only(tmp_path)
    assert (trial.state, problems) == (state, [])


def test_the_step_budget_of_a_trial_without_an_outcome_is_that_of_its_flags(tmp_path):
    """Under the self-tuning ruleset it is larger than the step hint, 100."""
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.1] * 12, point={})
    (place / "flags_0.json").write_text(json.dumps({"tuning_ruleset": "self", "step_budget": 150}))
    trial, _ = only(tmp_path)
    assert (trial.budget, trial.state) == (150, "unfinished")


def test_a_trial_that_goes_on_with_a_larger_budget_has_that_of_its_last_start(tmp_path):
    """In its folder, and in an archive."""
    place = write_trial(tmp_path / "k" / "digits_jax" / "trial_1", [0.1] * 12, point={})
    for number, budget in ((0, 100), (2, 1000), (10, 1500)):
        flags = {"submission_path": "submissions/kfac/submission.py", "step_budget": budget}
        (place / f"flags_{number}.json").write_text(json.dumps(flags))
    archive.pack([tmp_path / "k"], tmp_path / "k.tar.xz")
    for root in ("k", "k.tar.xz"):
        (trial,) = reading.read([tmp_path / root]).trials
        assert (trial.budget, trial.state) == (1500, "unfinished")


def test_a_metrics_direction_comes_from_the_record(tmp_path):
    """The record says that less of it is better."""
    meta = {"workload.target_metric_name": "accuracy", "workload.target_direction": "lower"}
    write_trial(tmp_path / "digits_jax" / "trial_1", [0.9, 0.7, 0.95], point={}, meta=meta)
    trial, _ = only(tmp_path)
    assert trial.lower_is_better and trial.hit_at(0.8) == 1 and trial.best == 0.7


def test_every_trial_folder_is_read_once(tmp_path):
    """By its resolved path: named twice, a folder within another, and through links, of which one leads back up."""
    write_trial(tmp_path / "in" / "k" / "digits_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    write_trial(tmp_path / "away" / "digits_jax" / "trial_1", [0.9], point={}, outcome={"submission": "sgd"})
    (tmp_path / "in" / "n").symlink_to(tmp_path / "away")
    (tmp_path / "in" / "k" / "up").symlink_to(tmp_path / "in")
    records = reading.read([tmp_path / "in", tmp_path / "in" / "k", tmp_path / "in"])
    assert sorted(trial.submission for trial in records.trials) == ["kfac", "sgd"]
    assert [problem.what for problem in records.problems] == [
        "holds only trial folders that are read already; counted once"
    ] * 2


@pytest.mark.parametrize("phase", list(reading.Phase))
def test_a_phase_is_the_folder_above(tmp_path, phase):
    place = tmp_path / "e" / "kfac" / phase / "study_2" / "digits_jax" / "trial_1"
    write_trial(place, [0.9], point={}, outcome={"submission": "kfac"})
    trial, problems = only(tmp_path)
    own = phase is reading.Phase.REFERENCE
    assert (trial.phase, trial.study, trial.submission) == (phase, 2, "kfac (target's own)" if own else "kfac")
    assert trial.experiment == str(tmp_path / "e" / "kfac") and not problems


def test_trials_that_tuned_themselves_are_a_row_of_their_own(tmp_path):
    own = {"workload": "digits", "submission": "kfac"}
    rulesets = {"own": {}, "given": {"tuning_ruleset": "external"}, "tuned": {"tuning_ruleset": "self"}}
    for trial, (name, ruleset) in enumerate(rulesets.items(), start=1):
        folder = tmp_path / "experiment" / "digits_jax" / f"trial_{trial}"
        write_trial(folder, [0.9], point={"x": name}, outcome=own | ruleset)
    found = {trial.point["x"]: trial.submission for trial in reading.read([tmp_path]).trials}
    assert found == {"own": "kfac", "given": "kfac", "tuned": "kfac (self-tuning)"}


def test_an_outcome_that_the_evaluations_contradict(tmp_path):
    outcome = {"workload": "digits", "submission": "kfac", "steps_to_target": 10}
    write_trial(tmp_path / "trial_1", [0.5, 0.9], point={}, outcome=outcome)
    trial, problems = only(tmp_path)
    assert trial.state == "hit" and trial.steps[trial.hit_at(0.8)] == 20
    assert "outcome.json says that the target was reached at 10, the evaluations say 20" in problems[0]


def test_broken_and_missing_files(tmp_path):
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    (place / "hparams.json").write_text("{")
    (tmp_path / "digits_jax" / "trial_2").mkdir()
    (tmp_path / "digits_jax" / "trial_3").mkdir()
    (tmp_path / "digits_jax" / "trial_3" / "hparams.json").write_text("{}")
    trial, problems = only(tmp_path)
    told = "\n".join(problems)
    assert trial.submission == "kfac"
    assert "hparams.json cannot be read" in told and "trial_2 an empty folder" in told
    assert "trial_3/meta_data_0.json is missing" in told


def test_an_empty_experiment(tmp_path):
    records = reading.read([tmp_path])
    assert not records.trials
    assert [(p.file, p.what) for p in records.problems] == [
        (str(tmp_path), "holds no trial folder (trial_1, trial_2, …)")
    ]


def test_submissions_of_one_name_are_told_apart(tmp_path):
    for name in ("before", "after"):
        write_trial(tmp_path / name / "digits_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    records = reading.read([tmp_path])
    assert {trial.submission for trial in records.trials} == {"kfac (before)", "kfac (after)"}
    assert "hold submissions with the same name, kfac" in records.problems[0].what


def test_a_digit_that_is_no_number_may_be_in_a_name(tmp_path):
    for name in ("²", "m2²", "¾", "٣"):
        write_trial(tmp_path / name / "digits_jax" / "trial_1", [0.9], point={})
    assert len(reading.read([tmp_path]).trials) == 4


def test_experiments_of_one_folder_name_are_told_apart(tmp_path):
    for name, values in (("alice", [0.9]), ("bob", [0.1, 0.9])):
        write_trial(tmp_path / name / "first" / "digits_jax" / "trial_1", values, point={}, outcome={})
    records = reading.read([tmp_path / "alice" / "first", tmp_path / "bob" / "first"])
    assert {trial.submission for trial in records.trials} == {"first (alice/first)", "first (bob/first)"}
    folders = ", ".join(str(tmp_path / name / "first") for name in ("alice", "bob"))
    assert [problem.file for problem in records.problems] == [folders]


def test_one_submission_on_two_workloads_is_one(tmp_path):
    for name in ("digits", "letters"):
        write_trial(tmp_path / name / f"{name}_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    assert {trial.submission for trial in reading.read([tmp_path]).trials} == {"kfac"}


def test_a_metric_of_unknown_direction_is_left_out(tmp_path):
    meta = {"workload.target_metric_name": "goodness"}
    place = write_trial(tmp_path / "digits_jax" / "trial_1", [0.9], point={}, meta=meta)
    records = reading.read([tmp_path])
    assert not records.trials and str(place) in records.problems[0].file
    assert "it is not known whether a higher or a lower goodness is better" in records.problems[0].what
