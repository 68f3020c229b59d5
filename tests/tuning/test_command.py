"""scripts/run_trial.py as the user meets it: exit codes, and one line for what the user can cure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_trial.py"
LAZY = """
def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    if set(hyperparameters._fields) != {"learning_rate"}:
        raise ValueError(f"unknown hyperparameter {hyperparameters._fields[0]!r}; known: learning_rate")
    return {}, None

def update_params(*, optimizer_state, current_param_container, model_state, workload, global_step, **others):
    if others["hyperparameters"].learning_rate == 3:
        raise ValueError("a bug in the loop")
    workload.metrics_logger.append_scalar_metrics({"loss": float("nan")}, global_step)
    return optimizer_state, current_param_container, model_state

def get_batch_size(workload_name): return 8
def data_selection(workload, input_queue, *others): return next(input_queue)
"""


@pytest.fixture
def command(tmp_path):
    """Runs the script on a submission that logs NaN; keyword arguments are flags, None leaves one out."""
    (tmp_path / "lazy").mkdir()
    (tmp_path / "lazy" / "submission.py").write_text(LAZY)

    def command(*words, learning_rate=(1,), **flags):
        space = [{"learning_rate": rate} for rate in learning_rate]
        (tmp_path / "lazy" / "tuning_search_space.json").write_text(json.dumps(space))
        given = dict(workload="mnist_vit", submission_path=tmp_path / "lazy", experiment_dir=tmp_path / "out")
        given |= dict(experiment_name="e", data_dir=tmp_path / "data")
        given |= dict(compilation_cache_dir=tmp_path / "cache")
        arguments = [f"--{name}={value}" for name, value in (given | flags).items() if value is not None]
        call = [sys.executable, SCRIPT, *arguments, *words]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path / "packages")}
        return subprocess.run(call, capture_output=True, text=True, env=environment, cwd=tmp_path)

    return command


def the_error(done):
    """The one line on stderr of a run that ended with 2."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_bad_flags(command):
    assert "Unknown command line flag 'workloda'" in the_error(command(workloda="x"))
    assert "--workload must have a value" in the_error(command(workload=None))
    assert "'stray' is not a flag" in the_error(command("stray"))


def test_bad_requests_are_one_line_and_leave_no_folder(command, tmp_path):
    assert "unknown workload 'nosuch'; known workloads: b3db" in the_error(command(workload="nosuch"))
    assert the_error(command(submission_path=tmp_path / "busy")).endswith("has lazy")
    space = tmp_path / "space.json"
    space.write_text('{"learning_rate": {"min": 1, "max": 2}}')
    assert "'learning_rate' has no 'scaling'" in the_error(command(tuning_search_space=space))
    space.write_text('[{"rate": 1}]')
    assert "unknown hyperparameter 'rate'" in the_error(command(tuning_search_space=space))
    assert not (tmp_path / "out").exists()


def test_a_data_package_without_its_data_is_one_line_with_the_cure(command, tmp_path):
    (tmp_path / "packages" / "B3DB").mkdir(parents=True)  # hides the installed one
    (tmp_path / "packages" / "B3DB" / "__init__.py").write_text("")
    assert "pip install" in the_error(command(workload="b3db"))
    assert not (tmp_path / "out").exists()


def test_divergence_is_an_outcome_and_the_folder_is_then_taken(command, tmp_path):
    done = command(learning_rate=(1, 2), num_tuning_trials=2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("diverged") == 2
    for trial in ("trial_1", "trial_2"):
        outcome = json.loads((tmp_path / "out/e/mnist_vit_jax" / trial / "outcome.json").read_text())
        assert outcome["reason"] == "diverged"
    assert "exists; give --resume, --overwrite" in the_error(command())


def test_an_error_in_the_loop_is_a_crash_with_traceback(command, tmp_path):
    done = command(learning_rate=(3,))
    assert done.returncode == 1 and "Traceback" in done.stderr and "a bug in the loop" in done.stderr
    outcome = json.loads((tmp_path / "out/e/mnist_vit_jax/trial_1/outcome.json").read_text())
    assert (outcome["reason"], outcome["error"]) == ("crashed", "ValueError: a bug in the loop")
