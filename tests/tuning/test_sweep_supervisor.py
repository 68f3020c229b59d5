import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuning import launch
from tuning.errors import UserError
from tuning.point_status import PointStatus

pytest.importorskip("optuna")
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
    with pytest.raises(UserError, match="2 workers of 2 devices each need 4, but here are 3: give fewer"):
        launch.device_shares(2, 2)


class _SweepWithoutEnd:
    """Of which no trial ends."""

    def __init__(self, folder, max_retries=1):
        self.request = SimpleNamespace(experiment_folder=folder, max_retries=max_retries, heartbeat_s=1)
        self.given_back = []

    def recover(self):
        pass

    def status(self):
        return [(1, PointStatus(1, {}, "running", 0, None))]

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


def test_machines_that_do_not_work_are_tried_twice_and_then_left(tmp_path, monkeypatch):
    code = "import sys; print('start', flush=True); print('error: device 0 fails', file=sys.stderr); sys.exit(69)"
    line, starts = _supervise(tmp_path, code, monkeypatch)
    assert line == "no worker can run here: device 0 fails; no point was lost" and starts == 4


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
    with pytest.raises(UserError, match="a worker refused: no data"):
        launch.supervise(["-c", code, str(tmp_path)], sweep, 2, 1, lambda *_: None, period_s=0.02)
    assert len(sweep.given_back) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(sweep.given_back[0], 0)
