import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tuning import sweeps
from tuning import launch, parent, slurm
from tuning.errors import UserError
from tuning.interruption import Interrupted
from tuning.point_status import PointStatus

ROOT = Path(__file__).parents[2]


def test_the_supervisor_touches_no_device(tmp_path):
    """It would keep a GPU's memory from its own workers."""
    code = (
        "import sys; from jax._src import xla_bridge; from tuning.sweep import Request, Sweep\n"
        "request = Request('b3db', 'submissions/nadamw', sys.argv[1], 'e')\n"
        "print(len(Sweep(request).status()), xla_bridge.backends_are_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "5 False\n", done.stderr[-2000:]


@pytest.mark.parametrize(("n_devices", "expected"), [(1, ["4", "5", "6"]), (2, ["4,5", "6,7"])])
def test_workers_share_out_the_devices(monkeypatch, n_devices, expected):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert launch.device_shares(len(expected), n_devices) == expected
    for name, value in (("JAX_PLATFORMS", "cpu"), ("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1")):
        with monkeypatch.context() as other:
            other.setenv(name, value)
            assert launch.device_shares(2, n_devices) == [None, None]


def test_more_workers_than_devices_are_refused(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UserError, match="2 workers of 2 devices each need 4, but only 3 are visible: give fewer"):
        launch.device_shares(2, 2)


class _SweepWithoutEnd:
    """Of which no trial ends."""

    state = "running"

    def __init__(self, folder, max_retries=1):
        self.request = SimpleNamespace(experiment_folder=folder, max_retries=max_retries, heartbeat_s=1)
        self.given_back = []

    def recover(self):
        pass

    def status(self):
        return [(1, PointStatus(1, {}, self.state, 0, None))]

    def give_back(self, process_ids):
        self.given_back += process_ids


def _supervise(folder, code, monkeypatch, n_workers=2):
    monkeypatch.setattr(launch, "_PAUSE_S", 0.05)
    sweep = _SweepWithoutEnd(folder)
    with pytest.raises(UserError) as error:
        launch.supervise(["-c", code, str(folder)], sweep, n_workers, 1, lambda *_: None, period_s=0.02)
    assert "\n" not in str(error.value)
    starts = sum(file.read_text().count("start") for file in (folder / "logs").iterdir())
    return str(error.value), starts


@pytest.mark.parametrize(
    ("ending", "how"),
    [("time.sleep(0.3); sys.exit('a bug')", "saying 'a bug'"), ("os.kill(os.getpid(), 9)", "by SIGKILL")],
)
def test_workers_that_die_again_and_again_end_the_sweep_with_the_reason(tmp_path, monkeypatch, ending, how):
    line, starts = _supervise(tmp_path, f"import os, sys, time; print('start', flush=True); {ending}", monkeypatch)
    assert f"workers died 5 times and no trial ended meanwhile, the last one {how}; see {tmp_path}/logs/" in line
    assert 5 <= starts <= 6  # two workers of which each point survives one death


def test_points_that_kill_their_workers_end_though_they_take_turns(tmp_path, monkeypatch):
    """One worker, one point that ends and three that kill: each survives one death."""
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"ended": 0, "deaths": [0, 0, 0]}))
    worker = (
        "import json, os, sys; s = json.load(open(sys.argv[2])); i = min(range(3), key=lambda i: s['deaths'][i])\n"
        "if not s['ended']: s['ended'] = 1\n"
        "else: s['deaths'][i] += 1\n"
        "json.dump(s, f := open(sys.argv[2] + '.new', 'w')); f.close(); os.replace(sys.argv[2] + '.new', sys.argv[2])\n"
        "os.kill(os.getpid(), 9)"
    )

    class Killers(_SweepWithoutEnd):
        def status(self):
            now = json.loads(state.read_text())
            crash = {"is_machine_fault": False}
            results = [crash if n >= 2 else None for n in now["deaths"]] + [{} if now["ended"] else None]
            states = ["running" if result is None else "done" for result in results]
            rows = enumerate(zip(states, [*now["deaths"], 0], results, strict=True))
            return [(1, PointStatus(i, {}, state, n, result)) for i, (state, n, result) in rows]

    launch.supervise(["-c", worker, str(tmp_path), str(state)], Killers(tmp_path), 1, 1, lambda *_: None, period_s=0.02)
    assert json.loads(state.read_text())["deaths"] == [2, 2, 2]


def test_machines_that_do_not_work_are_tried_twice_and_then_left(tmp_path, monkeypatch):
    code = "import sys; print('start', flush=True); print('error: device 0 fails', file=sys.stderr); sys.exit(69)"
    line, starts = _supervise(tmp_path, code, monkeypatch)
    assert line == "no worker can run here: device 0 fails; no point was lost" and starts == 4


def test_a_machine_that_fails_now_and_then_is_not_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_WORKED_S", 0.2)
    code = (
        "import pathlib, sys, time; log = next(pathlib.Path(sys.argv[1], 'logs').iterdir())\n"
        "print('start', flush=True); time.sleep(0.4)\n"
        "sys.exit(69) if log.read_text().count('start') < 4 else (print('no data', flush=True), sys.exit(2))\n"
    )
    line, starts = _supervise(tmp_path, code, monkeypatch, n_workers=1)
    assert line == "a worker cannot run: no data" and starts == 4


def test_workers_end_with_a_supervisor_that_is_killed(tmp_path):
    worker = (
        "import pathlib, signal, sys, time; from tuning import parent\n"
        "def stop(*_): pathlib.Path('stopped').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); parent.end_with_supervisor(); time.sleep(0.5)\n"
        "pathlib.Path('ready').touch(); time.sleep(60)\n"
    )
    supervisor = (
        "import pathlib, sys, time; from tuning import launch\n"
        "launch._start_worker(['-c', sys.argv[1]], launch._Slot(None, None, pathlib.Path('log'))); time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", supervisor, worker], cwd=tmp_path, env=environment)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert not (tmp_path / "stopped").exists()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < deadline, "the worker goes on"
        time.sleep(0.02)


def test_a_worker_whose_supervisor_is_gone_already_ends(tmp_path):
    worker = sweeps.start(tmp_path, "e", "--worker", env=os.environ | {parent.SUPERVISOR: "0"})
    try:
        output, _ = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == 75 and "stopped by SIGTERM" in output and not (tmp_path / "e" / "b3db_jax").exists()


@pytest.fixture
def sbatch(monkeypatch):
    """submitit's executor with a signal while sbatch runs, and the commands of Slurm that are run."""
    commands = []

    class Executor:
        def batch(self):
            return contextlib.nullcontext()

        def submit(self, *arguments):
            commands.append(["sbatch"])
            os.kill(os.getpid(), signal.SIGTERM)
            return SimpleNamespace(job_id="17_0")

    monkeypatch.setattr(slurm, "_executor", lambda *arguments: Executor())
    monkeypatch.setattr(slurm.subprocess, "run", lambda command, **options: commands.append(command))
    return commands


def test_a_signal_during_the_submission_cancels_the_jobs(sbatch, tmp_path):
    with pytest.raises(Interrupted, match="stopped by SIGTERM: .*; the running trials' checkpoints are kept"):
        slurm.submit([], _SweepWithoutEnd(tmp_path), 1, 1, lambda *_: None, options={})
    assert sbatch == [["sbatch"], ["scancel", "17"]]


def test_no_job_is_submitted_for_a_sweep_that_is_done(sbatch, tmp_path):
    sweep, shown = _SweepWithoutEnd(tmp_path), []
    sweep.state = "done"
    slurm.submit([], sweep, 1, 1, lambda *arguments: shown.append(arguments), options={})
    assert sbatch == [] and shown == [(sweep, 0)]


def test_a_refusal_ends_the_sweep_and_workers_that_do_not_end_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_SAVE_S", 0.3)
    code = (
        "import os, signal, sys, time; mine = os.path.join(sys.argv[1], 'first')\n"
        "try: os.mkdir(mine)\n"
        "except OSError:\n"
        "    time.sleep(0.5); sys.exit('error: no data') if os.path.exists(mine + '.ready') else sys.exit(2)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(mine + '.ready', 'w'); time.sleep(60)\n"
    )
    code = code.replace("sys.exit('error: no data')", "(print('error: no data', flush=True), sys.exit(2))")
    monkeypatch.setattr(launch, "_PAUSE_S", 0.05)
    sweep = _SweepWithoutEnd(tmp_path)
    with pytest.raises(UserError, match="a worker cannot run: no data"):
        launch.supervise(["-c", code, str(tmp_path)], sweep, 2, 1, lambda *_: None, period_s=0.02)
    assert len(sweep.given_back) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(sweep.given_back[0], 0)
