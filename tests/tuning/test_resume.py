"""A trial that was cut short and resumed leaves the files of one that never stopped, but for the times."""

import csv
import dataclasses
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.molecules import data_dir
from tuning import submission
from tuning.claim import Claim
from tuning.description import describe
from tuning.trial import run_trial
from workloads import registry

ROOT = Path(__file__).parents[2]
# Columns and fields that hold times, or count the interruptions.
_TIMES = {"score", "total_duration", "preemption_count"}
_TIMES |= {f"accumulated_{kind}_time" for kind in ("submission", "eval", "logging")}


def contents(trial_dir):
    """Everything a trial wrote, without times."""
    found = {}
    for name in ("measurements.csv", "eval_measurements.csv"):
        with open(trial_dir / name, newline="") as file:
            found[name] = [{k: v for k, v in row.items() if k not in _TIMES} for row in csv.DictReader(file)]
    outcome = json.loads((trial_dir / "outcome.json").read_text())
    left_out = ("seconds", "compiles", "hits", "resumptions")
    found["outcome"] = {k: v for k, v in outcome.items() if not any(word in k for word in left_out)}
    return found


def preemptions(trial_dir):
    with open(trial_dir / "eval_measurements.csv", newline="") as file:
        return [int(row["preemption_count"]) for row in csv.DictReader(file)]


class Cut(BaseException):
    """As a kill: nothing of the trial catches it."""


@pytest.fixture
def run(tmp_path):
    chosen, workload = submission.load("submissions/nadamw"), registry.load("mnist_vit")
    workload.budget = dataclasses.replace(workload.budget, eval_period_steps=10)
    point = {"learning_rate": 2e-3}

    def start(name, cut_at=None, **options):
        def report(progress):
            if progress.global_step == cut_at:
                raise Cut

        description = describe(
            "mnist_vit",
            workload,
            chosen,
            point,
            rng_seed=0,
            trial_index=1,
            data_dir=str(tmp_path),
            max_global_steps=50,
        )
        with Claim.take(tmp_path / name) as claim:
            return run_trial(description, workload, chosen, claim, report=report, checkpoints_to_keep=2, **options)

    return start


def test_a_resumed_trial_equals_one_that_never_stopped(run, tmp_path):
    whole = run("whole")
    for cut_at in (15, 37, 38):
        with pytest.raises(Cut):
            run("cut", cut_at=cut_at, resume=True)
    resumed = run("cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert preemptions(tmp_path / "whole") == [0] * 5
    # A checkpoint knows of the interruptions before it: the third start and the fourth both went on from step 30's.
    assert preemptions(tmp_path / "cut") == [0, 1, 1, 2, 2]
    assert [each["global_step"] for each in resumed.resumptions] == [10, 30]
    # The clock has every second once: that of the steps after a checkpoint, lost with a cut, is not in it.
    assert resumed.global_step == whole.global_step == 50
    with open(tmp_path / "cut" / "eval_measurements.csv", newline="") as file:
        seconds = [float(row["accumulated_submission_time"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds) and resumed.submission_seconds == seconds[-1]


@pytest.mark.slow
def test_resuming_without_a_checkpoint_starts_anew(run, tmp_path):
    with pytest.raises(Cut):
        run("cut", cut_at=5)
    assert run("cut", resume=True).global_step == 50
    assert preemptions(tmp_path / "cut") == [0] * 5


def _start(folder, name):
    """The process of a trial on molecules, which goes on where an earlier one was killed."""
    command = [sys.executable, str(ROOT / "scripts" / "run_trial.py"), "--workload=b3db", "--max_global_steps=400"]
    command += [
        "--submission_path=submissions/kfac_muon_reduce",
        f"--experiment_dir={folder}",
        f"--data_dir={data_dir()}",
    ]
    command += [f"--experiment_name={name}", "--resume", "--checkpoint_period_s=1"]
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


@pytest.mark.slow
def test_thirty_kills_at_random_moments_lose_and_repeat_nothing(tmp_path):
    def trial(name):
        return tmp_path / name / "b3db_jax" / "trial_1"

    def end(name, process):
        assert process.wait() == 0, (tmp_path / f"{name}.log").read_text()

    end("whole", _start(tmp_path, "whole"))
    began, process = time.monotonic(), _start(tmp_path, "cut_0")  # the whole trial has compiled its programs
    while not list(trial("cut_0").glob("checkpoints/*.checkpoint")):
        assert process.poll() is None, (tmp_path / "cut_0.log").read_text()
        time.sleep(0.05)
    first_checkpoint_s = time.monotonic() - began
    process.kill()
    process.wait()

    rng, n_kills, n_ended = random.Random(0), 0, 0
    while n_kills < 30:
        process = _start(tmp_path, f"cut_{n_ended}")
        try:
            process.wait(timeout=rng.uniform(0, 1.5 * first_checkpoint_s))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            n_kills += 1
        else:  # another trial is killed from then on
            end(f"cut_{n_ended}", process)
            n_ended += 1
    end(f"cut_{n_ended}", _start(tmp_path, f"cut_{n_ended}"))

    for name in (f"cut_{i}" for i in range(n_ended + 1)):
        assert contents(trial(name)) == contents(trial("whole"))
        with open(trial(name) / "eval_measurements.csv", newline="") as file:
            seconds = [float(row["accumulated_submission_time"]) for row in csv.DictReader(file)]
        assert seconds == sorted(seconds)
    before = (trial("cut_0") / "eval_measurements.csv").read_bytes()
    end("cut_0", _start(tmp_path, "cut_0"))
    assert (trial("cut_0") / "eval_measurements.csv").read_bytes() == before
