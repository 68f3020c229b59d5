"""scripts/pack_trials.py, export_logs.py and export_submission.py as processes: where they write, or one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuning.report.folders import write_trial

SCRIPTS = Path(__file__).parents[2] / "scripts"
EXPORT = ("export_submission.py", "--submission=nadamw", "--ruleset=external_tuning")


@pytest.fixture
def trial(tmp_path):
    place = write_trial(tmp_path / "first" / "digits_jax" / "trial_1", [0.9], point={})
    (place / "flags_0.json").write_text(json.dumps({"submission": "kfac"}))
    return place


def run(home: Path, script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / script, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("out", "script", "arguments"),
    [
        ("t.tar.xz", "pack_trials.py", ["first"]),
        ("logs", "export_logs.py", ["first"]),
        ("out", *EXPORT[:1], EXPORT[1:]),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, trial, out, script, arguments):
    (tmp_path / "file").write_text("")
    words = [tmp_path / word if word == "first" else word for word in arguments]
    done = run(tmp_path, script, *words, f"--out={tmp_path / 'file' / out}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: cannot ") and done.stderr.endswith(": give another --out\n")


@pytest.mark.parametrize(
    ("script", "words"),
    [("pack_trials.py", ["--out=t.tar.xz"]), ("export_logs.py", ["--out=logs"]), ("report.py", ["--out=report"])],
)
def test_a_tilde_without_a_home_folder_is_one_line(tmp_path, script, words):
    done = run(tmp_path, script, "~nobody_of_this_name/trials", *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert ": give the path in full, or set HOME" in done.stderr


def test_a_tilde_is_the_home_folder(tmp_path, trial):
    """The shell leaves it as it is after `--out=`."""
    assert run(tmp_path, "export_logs.py", tmp_path / "first", "--out=~/logs").returncode == 0
    assert (tmp_path / "logs/kfac/study_1/digits_jax/trial_1/eval_measurements.csv").exists()
    assert run(tmp_path, *EXPORT, "--out=~/out").returncode == 0
    assert (tmp_path / "out/external_tuning/nadamw/submission.py").exists()
