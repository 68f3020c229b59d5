"""run_trial.py in two processes of one machine: who writes, signals, kills, and going on in another number."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tuning.test_resume import contents
from tests.tuning.test_several_devices import free_port
from tests.tuning.test_trial_processes import losses, the_line, wait_for

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
_CACHE = tempfile.TemporaryDirectory()  # of compiled programs, for all processes here
N_STEPS = 60
N_KILLS = 3
# Of the processes that are told to be two; the line of a library, which their first collective prints.
_GLOO = "[Gloo] Rank"


def command(folder, *flags):
    own = ["--workload=mnist_vit", "--submission_path=submissions/nadamw", f"--max_global_steps={N_STEPS}"]
    own += [f"--compilation_cache_dir={_CACHE.name}", f"--experiment_dir={folder}", "--experiment_name=e"]
    return [sys.executable, str(ROOT / "scripts" / "run_trial.py"), *own, f"--data_dir={folder}", *flags]


def start(folder, *flags, n_processes=2):
    port, pipes = free_port(), dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    own = os.environ | {"JAX_PLATFORMS": "cpu"}
    places = [[]]
    if n_processes > 1:
        place = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={n_processes}"]
        places = [[*place, f"--process_id={index}"] for index in range(n_processes)]
    return [subprocess.Popen(command(folder, *flags, *place), cwd=ROOT, env=own, **pipes) for place in places]


def said(process):
    """(exit code, what it said without the library's line)"""
    output, errors = process.communicate(timeout=900)
    return process.returncode, "\n".join(line for line in output.splitlines() if not line.startswith(_GLOO)), errors


def trial_of(folder):
    return folder / "e" / "mnist_vit_jax" / "trial_1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing cuts short: what each process said, and the trial's folder."""
    folder = tmp_path_factory.mktemp("whole")
    started = start(folder)
    return [said(process) for process in started], trial_of(folder)


def test_the_first_process_writes_and_speaks_alone(whole):
    (first, second), trial = whole
    assert (first[0], second) == (0, (0, "", "")) and "budget" in first[1] and first[2] == ""
    outcome = json.loads((trial / "outcome.json").read_text())
    assert (outcome["environment"]["n_devices"], outcome["environment"]["n_processes"]) == (2, 2)
    with open(trial / "eval_measurements.csv", newline="") as file:
        assert [int(row["global_step"]) for row in csv.DictReader(file)] == [25, 50, N_STEPS]


def test_a_signal_to_one_ends_all_and_one_process_goes_on(whole, tmp_path):
    started = start(tmp_path)
    wait_for(started[0], lambda: any(trial_of(tmp_path).glob("checkpoints/*.checkpoint")))
    started[1].send_signal(signal.SIGTERM)
    lines = {the_line(process, 75) for process in started}
    saved = max(int(file.stem) for file in trial_of(tmp_path).glob("checkpoints/*.checkpoint"))
    assert len(lines) == 1 and f"stopped by SIGTERM: the checkpoint of step {saved} is saved" in lines.pop()
    (alone,) = start(tmp_path, "--resume", n_processes=1)
    assert "going on with another n_processes: 1, it was 2" in said(alone)[2]
    np.testing.assert_allclose(losses(trial_of(tmp_path)), losses(whole[1]), rtol=1e-3)


def test_kills_of_either_process_at_random_moments_lose_and_repeat_nothing(whole, tmp_path):
    """The other process ends by itself, once it misses the killed one, which may take minutes.

    A trial that ends between two kills is followed by another one.
    """

    def written_at(name):
        """When a start of the trial last wrote its flags."""
        return max((file.stat().st_mtime_ns for file in trial_of(tmp_path / name).glob("flags_*.json")), default=0)

    def begun(name):
        """Two processes that train, and when they began to: they have met, and told what they carry out."""
        before = written_at(name)
        processes = start(tmp_path / name, "--resume", "--checkpoint_period_s=1")
        wait_for(processes[0], lambda: written_at(name) > before)
        return processes, time.monotonic()

    started, began = begun("0")
    wait_for(started[0], lambda: any(trial_of(tmp_path / "0").glob("checkpoints/*.checkpoint")))
    rng, n_kills, n_ended, first_checkpoint_s = random.Random(0), 0, 0, time.monotonic() - began
    while n_kills < N_KILLS:
        if all(process.poll() is None for process in started):
            killed = rng.randrange(2)
            started[killed].kill()
            codes = [said(process)[0] for process in started]
            assert codes[killed] in (-signal.SIGKILL, 0)  # 0: it ended by itself, just before
            n_kills += 1
        else:
            assert [said(process)[0] for process in started] == [0, 0]
        n_ended += (trial_of(tmp_path / str(n_ended)) / "outcome.json").exists()
        started, _ = begun(str(n_ended))
        time.sleep(rng.uniform(0, 1.2 * first_checkpoint_s))
    assert [said(process)[0] for process in started] == [0, 0]

    expected = contents(whole[1])
    for name in map(str, range(n_ended + 1)):
        found = contents(trial_of(tmp_path / name))
        for own in (found, expected):
            own["outcome"].pop("data_dir", None)
        assert found == expected
