"""The memory of a long trial stays what it was once everything is compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("memory_of_a_trial.py")
N_EVALUATIONS, N_FIRST = 50, 10


def test_host_and_device_memory_are_flat_over_2000_steps_and_50_evaluations(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    host, device = zip(*(map(int, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert len(host) == N_EVALUATIONS
    for seen in (host[N_FIRST:], device[N_FIRST:]):
        assert max(seen) / min(seen) < 1.02, seen
