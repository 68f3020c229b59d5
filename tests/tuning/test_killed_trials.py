"""Kill -9 at thirty random moments, of one process and of two that train together: a resumed trial loses nothing."""

import csv
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from flax import serialization

from tests.tuning.marked_trial import PARTS

pytestmark = pytest.mark.slow
pytest.importorskip("grain")

SCRIPT = Path(__file__).with_name("killed_trials.py")
N_KILLS = 30


def contents(folder):
    """Everything a trial wrote, without what differs between two starts; the clocks count."""
    trial_dir, found = folder / "mnist_vit_jax" / "trial_1", {}
    for name in ("measurements.csv", "eval_measurements.csv"):
        with open(trial_dir / name, newline="") as file:
            found[name] = [{k: v for k, v in row.items() if k != "preemption_count"} for row in csv.DictReader(file)]
    outcome = json.loads((trial_dir / "outcome.json").read_text())
    left_out = ("compile", "hits", "training", "step_seconds", "resumptions", "environment")
    found |= {name: value for name, value in outcome.items() if not any(word in name for word in left_out)}
    for file in (trial_dir / "checkpoints").iterdir():
        arrays = serialization.msgpack_restore(file.read_bytes().partition(b"\n")[2])["leaves"]
        found[file.name] = {name: (array.dtype.name, array.tobytes()) for name, array in arrays.items()}
    return found


@pytest.mark.parametrize("n_processes", [1, 2])
def test_killed_at_thirty_random_moments_it_is_resumed_to_the_same_files(n_processes, tmp_path):
    own = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(n_processes), str(N_KILLS), str(tmp_path)]
    done = subprocess.run(command, env=own, stdout=subprocess.PIPE, text=True)
    starts = json.loads(done.stdout)

    killed, ended = ([start for start in starts if bool(start["victims"]) == is_it] for is_it in (True, False))
    assert len(killed) == N_KILLS and all(start["codes"][i] == -9 for start in killed for i in start["victims"])
    assert all(set(start["codes"]) == {0} for start in ended), starts
    assert {part for start in killed if 0 in start["victims"] for part in start["unfinished"]} == set(PARTS)

    for start in starts:  # it goes on from the newest checkpoint, and has every one that was written
        assert start["resumed_at"] in (-1, start["before"]) and start["after"] >= max(start["saved"], start["before"])
    assert all(b["before"] == (a["after"] if a["name"] == b["name"] else 0) for a, b in pairwise(starts))

    expected = contents(tmp_path / "first")
    for name in ["whole", *(start["name"] for start in ended)]:
        assert contents(tmp_path / name) == expected, name
