"""Sweeps with real processes and real storages."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.tuning.databases import postgresql
from tests.tuning.limits import fill, memory_limit, small_disk
from tests.tuning.programs import needed
from tests.tuning.sweeps import ROOT, broken_submission, children, finished, reasons, refusal, shown, start
from tests.tuning.test_resume import contents

pytestmark = pytest.mark.slow

N_POINTS, N_KILLS = 10, 20
POINTS = [f"--num_tuning_trials={N_POINTS}", "--max_global_steps=300", "--workers=2"]


def trials(folder, name):
    return {i: contents(folder / name / "b3db_jax" / f"trial_{i}") for i in range(1, N_POINTS + 1)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    # As many workers, so that each has as many cores: XLA sums in another order on more of them.
    finished(start(folder, "sweep", *POINTS))
    return trials(folder, "sweep")


def killed(pid):
    """Whether there was such a process to kill: it may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_twenty_kills_lose_and_repeat_nothing(tmp_path, undisturbed, database):
    if database == "sqlite":
        _kill_and_compare(tmp_path, undisturbed, [])
    else:
        with postgresql() as url:
            _kill_and_compare(tmp_path, undisturbed, [f"--storage={url}"])


def _kill_and_compare(folder, undisturbed, flags):
    flags = [*flags, *POINTS, "--max_retries=100"]
    names = ["sweep_1"]
    rng, n_kills, supervisor = random.Random(0), 0, start(folder, names[-1], *flags)
    while n_kills < N_KILLS:
        time.sleep(rng.uniform(0.5, 3.5))
        workers = children(supervisor.pid)
        if supervisor.poll() is not None:  # another sweep is killed from then on
            finished(supervisor)
            names.append(f"sweep_{len(names) + 1}")
            supervisor = start(folder, names[-1], *flags)
            continue
        # Now and then the supervisor dies too, with its workers left alone.
        victim = supervisor.pid if n_kills % 7 == 6 else rng.choice(workers) if workers else None
        if victim is None or not killed(victim):
            continue
        n_kills += 1
        if victim == supervisor.pid:
            for worker in workers:
                killed(worker)
            supervisor.wait()
            supervisor = start(folder, names[-1], *flags)
    finished(supervisor)
    for name in names:
        assert trials(folder, name) == undisturbed
        found = shown(folder, name, *flags)
        assert sorted(row["trial"] for row in found["ranking"]) == list(range(1, N_POINTS + 1))
        assert found["summary"]["done"] == N_POINTS and found["summary"]["crashed"] == 0


def test_workers_that_stood_still_and_came_back_have_written_nothing(tmp_path, undisturbed):
    flags = [*POINTS, "--max_retries=100", "--heartbeat_s=2"]
    rng, supervisor, n_stops = random.Random(1), start(tmp_path, "sweep", *flags), 0
    while n_stops < 4 and supervisor.poll() is None:
        time.sleep(rng.uniform(0.5, 3))
        workers = children(supervisor.pid)
        if len(workers) < 2 or not (tmp_path / "sweep" / "b3db_jax" / "trial_2").exists():
            continue
        victim = rng.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            time.sleep(15)  # beyond both leases, of six seconds each
            os.kill(victim, signal.SIGCONT)
            n_stops += 1
    finished(supervisor)
    assert trials(tmp_path, "sweep") == undisturbed
    logs = "".join(file.read_text() for file in (tmp_path / "sweep" / "logs").iterdir())
    assert "taken over" in logs
    ends = sorted(
        line for line in logs.splitlines() if line.startswith("trial ") and line.endswith((": budget", "step"))
    )
    assert len(set(ends)) == len(ends) == N_POINTS


def test_a_finished_sweep_runs_nothing_and_another_one_is_refused(tmp_path):
    flags = ["--workers=1", "--num_tuning_trials=1", "--max_global_steps=10"]
    finished(start(tmp_path, "sweep", *flags))
    file = tmp_path / "sweep" / "b3db_jax" / "trial_1" / "outcome.json"
    before = file.stat().st_mtime_ns
    assert "budget" in finished(start(tmp_path, "sweep", *flags)) and file.stat().st_mtime_ns == before
    assert "has another rng_seed: 0, not 1" in refusal(start(tmp_path, "sweep", *flags, "--rng_seed=1"))


def test_a_missing_data_set_is_refused_in_one_line_and_no_trial_is_spent(tmp_path):
    flags = ["--workload=ogbg", f"--data_dir={tmp_path}", "--workers=1", "--num_tuning_trials=2"]
    last = refusal(start(tmp_path, "sweep", *flags))
    assert last.startswith("error: a worker cannot run: data set ogbg_molpcba/0.1.3 is not there")
    assert "prepare_data.py --dataset=ogbg_molpcba" in last
    found = shown(tmp_path, "sweep")["summary"]
    assert found["done"] == found["running"] == 0


def test_a_trial_that_dies_in_native_code_fails_alone(tmp_path):
    folder = broken_submission(tmp_path / "aborting", "os.abort()")
    flags = [f"--submission_path={folder}", "--num_tuning_trials=3", "--max_global_steps=10", "--max_retries=1"]
    finished(start(tmp_path, "sweep", "--workers=1", *flags))
    assert reasons(tmp_path, "sweep") == {1: "budget", 2: "crashed", 3: "budget"}
    crashed = json.loads((tmp_path / "sweep" / "b3db_jax" / "trial_2" / "outcome.json").read_text())
    (log,) = (tmp_path / "sweep" / "logs").iterdir()
    assert crashed["error"] == f"its worker died 2 times; {log} says how"
    assert b"Fatal Python error: Aborted" in log.read_bytes()


@pytest.mark.parametrize("limit", ["of JAX", "of the process", "of its control group"])
def test_a_trial_that_is_out_of_memory_fails_alone(tmp_path, limit):
    # The first is refused by the allocator (RESOURCE_EXHAUSTED), the second by the system, the third is killed.
    size, before = {
        "of JAX": ("2**46", []),
        "of the process": ("40 * 2**30", ["bash", "-c", f'ulimit -v {24 * 2**20}; exec "$@"', "limited"]),
        "of its control group": ("4 * 2**30", []),
    }[limit]
    folder = broken_submission(tmp_path / "greedy", f"jnp.ones(({size} // 4,), 'float32').block_until_ready()")
    flags = [f"--submission_path={folder}", "--num_tuning_trials=3", "--max_global_steps=10", "--max_retries=1"]
    with contextlib.ExitStack() as stack:
        if limit == "of its control group":
            before = stack.enter_context(memory_limit(3 * 2**30))
        finished(start(tmp_path, "sweep", "--workers=1", *flags, before=before))
    assert reasons(tmp_path, "sweep") == {1: "budget", 2: "crashed", 3: "budget"}
    crashed = json.loads((tmp_path / "sweep" / "b3db_jax" / "trial_2" / "outcome.json").read_text())
    words = "its worker died 2 times" if limit == "of its control group" else "RESOURCE_EXHAUSTED"
    assert words in crashed["error"]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_disk_that_gets_full_meanwhile_ends_the_sweep_which_then_goes_on(tmp_path, undisturbed, database):
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", "64m"))
        flags = [*POINTS, "--max_retries=0"]  # a death would be a crash
        if database == "postgresql":
            flags.append(f"--storage={stack.enter_context(postgresql())}")
        sweep = start(disk, "sweep", *flags)
        while not (disk / "sweep" / "b3db_jax" / "trial_4").exists():  # by then, two are done and two are running
            assert sweep.poll() is None, sweep.communicate()[0]
            time.sleep(0.1)
        filler = fill(disk)
        line = refusal(sweep)
        assert any(word in line for word in ("No space left on device", "database or disk is full"))
        assert "are kept" in line or "is kept" in line
        filler.unlink()
        found = shown(disk, "sweep", *flags)["summary"]
        assert 2 <= found["done"] < N_POINTS and found["crashed"] == 0
        finished(start(disk, "sweep", *flags))
        assert trials(disk, "sweep") == undisturbed
        assert not [*disk.rglob("*.tmp")]


_HOLD = """
import sys
from tuning.point_queue import PointQueue
queue = PointQueue(sys.argv[1], "skewed", {}, [{"x": float(i)} for i in range(3)], heartbeat_s=1)
claim = queue.lease()
with queue.alive(claim):
    print("holding", claim.index, flush=True)
    sys.stdin.read()
print(queue.finish(claim, {}, 1.0), flush=True)
"""
_DRAIN = """
import select, sys, time
from tuning.point_queue import PointQueue
queue = PointQueue(sys.argv[1], "skewed", {}, [{"x": float(i)} for i in range(3)], heartbeat_s=1)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    if (claim := queue.lease()) is not None:
        print(claim.index, flush=True)
        queue.finish(claim, {}, 1.0)
    select.select([], [], [], 0.1)  # libfaketime breaks time.sleep
"""


@pytest.mark.parametrize("shift", ["+5m", "-5m"])
def test_a_host_whose_clock_is_five_minutes_off_steals_no_living_trial(tmp_path, shift):
    faketime = needed("faketime", "faketime")
    with postgresql() as url:
        run = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
        holder = subprocess.Popen([sys.executable, "-c", _HOLD, url], stdin=subprocess.PIPE, **run)
        assert holder.stdout.readline() == "holding 1\n"
        other = [faketime, "-f", shift, "env", "FAKETIME_DONT_FAKE_MONOTONIC=1", sys.executable, "-c", _DRAIN, url, "8"]
        drained, _ = subprocess.Popen(other, **run).communicate()
        assert drained.split() == ["2", "3"]
        assert holder.communicate()[0] == "True\n"  # it held the point until now, when its input ends
