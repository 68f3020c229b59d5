"""The same steps in today's environment and under the official harness's pins, on one device and on several."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.harness.workloads import KINDS

ROOT = Path(__file__).resolve().parents[2]
HARNESS_PYTHON = ROOT / ".venv-harness" / "bin" / "python"
# With state, without, and with packed graphs; the other kinds have no other ways of sharing a batch over devices.
ON_DEVICES = ("imagenet_vit", "librispeech_conformer", "ogbg")

pytestmark = pytest.mark.slow


def start(
    python: Path,
    out: Path,
    kinds: tuple[str, ...],
    x64: bool,
    n_devices: int = 1,
    *flags: str,
    submission: str = "kfac_reduce",
) -> Callable[[], Path]:
    """Starts a process that writes the trajectories to `out`; the function waits for it and returns `out`."""
    if not python.exists():
        pytest.fail(f"no {python}: make setup-harness creates it")
    environment = os.environ | {"JAX_ENABLE_X64": str(int(x64)), "JAX_NUM_CPU_DEVICES": str(n_devices)}
    command = [str(python), str(ROOT / "tests" / "harness" / "trajectory.py"), str(out), submission, *kinds, *flags]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finished() -> Path:
        output = process.communicate()[0]
        assert process.returncode == 0 and f", {n_devices} devices" in output, output[-3000:]
        if python == HARNESS_PYTHON:
            assert "jax 0.7.0" in output
        return out

    return finished


def read(folder: Path, kind: str) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{kind}.npz"))


@pytest.fixture(scope="module")
def doubles(tmp_path_factory) -> Path:
    """Of all kinds, in float64, today."""
    return start(Path(sys.executable), tmp_path_factory.mktemp("today") / "x64", tuple(KINDS), True)()


def assert_equal_parameters(left: dict, right: dict, last: int) -> None:
    """To 1e-8; of the losses, the last ones, which a resumed run has too."""
    assert left.keys() == right.keys()
    for name in left.keys() - {"loss"}:
        assert left[name].dtype == np.float64
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=1e-8, err_msg=name)
    np.testing.assert_allclose(left["loss"][-last:], right["loss"][-last:], rtol=1e-8)


def test_parameters_are_those_under_the_old_pins(doubles, tmp_path):
    old = start(HARNESS_PYTHON, tmp_path / "old", tuple(KINDS), True)()
    for kind in KINDS:
        assert_equal_parameters(read(doubles, kind), read(old, kind), last=20)


def test_parameters_of_kfac_muon_are_those_under_the_old_pins(tmp_path):
    pythons = {"old": HARNESS_PYTHON, "today": Path(sys.executable)}
    runs = [
        start(python, tmp_path / name, tuple(KINDS), True, submission="kfac_muon_reduce")
        for name, python in pythons.items()
    ]
    old, today = (finished() for finished in runs)
    for kind in KINDS:
        assert_equal_parameters(read(today, kind), read(old, kind), last=20)


def test_losses_are_those_under_the_old_pins(tmp_path):
    runs = [
        start(python, tmp_path / name, tuple(KINDS), False)
        for name, python in (("old", HARNESS_PYTHON), ("today", Path(sys.executable)))
    ]
    old, today = (finished() for finished in runs)
    for kind in KINDS:
        losses = [read(folder, kind)["loss"] for folder in (old, today)]
        assert len(losses[0]) == 20 and losses[0].std() > 1e-4
        np.testing.assert_allclose(*losses, rtol=1e-3, err_msg=kind)


def test_a_run_killed_on_two_devices_ends_the_same_on_four(doubles, tmp_path):
    """As the run on one device that never stopped."""
    python = Path(sys.executable)
    half = start(python, tmp_path / "half", ON_DEVICES, True, 2, "--stop_at=10")()
    whole = start(python, tmp_path / "whole", ON_DEVICES, True, 4, f"--restore={half}")()
    for kind in ON_DEVICES:
        assert len(read(half, kind)["loss"]) == len(read(whole, kind)["loss"]) == 10
        assert_equal_parameters(read(doubles, kind), read(whole, kind), last=10)
