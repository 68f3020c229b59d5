"""Submissions under the official runner's part, on small models of the kinds that it trains."""

import importlib
from collections import namedtuple
from typing import Any

import jax
import numpy as np
import pytest

from submissions.algoperf import contract
from submissions.algoperf.problem import Problem
from submissions.kfac import find_layers
from submissions.kfac.coverage import describe
from tests.harness.runner import Run
from tests.harness.workloads import KINDS
from tuning.clock import CompileTimer

pytestmark = pytest.mark.usefixtures("quick_compilation")
CURVATURE, FIRST_ORDER, INPUTS_ALONE = "kfac_reduce", "nadamw", "kfac_muon_reduce"
# A model state that comes back as None, and tuples throughout.
QUICK = [("imagenet_vit", CURVATURE), ("librispeech_conformer", FIRST_ORDER)]
SLOW = [
    pytest.param(kind, name, marks=pytest.mark.slow)
    for name, kinds in ((CURVATURE, KINDS), (INPUTS_ALONE, ("imagenet_vit", "ogbg", "wmt")))
    for kind in kinds
    if (kind, name) not in QUICK
]


def point(**values: Any) -> tuple:
    return namedtuple("Hyperparameters", values)(**values)


SETTINGS = {
    CURVATURE: point(learning_rate=0.03, damping=1e-2, refresh_share=0.5, warmup_factor=0.0),  # not at step 3
    FIRST_ORDER: point(learning_rate=0.01, warmup_factor=0.0),
    INPUTS_ALONE: point(learning_rate=0.01, refresh_share=0.5, warmup_factor=0.0),
}


def arrays(run: Run) -> Any:
    """Copies, which a step, that donates its arguments, leaves alone."""
    return jax.tree.map(np.array, (run.optimizer_state[0], run.params, run.model_state))


def described(trees: Any) -> Any:
    return jax.tree.structure(trees), [(x.shape, x.dtype) for x in jax.tree.leaves(trees)]


@pytest.mark.parametrize(("kind", "name"), QUICK + SLOW)
def test_a_kind_of_model_trains_and_resumes(kind, name, monkeypatch, tmp_path):
    """Its loss falls, no step compiles after the first of its sort, and a restored run goes on as if it never ended."""
    monkeypatch.setattr(contract, "LOG_PERIOD", 1)
    submission = importlib.import_module(f"submissions.{name}.submission")
    workload, setting = KINDS[kind](), SETTINGS[name]
    run = Run(submission, workload, setting)
    at_start = arrays(run)
    run.train(4, evaluate_every=2)
    run.save(tmp_path / "checkpoint")
    with CompileTimer() as timer:
        run.train(20, evaluate_every=2)
    assert timer.counts.n_compiles + timer.counts.n_cache_hits == 0
    assert described(arrays(run)) == described(at_start)
    losses = [run.logger.logged[step]["loss"] for step in range(24)]
    assert np.isfinite(losses).all() and sum(losses[20:]) < sum(losses[:4])  # over the same four batches
    restored = Run(submission, workload, setting).restore(tmp_path / "checkpoint").train(20, evaluate_every=2)
    jax.tree.map(np.testing.assert_array_equal, arrays(restored), arrays(run))
    still = [x for x, y in zip(*map(jax.tree.leaves, (at_start[1], run.params)), strict=True) if np.array_equal(x, y)]
    assert not still, "a parameter that never moved"


@pytest.mark.parametrize("kind", KINDS)
def test_all_kernels_but_grouped_ones_have_factors(kind):
    """Found in the forward pass that the runner's workload gives, without running it."""
    workload, key = KINDS[kind](), jax.random.PRNGKey(0)
    params, model_state = workload.init_model_fn(key)
    problem = Problem(workload, workload.batch(np.random.default_rng(0)), model_state, 0.0, None, key)
    lines = describe(params, find_layers(params), problem.forward).splitlines()
    without = [line for line in lines if "kernel" in line.split(":")[0] and ": fallback" in line]
    assert all("grouped" in line for line in without), without


@pytest.mark.parametrize(("name", "oldest"), [("muon", "0.2.7"), ("schedule_free_adamw", "0.2.3")])
def test_an_optax_that_is_too_old_is_named(name, oldest, monkeypatch):
    """The official harness pins 0.2.2."""
    submission, workload = importlib.import_module(f"submissions.{name}.submission"), KINDS["criteo1tb"]()
    monkeypatch.setattr("optax.__version__", "0.2.2")
    with pytest.raises(ValueError, match=f"needs optax {oldest} or newer, and optax 0.2.2 is installed"):
        Run(submission, workload, SETTINGS[FIRST_ORDER])
