"""Sweeps whose machines, clocks and supervisors fail, with real processes."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from tests.tuning.sweeps import ROOT, finished, shown, start

pytestmark = pytest.mark.slow
for _library in ("optuna", "rdkit", "grain"):
    pytest.importorskip(_library)


def _logs(folder):
    return "".join(file.read_text() for file in (folder / "sweep" / "logs").iterdir())


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


_WORK = """
import pathlib, select, sys, time
from tuning.point_queue import PointQueue
queue = PointQueue(pathlib.Path(sys.argv[1]), "stepped", {}, [{"x": float(i)} for i in range(3)], heartbeat_s=1)
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    if (lease := queue.claim()) is not None:
        print(lease.index, flush=True)
        if sys.argv[2] == "hold":
            with queue.alive(lease):
                select.select([], [], [], float(sys.argv[3]))  # libfaketime breaks time.sleep
        print("ended" if queue.finish(lease, {}, 1.0) else "lost", flush=True)
        if sys.argv[2] == "hold":
            break
    select.select([], [], [], 0.1)
"""


@pytest.mark.parametrize("step", ["+100", "-3600"])
def test_a_step_of_the_clock_takes_no_living_trial_and_leaves_no_dead_one(tmp_path, step):
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed: apt install faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    settings = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    library = subprocess.run(
        [faketime, "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True
    ).stdout.strip()
    environment = os.environ | settings | {"LD_PRELOAD": library}

    def work(kind, seconds):
        command = [sys.executable, "-c", _WORK, str(tmp_path / "s.db"), kind, str(seconds)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)

    living = work("hold", 40)
    assert living.stdout.readline() == "1\n"
    silent = work("hold", 40)  # one after the other: they would wait for each other by time.sleep
    assert silent.stdout.readline() == "2\n"
    watcher = work("drain", 25)
    assert [watcher.stdout.readline().strip() for _ in range(2)] == ["3", "ended"]
    clock.write_text(f"{step}\n")
    told = subprocess.run(["date", "+%s"], env=environment, capture_output=True, text=True).stdout
    assert abs(int(told) - time.time() - int(step)) < 30  # the step is seen
    time.sleep(6)
    silent.send_signal(signal.SIGSTOP)
    taken = watcher.communicate()[0].split()
    silent.send_signal(signal.SIGCONT)
    assert taken == ["2", "ended"]
    assert [process.communicate()[0].split() for process in (living, silent)] == [["ended"], ["lost"]]
