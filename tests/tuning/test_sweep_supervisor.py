import subprocess
import sys
from pathlib import Path

import pytest

from tuning import sweep

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


@pytest.mark.parametrize(
    ("visible", "n_devices", "expected"),
    [("0,1,2,3", 1, ["0", "1", "2", "3", "0"]), ("4,5,6,7", 2, ["4,5", "6,7", "4,5", "6,7", "4,5"])],
)
def test_workers_share_out_the_devices_in_turn(monkeypatch, visible, n_devices, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [sweep._devices(slot, n_devices) for slot in range(5)] == expected
