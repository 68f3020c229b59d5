import csv
import json
import math
import os
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from tuning import machine, records
from tuning.metrics_logger import MetricsLogger


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    records.write_text(path, "old")

    def full_disk(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        records.write_text(path, "new and longer")
    assert path.read_text() == "old"


def test_what_killed_processes_left_goes_and_what_is_being_written_stays(tmp_path):
    for name, age_s in ((".a.csv.1.tmp", 7200), (".a.csv.2.tmp", 60), (".b.csv.1.tmp", 7200)):
        (tmp_path / name).write_text("part")
        then = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (then, then))
    records.write_text(tmp_path / "a.csv", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.csv.2.tmp", ".b.csv.1.tmp", "a.csv"]


def test_json_is_strict(tmp_path):
    content = {"x": math.inf, "y": np.float32(0.5), "z": [math.nan, (1, "b")], "n": None}
    records.write_json(tmp_path / "a.json", content)

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert content == {"x": None, "y": 0.5, "z": [None, [1, "b"]], "n": None}


def test_measurements_hold_what_was_logged(tmp_path):
    logger = MetricsLogger(tmp_path)
    logger.append_scalar_metrics({"loss": jnp.float32(0.5), "grad_norm": np.float64(2.0)}, global_step=0)
    logger.append_scalar_metrics({"loss": 0.25, "note": "warm, up"}, global_step=7)
    assert not list(tmp_path.iterdir())
    logger.flush()
    assert read(tmp_path / "measurements.csv") == [
        {"global_step": "0", "loss": "0.5", "grad_norm": "2.0", "note": ""},
        {"global_step": "7", "loss": "0.25", "grad_norm": "", "note": "warm, up"},
    ]
    assert not (tmp_path / "eval_measurements.csv").exists()


def test_eval_measurements_have_algoperfs_columns_in_order(tmp_path):
    logger = MetricsLogger(tmp_path)
    metrics = {"train/loss": 1.0, "validation/acc": 0.5, "validation/loss": 2.0, "test/loss": 3.0}
    times = {"score": 9.0, "total_duration": 8.0, "accumulated_submission_time": 7.0}
    logger.append_scalar_metrics(metrics | times, 10, preemption_count=0, is_eval=True)
    logger.flush()
    with open(tmp_path / "eval_measurements.csv", newline="") as file:
        header, row = csv.reader(file)
    assert header == [
        "global_step",
        "preemption_count",
        "score",
        "total_duration",
        "accumulated_submission_time",
        "train/loss",
        "validation/acc",
        "validation/loss",
        "test/loss",
    ]
    assert row == ["10", "0", "9.0", "8.0", "7.0", "1.0", "0.5", "2.0", "3.0"]
    assert len(read(tmp_path / "measurements.csv")) == 1


@pytest.mark.parametrize("loss", [math.nan, -math.inf, np.float32(np.nan), jnp.float32(jnp.inf)])
@pytest.mark.parametrize("flushes", [False, True])
def test_two_losses_in_a_row_that_are_not_finite_are_remembered(tmp_path, loss, flushes):
    """One alone may be a bad batch's, which the next steps get over."""
    logger = MetricsLogger(tmp_path)
    for step, value in enumerate([1.0, loss, 1.0, loss]):
        logger.append_scalar_metrics({"loss": value, "grad_norm": math.nan}, step)
        if flushes:
            logger.flush()
        assert not logger.has_diverged
    logger.append_scalar_metrics({"validation/loss": 1.0}, 3)
    logger.append_scalar_metrics({"loss": loss}, 4)
    logger.append_scalar_metrics({"loss": 1.0}, 5)
    logger.flush()
    assert logger.has_diverged
    assert [float(row["loss"]) for row in read(tmp_path / "measurements.csv") if row["loss"]][:3:2] == [1.0, 1.0]


def test_a_loss_lost_before_a_resumption_counts(tmp_path):
    first, second = MetricsLogger(tmp_path), MetricsLogger(tmp_path)
    first.append_scalar_metrics({"loss": math.nan}, 0)
    first.append_scalar_metrics({"score": 1.0}, 1, is_eval=True)
    first.flush()
    second.restore(first.rows())
    assert not second.has_diverged
    second.append_scalar_metrics({"loss": math.nan}, 2)
    assert second.has_diverged


def test_environment_tells_versions_and_hardware():
    found = machine.environment()
    assert found["numpy"] == np.__version__
    assert found["n_devices"] >= 1 and found["n_cpu_cores"] >= 1


def test_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        settings = ("user.name=a", "user.email=a@example.org", "commit.gpgsign=false", "core.hooksPath=/dev/null")
        options = [word for setting in settings for word in ("-c", setting)]
        done = subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(machine, "_PROJECT", tmp_path)
    git("init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "First")
    commit = git("rev-parse", "HEAD")
    found = machine.environment()
    assert (found["git_commit"], found["git_dirty"]) == (commit, False)
    (tmp_path / "code.py").write_text("2\n")
    found = machine.environment()
    assert (found["git_commit"], found["git_dirty"]) == (commit, True)


def test_another_repository_around_the_code_is_not_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_PROJECT", tmp_path)
    found = machine.environment()
    assert (found["git_commit"], found["git_dirty"]) == (None, None)
    monkeypatch.setenv("ALGOPERF_KFAC_COMMIT", "0123abc")
    found = machine.environment()
    assert (found["git_commit"], found["git_dirty"]) == ("0123abc", None)


def test_provenance_is_one_line():
    line = machine.provenance(machine.environment() | {"git_commit": "b" * 40, "git_dirty": True})
    assert line.endswith("Commit: bbbbbbbbbb with uncommitted changes.")
    assert line.startswith("Machine: ") and f"jax {machine.environment()['jax']}" in line
