"""Real trials on the real workloads, through the script and in processes of their own."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.molecules import data_dir

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TIMES = {"score", "total_duration"} | {f"accumulated_{part}_time" for part in ("submission", "eval", "logging")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Compilation cache that all processes of this file share."""
    return tmp_path_factory.mktemp("shared")


def run(shared: Path, folder: Path, *flags: str, space: list | None = None) -> list[dict]:
    """Run scripts/run_trial.py and return the trials' outcomes."""
    command = [sys.executable, "scripts/run_trial.py", f"--experiment_dir={folder}", "--experiment_name=e", *flags]
    command += [f"--data_dir={data_dir()}", f"--compilation_cache_dir={shared}"]
    if space:
        file = folder / "space.json"
        file.write_text(json.dumps(space), encoding="utf-8")
        command += [f"--tuning_search_space={file}", f"--num_tuning_trials={len(space)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = sorted(folder.glob("e/*/trial_*/outcome.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def metrics(folder: Path) -> list[dict]:
    (file,) = folder.glob("e/*/trial_1/eval_measurements.csv")
    with file.open(newline="", encoding="utf-8") as rows:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(rows)]


@pytest.mark.parametrize("workload", ["b3db", "mnist_vit"])
def test_a_second_process_repeats_the_metrics_from_compiled_programs(workload, shared, tmp_path):
    flags = [f"--workload={workload}", "--submission_path=submissions/kfac_expand", "--max_global_steps=40"]
    outcomes, seen = [], []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        outcomes += run(shared, tmp_path / name, *flags)
        seen.append(metrics(tmp_path / name))
    assert len(seen[0]) == 2 and seen[0] == seen[1]
    assert outcomes[0]["n_cache_hits"] < outcomes[0]["n_compiles"]
    assert outcomes[1]["n_cache_hits"] == outcomes[1]["n_compiles"]
    (tmp_path / "other").mkdir()
    run(shared, tmp_path / "other", *flags, "--rng_seed=1")
    assert metrics(tmp_path / "other") != seen[0]


def test_trials_share_a_compilation_and_one_that_diverges_stops_none(shared, tmp_path):
    """A learning rate of 1e30 overflows in its first steps; the trial after it compiles nothing and goes on."""
    space = [{"learning_rate": 1e30, "weight_decay": 1.0, "warmup_factor": 0.0}]
    space.append({**space[0], "learning_rate": 1e-2, "weight_decay": 0.0})
    flags = ["--workload=b3db", "--submission_path=submissions/nesterov", "--max_global_steps=60"]
    diverged, other = run(shared, tmp_path, *flags, space=space)
    assert diverged["reason"] == "diverged" and diverged["global_step"] <= 51
    assert other["reason"] == "budget" and other["global_step"] == 60
    assert diverged["n_compiles"] > 0 and other["n_compiles"] == 0


def test_kfac_reaches_the_target_of_the_demo(shared, tmp_path):
    (outcome,) = run(shared, tmp_path, "--workload=b3db", "--submission_path=submissions/kfac_reduce")
    assert outcome["reason"] is None and 0 < outcome["steps_to_target"] <= 1500
    assert 0 < outcome["compile_seconds"] < outcome["seconds_to_target"]
    (file,) = tmp_path.glob("e/*/trial_1/measurements.csv")
    with file.open(newline="", encoding="utf-8") as rows:
        logged = [row for row in csv.DictReader(rows) if row["loss"]]
    assert logged and all(float(row["n_curvature_faults"]) == 0 for row in logged)
    counts = [float(row["n_curvature_fallbacks"]) for row in logged]
    assert counts == sorted(counts)


@pytest.mark.parametrize("submission", ["kfac_reduce", "kfac_muon_expand"])
def test_three_devices_see_the_numbers_of_one(submission, shared, tmp_path, monkeypatch):
    """Simulated ones, which divide neither the packed rows nor the batch of 64 graphs; sums round differently.

    For other numbers and submissions see `tests/tuning/test_several_devices.py`.
    """
    flags = ["--workload=b3db", f"--submission_path=submissions/{submission}", "--max_global_steps=10"]
    space = [{"learning_rate": 1e-3} | ({"damping": 1e-2} if submission == "kfac_reduce" else {})]
    seen = []
    for n_devices in (1, 3):
        monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={n_devices}")
        folder = tmp_path / str(n_devices)
        folder.mkdir()
        (outcome,) = run(shared, folder, *flags, space=space)
        assert outcome["environment"]["n_devices"] == n_devices
        (row,) = metrics(folder)
        seen.append([float(row[f"{split}/loss"]) for split in ("train", "validation", "test")])
    assert seen[1] == pytest.approx(seen[0], rel=1e-3)
