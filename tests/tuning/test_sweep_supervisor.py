import subprocess
import sys
from pathlib import Path

import pytest

from tuning import launch
from tuning.errors import UserError

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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert launch.device_shares(len(expected), n_devices) == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.device_shares(2, n_devices) == [None, None]


def test_more_workers_than_devices_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UserError, match="2 workers of 2 devices each need 4, but here are 3: give fewer"):
        launch.device_shares(2, 2)
