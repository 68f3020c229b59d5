"""Sweeps as jobs of a Slurm of one node, started for the test."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.tuning.clusters import slurm
from tests.tuning.databases import postgresql
from tests.tuning.sweeps import ROOT, arguments, finished, reasons, refusal, shown, start
from tests.tuning.test_resume import preemptions
from tuning import slurm as launcher

pytestmark = pytest.mark.slow

N_POINTS = 4
POINTS = [f"--num_tuning_trials={N_POINTS}", "--max_global_steps=20"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}


def ask(cluster, *command):
    return subprocess.run(command, env=cluster, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def assert_each_point_ended_once(folder, name, *flags):
    found = shown(folder, name, *flags)
    assert [row["trial"] for row in sorted(found["ranking"], key=lambda row: row["trial"])] == [1, 2, 3, 4]
    assert {row["reason"] for row in found["ranking"]} == {"budget"}
    for index in range(1, N_POINTS + 1):
        outcome = json.loads((folder / name / "b3db_jax" / f"trial_{index}" / "outcome.json").read_text())
        assert (outcome["trial_index"], outcome["global_step"]) == (index, 20)


def test_the_launcher_sweeps_by_an_array_of_jobs(cluster, tmp_path):
    flags = [*POINTS, "--launcher=slurm", "--workers=2", "--slurm_option=partition=spare", "--slurm_option=time=30"]
    sweep = start(tmp_path, "sweep", *flags, env=cluster)
    seen = set()
    while sweep.poll() is None:
        seen |= set(ask(cluster, "squeue", "--noheader", "--array", "--format=%i %P %l %j").splitlines())
        time.sleep(0.5)
    finished(sweep)
    jobs, partitions, limits, names = zip(*(line.split() for line in seen), strict=True)
    assert len(jobs) == 2 and {job.split("_")[1] for job in jobs} == {"0", "1"}
    assert (set(partitions), set(limits), set(names)) == ({"spare"}, {"30:00"}, {"sweep"})
    assert_each_point_ended_once(tmp_path, "sweep")
    logs = "".join(file.read_text() for file in (tmp_path / "sweep" / "logs").rglob("*.out"))
    assert sorted(line for line in logs.splitlines() if line.startswith("trial ")) == [
        f"trial {index}: budget" for index in range(1, N_POINTS + 1)
    ]
    assert "4/4 done" in finished(start(tmp_path, "sweep", *flags, env=cluster))
    assert ask(cluster, "squeue", "--noheader") == ""


def test_the_batch_file_sweeps_by_an_array_over_postgresql(cluster, tmp_path):
    with postgresql() as url:
        flags = [*POINTS, f"--storage={url}"]
        submit = ["sbatch", "--array=1-2", f"--output={tmp_path}/%a.log", "scripts/sweep.sbatch"]
        ask(cluster, *submit, *arguments(tmp_path, "sweep", *flags))
        while ask(cluster, "squeue", "--noheader"):
            time.sleep(1)
        logs = "".join((tmp_path / f"{task}.log").read_text() for task in (1, 2))
        assert sorted(logs.split("\n")[:-1]) == [f"trial {index}: budget" for index in range(1, N_POINTS + 1)], logs
        assert_each_point_ended_once(tmp_path, "sweep", *flags)


def test_a_job_that_slurm_is_about_to_end_is_queued_again_and_goes_on(cluster, tmp_path):
    flags = ["--num_tuning_trials=1", "--max_global_steps=300", "--launcher=slurm", "--workers=1", "--max_retries=0"]
    sweep = start(tmp_path, "sweep", *flags, env=cluster)
    trial_dir = tmp_path / "sweep" / "b3db_jax" / "trial_1"
    while not any(trial_dir.glob("checkpoints/*.checkpoint")):
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.1)
    (job,) = ask(cluster, "squeue", "--noheader", "--format=%A").split()
    ask(cluster, "scancel", "--signal=USR2", job)  # as Slurm itself, by the job's --signal
    while ask(cluster, "squeue", "--noheader", "--format=%T").strip() != "PENDING":
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.1)
    # Slurm holds the job back for two minutes: started sooner, it can be ended by late messages about its first run.
    finished(sweep)
    (row,) = shown(tmp_path, "sweep")["ranking"]
    assert row["reason"] in (None, "budget")
    assert preemptions(trial_dir)[-1] == 1


def test_what_slurm_refuses_is_one_line_and_gpus_are_asked_for_where_there_are_some(cluster, tmp_path, monkeypatch):
    flags = [*POINTS, "--launcher=slurm", "--slurm_option=partition=nosuch"]
    line = refusal(start(tmp_path, "sweep", *flags, env=cluster))
    assert "Slurm refused the jobs: " in line and "invalid partition specified: nosuch" in line
    assert reasons(tmp_path, "sweep") == {}
    monkeypatch.setitem(os.environ, "SLURM_CONF", cluster["SLURM_CONF"])
    assert not launcher._has_gpus({}) and not launcher._has_gpus({"partition": "spare"})
    sinfo = tmp_path / "sinfo"
    sinfo.write_text('#!/bin/sh\ncase "$*" in *"%G -p fast") echo "gpu:h100:4(S:0)";; *) echo "(null)";; esac\n')
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launcher._has_gpus({"partition": "fast"}) and not launcher._has_gpus({})
