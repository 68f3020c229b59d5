"""As many trials as a leaderboard has: in under a minute, to a page under 5 MB, by the real script."""

import itertools
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
def test_all_trials_of_a_leaderboard(tmp_path):
    """3,877 trials: 11 submissions on 14 workloads, studies of 5 trials, of up to 150 evaluations."""
    rng = np.random.default_rng(0)
    names = [f"workload_{letter}" for letter in "abcdefghijklmn"]
    places = itertools.product(range(6), names, range(11), range(1, 6))
    for study, workload, submission, trial in itertools.islice(places, 3_877):
        n = int(rng.integers(40, 150))
        curve = np.cumsum(rng.exponential(1 / n, n)) * rng.uniform(0.4, 1.1)
        point = {"learning_rate": 10 ** rng.uniform(-4, -1), "one_minus_beta1": 10 ** rng.uniform(-3, -1)}
        place = tmp_path / "in" / f"submission_{submission}" / f"study_{study}" / f"{workload}_jax" / f"trial_{trial}"
        write_trial(place, curve.tolist(), point=point, budget=10 * n, seed=study)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    script = [sys.executable, SCRIPT, tmp_path / "in", f"--out={tmp_path / 'out'}", "--references=submission_0"]
    command = [sys.executable, "-c", MEASURE, *script]
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    seconds, peak_mb = json.loads(done.stdout)  # CPU-seconds, the same on a busy machine
    megabytes = (tmp_path / "out" / "index.html").stat().st_size / 1e6
    print(f"{seconds:.1f} CPU-seconds, {peak_mb:.0f} MB, page {megabytes:.1f} MB")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    n_trials = sum(line["n_trials"] for workload in summary["workloads"] for line in workload["submissions"])
    assert n_trials == 3_877 and not summary["problems"]
    assert seconds < 60 and megabytes < 5 and peak_mb < 2000
