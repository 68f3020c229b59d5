"""Sweeps with real processes and real storages."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tuning.databases import postgresql
from tests.tuning.test_resume import contents

pytestmark = pytest.mark.slow
for _library in ("optuna", "rdkit", "grain"):
    pytest.importorskip(_library)

ROOT = Path(__file__).parents[2]
N_POINTS, N_KILLS = 10, 20


def start(folder, name, *flags):
    command = [sys.executable, str(ROOT / "scripts" / "run_sweep.py"), "--workload=b3db"]
    command += ["--submission_path=submissions/nadamw", f"--num_tuning_trials={N_POINTS}", "--max_global_steps=60"]
    command += [f"--experiment_dir={folder}", f"--experiment_name={name}", f"--data_dir={folder}", "--heartbeat_s=1"]
    return subprocess.Popen([*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    return output


def trials(folder, name):
    return {i: contents(folder / name / "b3db_jax" / f"trial_{i}") for i in range(1, N_POINTS + 1)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    # As many workers, so that each has as many cores: XLA sums in another order on more of them.
    finished(start(folder, "sweep", "--workers=2"))
    return trials(folder, "sweep")


def children(pid):
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in listed]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_twenty_kills_lose_and_repeat_nothing(tmp_path, undisturbed, database):
    if database == "sqlite":
        _kill_and_compare(tmp_path, undisturbed, [])
    else:
        with postgresql(tmp_path) as url:
            _kill_and_compare(tmp_path, undisturbed, [f"--storage={url}"])


def _kill_and_compare(folder, undisturbed, flags):
    flags = [*flags, "--workers=2", "--max_retries=100"]
    rng, n_kills, supervisor = random.Random(0), 0, start(folder, "sweep", *flags)
    while n_kills < N_KILLS:
        time.sleep(rng.uniform(0.5, 5))
        workers = children(supervisor.pid)
        if supervisor.poll() is not None:
            break
        # Now and then the supervisor dies too, with its workers left alone.
        victim = supervisor.pid if n_kills % 7 == 6 else rng.choice(workers) if workers else None
        if victim is None:
            continue
        os.kill(victim, signal.SIGKILL)
        n_kills += 1
        if victim == supervisor.pid:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            supervisor.wait()
            supervisor = start(folder, "sweep", *flags)
    finished(supervisor)
    assert n_kills == N_KILLS
    assert trials(folder, "sweep") == undisturbed
    shown = json.loads(finished(start(folder, "sweep", *flags, "--show", "--json")))
    assert sorted(row["trial"] for row in shown["ranking"]) == list(range(1, N_POINTS + 1))
    assert shown["summary"]["done"] == N_POINTS and shown["summary"]["crashed"] == 0


def test_a_finished_sweep_runs_nothing_and_another_one_is_refused(tmp_path):
    flags = ["--workers=1", "--num_tuning_trials=1", "--max_global_steps=10"]
    finished(start(tmp_path, "sweep", *flags))
    file = tmp_path / "sweep" / "b3db_jax" / "trial_1" / "outcome.json"
    before = file.stat().st_mtime_ns
    assert "budget" in finished(start(tmp_path, "sweep", *flags)) and file.stat().st_mtime_ns == before
    other = start(tmp_path, "sweep", *flags, "--rng_seed=1")
    output, _ = other.communicate()
    assert other.returncode == 2 and "has another seed: 0, not 1" in output and "Traceback" not in output


def test_a_missing_data_set_is_refused_in_one_line_and_no_trial_is_spent(tmp_path):
    flags = ["--workload=ogbg", "--workers=1", "--num_tuning_trials=2"]
    process = start(tmp_path, "sweep", *flags)
    output, _ = process.communicate()
    assert process.returncode == 2 and "Traceback" not in output
    last = output.splitlines()[-1]
    assert last.startswith("error: a worker refused: data set ogbg_molpcba/0.1.3 is not there")
    assert "prepare_data.py --dataset=ogbg_molpcba" in last
    shown = json.loads(finished(start(tmp_path, "sweep", *flags, "--show", "--json")))
    assert shown["summary"]["done"] == 0


def test_a_trial_that_dies_in_native_code_fails_alone(tmp_path):
    folder = tmp_path / "aborting"
    folder.mkdir()
    (folder / "submission.py").write_text(
        "import os\n"
        "from submissions.nadamw import submission as _own\n"
        "data_selection, get_batch_size = _own.data_selection, _own.get_batch_size\n"
        "init_optimizer_state, prepare_for_eval = _own.init_optimizer_state, _own.prepare_for_eval\n"
        "def update_params(*args, **kwargs):\n"
        "    if kwargs['hyperparameters'].learning_rate > 1 and kwargs['global_step'] == 5:\n"
        "        os.abort()\n"
        "    return _own.update_params(*args, **kwargs)\n"
    )
    points = [{"learning_rate": rate} for rate in (1e-3, 2.0, 2e-3)]
    (folder / "tuning_search_space.json").write_text(json.dumps(points))
    flags = [f"--submission_path={folder}", "--num_tuning_trials=3", "--max_global_steps=10", "--max_retries=1"]
    finished(start(tmp_path, "sweep", "--workers=1", *flags))
    shown = json.loads(finished(start(tmp_path, "sweep", *flags, "--show", "--json")))
    reasons = {row["trial"]: row["reason"] for row in shown["ranking"]}
    assert reasons == {1: "budget", 2: "crashed", 3: "budget"}
    crashed = json.loads((tmp_path / "sweep" / "b3db_jax" / "trial_2" / "outcome.json").read_text())
    assert "its worker died 2 times" in crashed["error"]
    assert b"Fatal Python error: Aborted" in (tmp_path / "sweep" / "logs" / "worker_0.log").read_bytes()


_HOLD = """
import sys, time
from tuning.point_queue import PointQueue
queue = PointQueue(sys.argv[1], "skewed", {}, [{"x": float(i)} for i in range(3)], heartbeat_s=1)
claim = queue.claim()
with queue.alive(claim):
    print("holding", claim.index, flush=True)
    time.sleep(float(sys.argv[2]))
print(queue.finish(claim, {}, 1.0), flush=True)
"""
_DRAIN = """
import select, sys, time
from tuning.point_queue import PointQueue
queue = PointQueue(sys.argv[1], "skewed", {}, [{"x": float(i)} for i in range(3)], heartbeat_s=1)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    if (claim := queue.claim()) is not None:
        print(claim.index, flush=True)
        queue.finish(claim, {}, 1.0)
    select.select([], [], [], 0.1)  # libfaketime breaks time.sleep
"""


@pytest.mark.parametrize("shift", ["+5m", "-5m"])
def test_a_host_whose_clock_is_five_minutes_off_steals_no_living_trial(tmp_path, shift):
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed: apt install faketime")
    with postgresql(tmp_path) as url:
        run = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
        holder = subprocess.Popen([sys.executable, "-c", _HOLD, url, "12"], **run)
        assert holder.stdout.readline() == "holding 1\n"
        other = [faketime, "-f", shift, "env", "FAKETIME_DONT_FAKE_MONOTONIC=1", sys.executable, "-c", _DRAIN, url, "8"]
        drained, _ = subprocess.Popen(other, **run).communicate()
        assert drained.split() == ["2", "3"]
        assert holder.communicate()[0] == "True\n"
