"""scripts/sweep.sbatch and the documented batch file of a trial, with stand-ins: their signals and exit codes."""

import os
import re
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
SCONTROL = '#!/bin/sh\necho "scontrol $*" >> "$NOTES"\n'


def stand_ins(folder, programs):
    """The environment in which shell programs by name stand for the real ones."""
    for program, text in programs.items():
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    own = {"NOTES": str(folder / "notes"), "PYTHON": str(folder / "worker"), "SLURM_JOB_ID": "17"}
    return os.environ | own | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("name", "is_queued_again"), [("SIGUSR1", True), ("SIGTERM", False)])
def test_a_signal_reaches_the_worker_and_its_end_is_waited_for(tmp_path, name, is_queued_again):
    own, notes = stand_ins(tmp_path, {"worker": WORKER, "scontrol": SCONTROL}), tmp_path / "notes"
    job = subprocess.Popen(["bash", "scripts/sweep.sbatch", "--workload=b3db"], cwd=ROOT, env=own)
    while not notes.exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(getattr(signal, name))
    assert job.wait(20) == 75
    queued_again = ["scontrol requeue 17"] if is_queued_again else []
    assert notes.read_text().splitlines() == ["scripts/run_sweep.py --worker --workload=b3db", name[3:], *queued_again]


def test_the_end_of_a_worker_is_the_job_s(tmp_path):
    own = stand_ins(tmp_path, {"worker": "#!/bin/sh\nexit 2\n"})
    assert subprocess.run(["bash", "scripts/sweep.sbatch"], cwd=ROOT, env=own).returncode == 2


def test_slurm_is_asked_to_queue_again_and_to_warn():
    text = (ROOT / "scripts" / "sweep.sbatch").read_text()
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=B:USR1@120\n" in text
    assert "#SBATCH --open-mode=append\n" in text  # a requeued job goes on with its log


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_documented_batch_file_of_a_trial_ends_as_it_and_is_queued_again_after_a_checkpoint(tmp_path, code):
    page = (ROOT / "docs" / "clusters.md").read_text()
    (text,) = re.findall(r"^```sh\n(#!/bin/bash\n#SBATCH.*?)^```", page, re.MULTILINE | re.DOTALL)
    own = stand_ins(tmp_path, {"srun": f"#!/bin/sh\necho srun >> $NOTES\nexit {code}\n", "scontrol": SCONTROL})
    assert subprocess.run(["bash", "-c", text], env=own).returncode == code
    queued_again = ["scontrol requeue 17"] if code == 75 else []
    assert (tmp_path / "notes").read_text().splitlines() == ["srun", *queued_again]
