"""run_trial.py as a process that is signalled, run twice at once, moved to other devices, or has no room to write."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from limits import small_disk

from tuning.claim import Claim

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
_CACHE = tempfile.TemporaryDirectory()  # of compiled programs, for all processes here


def start(folder, name, *flags, **environment):
    command = [sys.executable, str(ROOT / "scripts" / "run_trial.py"), "--workload=mnist_vit", "--max_global_steps=70"]
    command += [f"--compilation_cache_dir={_CACHE.name}"]
    command += ["--submission_path=submissions/nadamw", f"--experiment_dir={folder}", f"--experiment_name={name}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    own = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen([*command, f"--data_dir={folder}", *flags], cwd=ROOT, env=own, **pipes)


def the_line(process, code):
    """The last and only line of its errors."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, (process.returncode, output, errors)
    (line,) = errors.splitlines()
    return line


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def losses(trial_dir):
    with open(trial_dir / "eval_measurements.csv", newline="") as file:
        return [float(row["validation/loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, "e").wait() == 0
    return folder / "e" / "mnist_vit_jax" / "trial_1"


def test_terminated_and_resumed_on_more_devices(tmp_path, whole):
    trial = tmp_path / "e" / "mnist_vit_jax" / "trial_1"
    process = start(tmp_path, "e", "--checkpoints_to_keep=1")
    wait_for(process, lambda: (trial / "checkpoints").exists())
    process.send_signal(signal.SIGTERM)
    line = the_line(process, 75)
    (saved,) = (int(file.stem) for file in (trial / "checkpoints").iterdir())
    go_on = "run the same command with --resume to go on"
    assert line == f"stopped by SIGTERM: the checkpoint of step {saved} is saved; {go_on}"
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    resumed = start(tmp_path, "e", "--resume", "--checkpoints_to_keep=1", **devices)
    assert "going on with another n_devices: 2, it was 1" in the_line(resumed, 0)
    outcome = json.loads((trial / "outcome.json").read_text())
    (resumption,) = outcome["resumptions"]
    assert resumption["global_step"] == saved < outcome["global_step"] == 70
    assert resumption["changes"] == {"environment.n_devices": [1, 2]}
    assert (len(losses(trial)), sorted(path.name for path in trial.glob("flags_*"))) == (
        len(losses(whole)),
        ["flags_0.json", "flags_1.json"],
    )
    np.testing.assert_allclose(losses(trial), losses(whole), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "code", "moment"),
    [
        ("SIGINT", 130, "libraries are loaded"),
        ("SIGUSR1", 75, "libraries are loaded"),
        ("SIGINT", 130, "the model is set up"),
    ],
)
def test_an_interrupted_start_is_one_line(tmp_path, name, code, moment):
    process = start(tmp_path, "e")
    if moment == "libraries are loaded":
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(process, lambda: "jaxlib" in maps.read_text())
        expected = f"stopped by {name} before anything was begun"
    else:
        wait_for(process, lambda: (tmp_path / "e" / "mnist_vit_jax" / "trial_1").exists())
        expected = f"stopped by {name}"
    process.send_signal(getattr(signal, name))
    assert the_line(process, code).startswith(expected)


def test_a_second_process_is_refused_and_named(tmp_path):
    with Claim.take(tmp_path / "e" / "mnist_vit_jax" / "trial_1"):
        line = the_line(start(tmp_path, "e", "--rng_seed=2", "--resume"), 2)
    assert f"trial_1' is in use by process {os.getpid()} on host {socket.gethostname()}: wait" in line


def test_a_full_disk_is_one_line(tmp_path):
    with small_disk(tmp_path / "disk", "1M") as disk:
        line = the_line(start(disk, "e"), 2)
        assert line.startswith(f"error: cannot write into {disk}") and "No space left on device" in line
        assert not (disk / "e" / "mnist_vit_jax" / "trial_1" / "outcome.json").exists()
        assert not list(disk.rglob("*.tmp"))


def test_no_device_is_one_line_and_no_folder(tmp_path):
    line = the_line(start(tmp_path, "e", JAX_PLATFORMS="foo"), 69)
    assert line.startswith("error: JAX finds no device to compute on") and "JAX_PLATFORMS" in line
    assert not list(tmp_path.iterdir())
