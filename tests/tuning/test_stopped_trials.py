"""A trial is stopped or killed before any of its writes: of the start, of evaluations, of checkpoints, of the end.

Stopped beyond its lease and continued, it writes nothing. Killed, it is resumed to the same files.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import stopped_trials

from tuning.claim import Claim, owner
from tuning.point_status import stored

ROOT = Path(__file__).parents[2]


N_STOPS, N_KILLS = 20, 30
TIMES = {"score", "total_duration", "preemption_count"}
TIMES |= {f"accumulated_{kind}_time" for kind in ("submission", "eval", "logging")}


@contextmanager
def forking(kind, folder):
    """The process that forks the trials or workers, and the number of writes that each makes."""
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "stopped_trials.py"), kind, str(folder / "t")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )
    yield process, int(process.stdout.readline())
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with forking("trial", tmp_path_factory.mktemp("first")) as found:
        yield found


@pytest.fixture(scope="module")
def worker_server(tmp_path_factory):
    with forking("worker", tmp_path_factory.mktemp("first")) as found:
        yield found


def stopped(server, folder, i):
    """The process id of the i-th of N_STOPS, each stopped before another write."""
    process, n_writes = server
    print(folder, 1 + i * (n_writes - 1) // (N_STOPS - 1), "SIGSTOP", file=process.stdin, flush=True)
    child = int(process.stdout.readline())
    while state(child) != "T":
        time.sleep(0.02)
    return child


def state(process_id):
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]


def everything(folder):
    """Names, contents, and times and numbers of the files, which a rewriting would change."""
    found = {}
    for path in folder.rglob("*"):
        about = path.stat()
        found[path] = (path.read_bytes(), about.st_mtime_ns, about.st_ino) if path.is_file() else None
    return {path: about for path, about in found.items() if ".claim" not in str(path)}


@pytest.mark.slow
@pytest.mark.parametrize("i", range(N_STOPS))
def test_stopped_beyond_its_lease_it_writes_nothing(server, folder, i):
    trial, (process, _) = folder / "t", server
    child = stopped(server, trial, i)
    had_begun, had_ended = owner(trial) is not None, (trial / "outcome.json").exists()
    if not had_ended:
        stopped_trials.run(trial)  # takes the trial over, after the lease, and brings it to its end
    with Claim.take(trial):
        (trial / "measurements.csv").write_text("of another owner")
        before = everything(folder)
        os.kill(child, signal.SIGCONT)
        assert int(process.stdout.readline()) == (0 if had_ended else 17 if had_begun else 18)
        assert everything(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("i", range(N_STOPS))
def test_a_worker_stopped_beyond_its_lease_changes_neither_files_nor_results(worker_server, folder, i):
    child, file = stopped(worker_server, folder / "t", i), folder / "t" / "study.db"
    stopped_trials.run_worker(folder / "t")  # takes over what the other one held, and ends all
    files, results = everything(folder), stored(file, "t")
    assert [point.state for _, point in results] == ["done"] * 2
    assert all(point.result["reason"] == "budget" for _, point in results)
    os.kill(child, signal.SIGCONT)
    assert int(worker_server[0].stdout.readline()) == 0
    assert everything(folder) == files and stored(file, "t") == results


def contents(folder):
    found = {}
    for name in ("measurements.csv", "eval_measurements.csv"):
        with open(folder / name, newline="") as file:
            found[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    outcome = json.loads((folder / "outcome.json").read_text())
    left_out = ("seconds", "compiles", "hits", "resumptions")
    return found | {k: v for k, v in outcome.items() if k != "data_dir" and not any(word in k for word in left_out)}


@pytest.mark.slow
def test_killed_it_is_resumed_to_the_same_files_and_leaves_no_others(server, folder):
    process, n_writes = server
    stopped_trials.run(folder / "whole")
    whole, names = contents(folder / "whole"), {path.name for path in (folder / "whole").rglob("*")}
    for i in range(N_KILLS):
        trial = folder / str(i)
        print(trial, 1 + i * (n_writes - 1) // (N_KILLS - 1), "SIGKILL", file=process.stdin, flush=True)
        assert int(process.stdout.readline()) and int(process.stdout.readline()) == -9
        stopped_trials.run(trial)
        assert contents(trial) == whole, i
        found = {path.name for path in trial.rglob("*")}
        # The last checkpoint but two stays if the kill came right before its removal.
        assert names <= found <= names | {"flags_1.json", "meta_data_1.json", "20.checkpoint"}
