"""Sweeps whose machines, clocks, servers and supervisors fail, with real processes."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.tuning.databases import postgresql_server
from tests.tuning.programs import needed
from tests.tuning.sweeps import ROOT, children, finished, shown, start
from tuning.point_queue import PointQueue
from tuning.point_status import stored

pytestmark = pytest.mark.slow


def _logs(folder):
    return "".join(file.read_text() for file in (folder / "sweep" / "logs").iterdir())


def _states(database):
    return [point.state for _, point in stored(database, "sweep")]


def _wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def test_without_a_device_no_point_is_taken(tmp_path):
    flags = ["--num_tuning_trials=8", "--workers=2"]
    sweep = start(tmp_path, "sweep", *flags, env=os.environ | {"JAX_PLATFORMS": "foo"})
    output, _ = sweep.communicate()
    last = output.splitlines()[-1]
    assert sweep.returncode == 69 and "Traceback" not in output
    assert last.startswith("error: no worker can run here: JAX finds no device to compute on (") and "foo" in last
    assert last.endswith("; no point was lost")
    found = shown(tmp_path, "sweep")["summary"]
    assert (found["points"], found["waiting"], found["crashed"]) == (8, 8, 0)


def test_two_supervisors_at_once_end_every_point_once(tmp_path):
    flags = ["--num_tuning_trials=5", "--max_global_steps=20", "--workers=1"]
    for sweep in [start(tmp_path, "sweep", *flags) for _ in range(2)]:
        finished(sweep)
    ends = sorted(line for line in _logs(tmp_path).splitlines() if line.endswith(": budget"))
    assert ends == [f"trial {index}: budget" for index in range(1, 6)]
    with sqlite3.connect(tmp_path / "sweep" / "study.db") as connection:
        states = connection.execute("SELECT state, count(*) FROM trials GROUP BY state").fetchall()
    assert dict(states)["COMPLETE"] == 5 and set(dict(states)) <= {"COMPLETE", "FAIL"}


def _suspend(process, database):
    """Stops a process at a moment when it does not lock the database, as others would wait for it forever."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        process.send_signal(signal.SIGSTOP)
        while "(stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.01)
        connection.execute("ROLLBACK")


_WORK = """
import pathlib, select, sys
from tuning.point_queue import PointQueue
queue = PointQueue(pathlib.Path(sys.argv[1]), "stepped", {}, [{"x": float(i)} for i in range(3)], heartbeat_s=1)
for _ in range(int(sys.argv[3])):  # points
    while (lease := queue.lease()) is None:
        select.select([], [], [], 0.1)  # libfaketime breaks time.sleep
    print(lease.index, flush=True)
    if sys.argv[2] == "hold":
        with queue.alive(lease):
            sys.stdin.readline()
    print("ended" if queue.finish(lease, {}, 1.0) else "lost", flush=True)
"""


@pytest.mark.parametrize("step", ["+100", "-3600"])
def test_a_step_of_the_clock_takes_no_living_trial_and_leaves_no_dead_one(tmp_path, folder, step):
    faketime = needed("faketime", "faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    settings = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    library = subprocess.run(
        [faketime, "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True
    ).stdout.strip()
    environment = os.environ | settings | {"LD_PRELOAD": library}

    def work(kind, n_points):
        command = [sys.executable, "-c", _WORK, str(folder / "s.db"), kind, str(n_points)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    living = work("hold", 1)
    assert living.stdout.readline() == "1\n"
    silent = work("hold", 1)  # one after the other: they would wait for each other by time.sleep
    assert silent.stdout.readline() == "2\n"
    watcher = work("drain", 2)
    assert [watcher.stdout.readline().strip() for _ in range(2)] == ["3", "ended"]
    clock.write_text(f"{step}\n")
    told = subprocess.run(["date", "+%s"], env=environment, capture_output=True, text=True).stdout
    assert abs(int(told) - time.time() - int(step)) < 30  # the step is seen
    time.sleep(6)
    _suspend(silent, folder / "s.db")
    taken = watcher.communicate(timeout=120)[0].split()
    silent.send_signal(signal.SIGCONT)
    assert taken == ["2", "ended"]
    assert [process.communicate("\n")[0].split() for process in (living, silent)] == [["ended"], ["lost"]]


def test_a_signal_lets_the_workers_save_and_says_how_to_go_on(tmp_path):
    flags = ["--num_tuning_trials=3", "--max_global_steps=2000", "--workers=2", "--max_retries=0", "--heartbeat_s=20"]
    trials = [tmp_path / "sweep" / "b3db_jax" / f"trial_{index}" for index in (1, 2, 3)]

    def last_begun(trial):
        """When it last wrote its flags, as each start does."""
        return max((file.stat().st_mtime_ns for file in trial.glob("flags_*.json")), default=0)

    def two_train(before):
        training = [t for t in trials if last_begun(t) > before[t] and (t / "eval_measurements.csv").exists()]
        return len(training) == 2 and _states(tmp_path / "sweep" / "study.db").count("running") == 2

    def stopped_by(name, send=os.kill):
        before = {trial: last_begun(trial) for trial in trials}
        sweep = start(tmp_path, "sweep", *flags, start_new_session=True)
        _wait_for(lambda: two_train(before), sweep)
        workers = children(sweep.pid)
        send(sweep.pid, getattr(signal, name))
        output, _ = sweep.communicate()
        last = output.splitlines()[-1]
        assert last.startswith(f"stopped by {name}: 0/3 done") and last.endswith("run the same command again to go on")
        assert len(workers) == 2 and not any(os.path.exists(f"/proc/{worker}") for worker in workers)
        assert "Traceback" not in output + _logs(tmp_path)
        return sweep.returncode

    assert stopped_by("SIGTERM") == 75
    assert _logs(tmp_path).count("the checkpoint of step") == 2
    assert stopped_by("SIGHUP") == 129
    assert stopped_by("SIGINT", os.killpg) == 130  # Ctrl-C in a terminal, which the workers get, too
    plain = start(tmp_path, "sweep", "--show", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "0/3 done, 3 waiting, 0 hit" in finished(plain)  # no death is counted: one would be too many


def test_a_server_that_starts_again_is_waited_for(caplog):
    with postgresql_server() as server:
        queue = PointQueue(server.url, "restarted", {}, [{"x": float(i)} for i in range(3)], heartbeat_s=1)
        first = queue.lease()
        with queue.alive(first):
            for index in (1, 2, 3):
                server.stop()
                starting = threading.Timer(3.0, server.start)
                starting.start()
                lease = first if index == 1 else queue.lease()
                assert lease.index == index and queue.finish(lease, {"steps": index}, 1.0)
                starting.join()
        assert [(p.state, p.result, p.n_deaths) for p in queue.status()] == [
            ("done", {"steps": i}, 0) for i in (1, 2, 3)
        ]
        assert caplog.text.count("waiting for the storage postgresql://") == 3
