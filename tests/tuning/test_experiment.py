import dataclasses
import io
import json
import logging
import math
import os
import sys

import pytest
from fake_trial import FakeWorkload, fake_submission
from rich.console import Console

from tuning import compilation_cache, experiment, progress, submission, trials_request
from tuning.claim import Claim, FolderClaimed
from tuning.errors import UserError
from tuning.experiment import Request, run_experiment
from tuning.outcome import Progress


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """A Request over three learning rates, for a fake workload and a submission that diverges at rate 9."""

    def log(call):
        loss = math.nan if call.hyperparameters.learning_rate == 9 else 1.0
        call.workload.metrics_logger.append_scalar_metrics({"loss": loss}, call.global_step)

    monkeypatch.setattr(trials_request.registry, "load", lambda name, profile: FakeWorkload(target=0.1))
    monkeypatch.setattr(trials_request.submission, "load", lambda path: fake_submission(log))
    space = tmp_path / "space.json"
    space.write_text(json.dumps([{"learning_rate": rate} for rate in (1, 9, 2)]))

    def request_for(**changes):
        given = dict(workload="fake", submission_path="counting", tuning_search_space=str(space))
        return Request(**(given | dict(experiment_dir=str(tmp_path), experiment_name="e") | changes))

    return request_for


def test_a_diverging_trial_does_not_stop_the_others(request_for, tmp_path):
    outcomes = run_experiment(request_for(num_tuning_trials=5))
    assert [(o.trial_index, o.reason, o.steps_to_target) for o in outcomes] == [
        (1, None, 10),
        (2, "diverged", None),
        (3, None, 10),
    ]
    folders = sorted((tmp_path / "e" / "fake_jax").iterdir())
    assert [folder.name for folder in folders] == ["trial_1", "trial_2", "trial_3"]
    assert [json.loads((f / "hparams.json").read_text())["learning_rate"] for f in folders] == [1, 9, 2]
    assert json.loads((folders[0] / "flags_0.json").read_text())["hyperparameters"] == {"learning_rate": 1}


def test_a_trial_goes_on_to_the_end_of_its_budget_if_asked_to(request_for):
    for stops, last_step in ((True, 10), (False, 40)):
        (hit,) = run_experiment(request_for(max_global_steps=40, stop_at_target=stops, overwrite=True))
        assert (hit.reason, hit.steps_to_target, hit.global_step) == (None, 10, last_step)


def test_an_existing_experiment_is_kept_unless_overwritten(request_for, tmp_path):
    folder = tmp_path / "e" / "fake_jax"
    folder.mkdir(parents=True)
    (folder / "old").write_text("precious")
    with pytest.raises(UserError, match="e/fake_jax' exists; give --resume, --overwrite or another --experiment_name"):
        run_experiment(request_for())
    assert [path.name for path in folder.iterdir()] == ["old"]
    with pytest.raises(UserError, match="nowhere.json"):
        run_experiment(request_for(overwrite=True, tuning_search_space="nowhere.json"))
    assert (folder / "old").exists()
    run_experiment(request_for(overwrite=True))
    assert [path.name for path in folder.iterdir()] == ["trial_1"]


@pytest.mark.parametrize("name", ["study.db", "study.id"])
def test_a_sweep_whose_storage_counts_the_trials_is_not_overwritten(request_for, tmp_path, name):
    run_experiment(request_for())
    (tmp_path / "e" / name).write_text("a sweep's")
    with pytest.raises(
        UserError, match="e' belongs to a sweep, .*; give another --experiment_name, or remove that folder"
    ):
        run_experiment(request_for(overwrite=True))
    assert (tmp_path / "e" / "fake_jax" / "trial_1" / "outcome.json").exists()
    (tmp_path / "e" / name).unlink()
    assert run_experiment(request_for(overwrite=True))[0].reason is None


def test_the_table_has_a_row_per_trial_with_both_clocks(request_for):
    text, (hit, miss) = io.StringIO(), run_experiment(request_for(num_tuning_trials=2))
    hit = dataclasses.replace(hit, seconds_to_target=19.61, compile_seconds_to_target=18.21)
    progress.print_outcomes([hit, miss], Console(file=text, width=200))
    lines = [line for line in text.getvalue().splitlines() if "│" in line]
    first, second = [line.replace(" ", "").split("│")[1:-1] for line in lines]
    assert first == ["1", "target", "10", "19.61", "1.40", "0.1000"]
    assert second == ["2", "diverged", "-", "-", "-", "-"]


def test_the_progress_line_tells_step_metric_rate_and_time_left():
    at_30 = Progress(30, 230, "accuracy", 0.5)
    line = progress.describe("t", at_30, 0.9, steps_per_s=2.0)
    assert line == "t  step 30/230  accuracy 0.5000 (target 0.9000)  2.0 steps/s, at most 0:01:40 left"
    early = Progress(1, 20000, "accuracy", None)
    assert progress.describe("t", early, math.inf, None) == "t  step 1/20000  accuracy - (no target)"


def test_without_a_terminal_lines_are_few_and_plain(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    text = io.StringIO()
    with progress.ProgressLine("t", 0.9, Console(file=text, width=40)) as report:
        for step in range(1, 251):
            report(Progress(step, 500, "accuracy", 0.25))
            now[0] += 0.125
    lines = text.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["1/500", "81/500", "161/500", "241/500", "250/500"]
    assert lines[1].endswith("8.0 steps/s, at most 0:00:52 left") and "\x1b" not in text.getvalue()


def test_on_a_narrow_terminal_the_live_line_shows_target_rate_and_time_left():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    with progress.ProgressLine("b3db kfac_reduce trial 1/1", 0.54, console) as report:
        report._recent_steps.append((progress.time.perf_counter() - 1.0, 0))
        report(Progress(30, 300, "mean_average_precision", 0.5))
    shown = " ".join(text.getvalue().split())
    assert "(target 0.5400)" in shown and "steps/s" in shown and shown.count("left") and "…" not in shown


def test_a_reader_of_the_output_that_leaves_does_not_end_the_trial(request_for, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        outcomes = run_experiment(request_for())
        progress.print_outcomes(outcomes)
    assert outcomes[0].steps_to_target == 10


@pytest.mark.parametrize("name", ["q?x", "h#x", "a%41b", "cuda/", "µ ✓", ".hidden"])
def test_a_name_is_one_folder_as_it_is_written(request_for, tmp_path, name):
    assert run_experiment(request_for(experiment_name=name))[0].reason is None
    assert (tmp_path / name.rstrip("/") / "fake_jax" / "trial_1" / "outcome.json").exists()
    assert len(list(tmp_path.iterdir())) == 2  # with the search space
    assert run_experiment(request_for(experiment_name=name, resume=True))[0].resumptions == []


@pytest.mark.parametrize("name", ["", "/", "a/b", "../e", "..", ".", "new\nline", "/tmp/x"])
def test_what_is_no_name_of_one_folder_is_refused(request_for, tmp_path, name):
    with pytest.raises(UserError, match="is not a folder name; give one without '/'"):
        run_experiment(request_for(experiment_name=name))
    assert [path.name for path in tmp_path.iterdir()] == ["space.json"]


def test_a_place_that_cannot_be_written_is_one_line_before_the_set_up(request_for, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "run_trial", lambda *arguments, **named: pytest.fail("set up"))
    (tmp_path / "file").write_text("")
    for changes, cure in (
        (dict(experiment_dir=str(tmp_path / "file")), "another --experiment_dir"),
        (dict(experiment_name="file"), "another --experiment_dir"),
        (dict(experiment_name="n" * 300), "a shorter --experiment_name"),
        (dict(experiment_dir=str(tmp_path / ("n" * 300))), "a shorter --experiment_name or --experiment_dir"),
    ):
        with pytest.raises(UserError, match=f"cannot write into .*give {cure}") as error:
            run_experiment(request_for(**changes))
        assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "space.json"}


def test_a_second_process_is_refused_before_the_set_up_whatever_it_asks_for(request_for, tmp_path, monkeypatch):
    run_experiment(request_for())
    monkeypatch.setattr(experiment, "run_trial", lambda *arguments, **named: pytest.fail("set up"))
    for taken in ("fake_jax", "fake_jax/trial_1"):  # by run_trial.py, and by a worker of a sweep
        with Claim.take(tmp_path / "e" / taken, beat_s=0.05):
            for changes in ({"overwrite": True}, {"resume": True, "rng_seed": 2}):
                with pytest.raises(FolderClaimed, match=rf"in use by process {os.getpid()} on host"):
                    run_experiment(request_for(**changes))
    assert (tmp_path / "e" / "fake_jax" / "trial_1" / "outcome.json").exists()


def test_no_home_is_one_line_that_names_the_flag(monkeypatch, caplog):
    def fail(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(experiment.disk.Path, "expanduser", fail)
    for name in ("experiment_dir", "data_dir"):
        with pytest.raises(UserError, match=f"'~/data' needs a home folder, .*: give --{name}, or set HOME"):
            experiment.disk.expanded("~/data", name)
    with pytest.raises(UserError, match="'~/mine' needs a home folder, .*: give the path in full, or set HOME"):
        submission.load("~/mine")
    kept = compilation_cache.jax.config.jax_compilation_cache_dir
    with caplog.at_level(logging.WARNING):
        compilation_cache.use("~/cache")
    assert "compiled programs are not kept (Could not determine home directory.)" in caplog.text
    assert compilation_cache.jax.config.jax_compilation_cache_dir == kept
