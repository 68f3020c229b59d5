"""A thousand trials of two hundred evaluations: in under 20 seconds and a gigabyte, by the real script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tuning.report.folders import write_trial

SCRIPT = Path(__file__).parents[3] / "scripts" / "report.py"
# A process's peak memory begins with its parent's, so a small process of its own starts what is measured.
MEASURE = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""


@pytest.mark.slow
def test_a_thousand_trials(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(1000):
        curve = np.cumsum(rng.exponential(0.006, 200)) * rng.uniform(0.5, 1.2)
        point = {"learning_rate": 10 ** rng.uniform(-4, -1), "damping": 10 ** rng.uniform(-5, -1)}
        place = tmp_path / "in" / f"s{index % 8}" / "digits_jax" / f"trial_{index // 8 + 1}"
        outcome = {"submission": ["nesterov", "nadamw", *"abcdef"][index % 8]}
        write_trial(place, curve.tolist(), point=point, budget=2000, outcome=outcome)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    script = [sys.executable, SCRIPT, tmp_path / "in", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-c", MEASURE, *script]
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    seconds, peak_mb = json.loads(done.stdout)  # CPU-seconds, the same on a busy machine
    megabytes = (tmp_path / "out" / "index.html").stat().st_size / 1e6
    print(f"{seconds:.1f} CPU-seconds, {peak_mb:.0f} MB, page {megabytes:.1f} MB")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum(line["n_trials"] for line in summary["workloads"][0]["submissions"]) == 1000
    assert seconds < 20 and peak_mb < 1000
