"""Any number of devices, of one process or of several, sees the numbers of one device."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("on_several_devices.py")
SUBMISSIONS = ["nadamw", "kfac_reduce", "kfac_expand", "kfac_muon_reduce"]
OTHERS = ["nesterov", "kfac_muon_expand", "muon", "schedule_free_adamw"]  # not soap: see docs/limits.md
PRECISIONS = {"float64": "1", "float32": "0"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(
    out: Path, precision: str, n_devices: int = 1, n_processes: int = 1, submissions: Sequence[str] = SUBMISSIONS
) -> dict[str, np.ndarray]:
    """What `on_several_devices.py` saves, with `n_devices` simulated ones in each process."""
    own = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": PRECISIONS[precision]}
    own["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={n_devices}"
    command = [sys.executable, str(SCRIPT), str(out), *submissions]
    places = [[]]
    if n_processes > 1:
        port = free_port()
        places = [[f"--process={i}", f"--processes={n_processes}", f"--port={port}"] for i in range(n_processes)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = [subprocess.Popen([*command, *place], env=own, **pipes) for place in places]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * n_processes, "\n".join(said)
    with np.load(out) as found:
        return dict(found)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Precision -> the run on one device, made once."""
    folder, made = tmp_path_factory.mktemp("one"), {}

    def of(precision):
        if precision not in made:
            made[precision] = run(folder / f"{precision}.npz", precision)
        return made[precision]

    return of


def assert_as_on_one(got, expected, precision):
    assert got.keys() - {"evaluation_flops"} == expected.keys() - {"evaluation_flops"}
    for name in got.keys() - {"n_devices", "n_processes", "evaluation_flops"}:
        if name.endswith(" at 0"):  # an evaluation of the same parameters, as it is printed
            assert f"{got[name]:.4f}" == f"{expected[name]:.4f}", name
        if precision == "float64":
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-8, atol=1e-8, err_msg=name)
        elif name.endswith(" losses"):
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(("n_devices", "precision"), [(2, "float64"), (4, "float64"), (8, "float64"), (2, "float32")])
def test_devices_of_one_process(one, n_devices, precision, tmp_path):
    got = run(tmp_path / "got.npz", precision, n_devices)
    assert got["n_devices"] == n_devices
    assert got["evaluation_flops"] < 1.5 * one(precision)["evaluation_flops"] / n_devices  # each has its own rows alone
    assert_as_on_one(got, one(precision), precision)


def test_the_other_submissions(tmp_path):
    one, two = (run(tmp_path / f"{n}.npz", "float64", n, submissions=OTHERS) for n in (1, 2))
    assert_as_on_one(two, one, "float64")


# Every process compiles every program, so these train few submissions.
@pytest.mark.parametrize(("n_processes", "submissions"), [(2, SUBMISSIONS[:2]), (4, SUBMISSIONS[1:2])])
def test_several_processes(one, n_processes, submissions, tmp_path):
    got = run(tmp_path / "got.npz", "float64", n_processes=n_processes, submissions=submissions)
    assert (got["n_processes"], got["n_devices"]) == (n_processes, n_processes)
    expected = {key: value for key, value in one("float64").items() if key in got or key.split(",")[0] in submissions}
    assert_as_on_one(got, expected, "float64")
