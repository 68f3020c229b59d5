"""scripts/sweep.sbatch, with a stand-in for the worker and for scontrol: what it does with signals and exit codes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = """#!/bin/bash
trap 'echo USR1 >> "$NOTES"; exit 75' USR1
trap 'echo TERM >> "$NOTES"; exit 75' TERM
echo "$@" >> "$NOTES"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(("name", "is_queued_again"), [("SIGUSR1", True), ("SIGTERM", False)])
def test_a_signal_reaches_the_worker_and_its_end_is_waited_for(tmp_path, name, is_queued_again):
    for program, text in (("worker", WORKER), ("scontrol", '#!/bin/sh\necho "scontrol $*" >> "$NOTES"\n')):
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    notes = tmp_path / "notes"
    own = {"NOTES": str(notes), "PYTHON": str(tmp_path / "worker"), "SLURM_JOB_ID": "17"}
    own["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    job = subprocess.Popen(["bash", "scripts/sweep.sbatch", "--workload=b3db"], cwd=ROOT, env=os.environ | own)
    while not notes.exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(getattr(signal, name))
    assert job.wait(20) == 75
    queued_again = ["scontrol requeue 17"] if is_queued_again else []
    assert notes.read_text().splitlines() == ["scripts/run_sweep.py --worker --workload=b3db", name[3:], *queued_again]


def test_the_end_of_a_worker_is_the_job_s(tmp_path):
    (tmp_path / "worker").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "worker").chmod(0o755)
    own = os.environ | {"PYTHON": str(tmp_path / "worker")}
    assert subprocess.run(["bash", "scripts/sweep.sbatch"], cwd=ROOT, env=own).returncode == 2


def test_slurm_is_asked_to_queue_again_and_to_warn():
    text = (ROOT / "scripts" / "sweep.sbatch").read_text()
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=B:USR1@120\n" in text
