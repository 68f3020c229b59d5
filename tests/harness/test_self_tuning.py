"""The self-tuning ruleset, under which the runner gives no hyperparameters."""

import importlib
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest

import submissions
from submissions.algoperf.contract import Submission
from tests.harness.runner import Run
from tests.harness.workloads import KINDS

FOLDER = Path(submissions.__path__[0])
SELF_TUNING = sorted(file.parent.name for file in FOLDER.glob("*/submission.py") if "SELF_TUNING" in file.read_text())

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_some_submissions_tune_themselves():
    assert {"kfac_reduce", "kfac_muon_reduce"} <= set(SELF_TUNING)


@pytest.mark.parametrize("name", SELF_TUNING)
def test_without_hyperparameters_a_submission_takes_its_own(name):
    module, workload = importlib.import_module(f"submissions.{name}.submission"), KINDS["criteo1tb"]()
    given = namedtuple("Hyperparameters", module.SELF_TUNING)(**module.SELF_TUNING)
    runs = [Run(module, workload, point) for point in (None, given)]
    assert runs[0].optimizer_state[1] is runs[1].optimizer_state[1]
    jax.tree.map(np.testing.assert_array_equal, *(run.optimizer_state[0] for run in runs))


def test_the_own_setting_reaches_every_function():
    """Equal to the same point given, and different from another."""
    algorithm = importlib.import_module("submissions.nadamw.submission")._submission._algorithm
    own, workload = {"learning_rate": 0.01, "warmup_factor": 0.0}, KINDS["criteo1tb"]()
    point = namedtuple("Hyperparameters", own)
    points = (None, point(**own), point(**own | {"learning_rate": 0.02}))
    runs = [Run(Submission(algorithm, own), workload, given).train(2, evaluate_every=2) for given in points]
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)
    assert not np.array_equal(*(run.params["Dense_0"]["kernel"] for run in runs[1:]))


def test_a_submission_without_an_own_setting_says_so():
    nadamw = importlib.import_module("submissions.nadamw.submission")
    with pytest.raises(ValueError, match="needs hyperparameters.*none of its own"):
        Run(nadamw, KINDS["criteo1tb"](), None)
    with pytest.raises(ValueError, match="unknown hyperparameter learning_rat;"):
        Submission(nadamw._submission._algorithm, {"learning_rat": 0.1})
