"""A trial that was stopped beyond its lease and continued writes nothing, wherever in its writes it stood."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stopped_trials

from tuning.claim import Claim, owner

ROOT = Path(__file__).parents[2]


N_TRIES = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The process that forks the trials, and the number of writes that each makes."""
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "stopped_trials.py"), str(tmp_path_factory.mktemp("first") / "t")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )
    yield process, int(process.stdout.readline())
    process.stdin.close()
    process.wait()
    process.stdout.close()


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
@pytest.mark.parametrize("i", range(N_TRIES))
def test_it_writes_nothing(server, tmp_path, i):
    """Tries lie evenly over the writes: those of the start, of evaluations, checkpoints and the end."""
    folder, (process, n_writes) = tmp_path / "t", server
    print(folder, 1 + i * (n_writes - 1) // (N_TRIES - 1), file=process.stdin, flush=True)
    child = int(process.stdout.readline())
    while state(child) != "T":
        time.sleep(0.02)
    had_begun, had_ended = owner(folder) is not None, (folder / "outcome.json").exists()
    if not had_ended:
        stopped_trials.run(folder)  # takes the trial over, after the lease, and brings it to its end
    with Claim.take(folder):
        (folder / "measurements.csv").write_text("of another owner")
        before = everything(tmp_path)
        os.kill(child, signal.SIGCONT)
        assert int(process.stdout.readline()) == (0 if had_ended else 17 if had_begun else 18)
        assert everything(tmp_path) == before
