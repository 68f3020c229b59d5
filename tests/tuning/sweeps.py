"""Sweeps by the script, as processes of their own: small ones on real molecules."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from tests.molecules import data_dir

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "run_sweep.py"


def arguments(folder, name, *flags):
    """Of run_sweep.py; a flag given twice counts as it is given last."""
    own = ["--workload=b3db", "--submission_path=submissions/nadamw", f"--experiment_dir={folder}"]
    return [*own, f"--experiment_name={name}", f"--data_dir={data_dir()}", "--heartbeat_s=5", *flags]


def start(folder, name, *flags, before=(), **options):
    """The process; `before` are words before the command."""
    command = [*before, sys.executable, str(SCRIPT), *arguments(folder, name, *flags)]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen(command, **options)


def children(pid):
    """Numbers of a process's children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found += map(int, task.read_text().split())
    return found


def finished(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    return output


def refusal(process):
    """The last line of a process that refused."""
    output, _ = process.communicate()
    assert process.returncode == 2 and "Traceback" not in output, output[-3000:]
    line = output.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def shown(folder, name, *flags):
    """What --show --json prints, by another process."""
    return json.loads(finished(start(folder, name, *flags, "--show", "--json")))


def reasons(folder, name, *flags):
    """Trial -> why it missed its target, None if it did not."""
    return {row["trial"]: row["reason"] for row in shown(folder, name, *flags)["ranking"]}


def broken_submission(folder, statement):
    """A folder with NAdamW, and three points of which the second runs `statement` at step 5."""
    folder.mkdir()
    (folder / "submission.py").write_text(
        "import os\n"
        "import jax.numpy as jnp\n"
        "from submissions.nadamw import submission as _own\n"
        "data_selection, get_batch_size = _own.data_selection, _own.get_batch_size\n"
        "init_optimizer_state, prepare_for_eval = _own.init_optimizer_state, _own.prepare_for_eval\n"
        "def update_params(*args, **kwargs):\n"
        "    if kwargs['hyperparameters'].learning_rate > 1 and kwargs['global_step'] == 5:\n"
        f"        {statement}\n"
        "    return _own.update_params(*args, **kwargs)\n"
    )
    points = [{"learning_rate": rate} for rate in (1e-3, 2.0, 2e-3)]
    (folder / "tuning_search_space.json").write_text(json.dumps(points))
    return folder
