"""Options of the submissions with curvature that no search space sets, through the contract."""

from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest

import submissions
from submissions.kfac.routing import states_of
from tests.submissions.fake_workload import FakeWorkload, Trial, batches
from tests.submissions.test_contract import point, searched
from tuning.submission import load

BATCHES = batches()
# Those of expand are reduce's here, without shared positions.
WITH_CURVATURE = ("kfac_reduce", "kfac_muon_reduce", "soap")

pytestmark = pytest.mark.usefixtures("quick_compilation")


def state_of(trial: Trial, kind: type) -> Any:
    """The one state of a kind in the optimiser's."""
    (state,) = states_of(trial.optimizer_state[0], kind)
    return jax.tree.map(np.asarray, state)


@pytest.mark.parametrize("name", WITH_CURVATURE)
def test_sides_too_wide_for_a_whole_factor(name):
    """A hidden layer of 9,000: its B and the next one's A are diagonals, and nothing of it is square."""
    submission, wide = load(Path(submissions.__path__[0]) / name), FakeWorkload(n_hidden=9000)
    trial = Trial(submission, wide, point(**searched(submission))).run(0, 51, BATCHES)
    assert max(leaf.size for leaf in jax.tree.leaves(trial.optimizer_state[0])) == 9 * 9000
    logged = trial.recorder.logged
    assert logged[50]["loss"] < 0.5 * logged[0]["loss"]
    saved = trial.trees
    restored = flax.serialization.from_bytes(saved, flax.serialization.to_bytes(saved))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)


class Altered(FakeWorkload):
    """A workload whose `alter` changes the first parameters."""

    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        params, model_state = super().init_model_fn(rng)
        return self.alter(params), model_state


@pytest.fixture(scope="module")
def altered() -> Altered:
    return Altered()


def zero_head(params: Any) -> Any:
    """Every gradient behind it is zero at first."""
    return params | {"head": jax.tree.map(np.zeros_like, params["head"])}


def dead_layer(params: Any) -> Any:
    """It is saturated, and its gradient always zero."""
    return params | {"hidden": params["hidden"] | {"bias": np.full_like(params["hidden"]["bias"], 1e3)}}


@pytest.mark.parametrize("name", WITH_CURVATURE)
@pytest.mark.parametrize("alter", [zero_head, dead_layer])
def test_a_zero_is_counted_and_no_fault(name, alter, altered):
    """Of output factors; one that needs the inputs' alone has nothing to count."""
    altered.alter, trained = alter, load(Path(submissions.__path__[0]) / name)
    options = searched(trained) | {"schedule_fraction": 1.0}
    trial = Trial(trained, altered, point(**options)).run(0, 51, BATCHES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trial.trees))
    first, last = (trial.recorder.logged[step] for step in (0, 50))
    n_first, n_last = (logged["n_curvature_fallbacks"] for logged in (first, last))
    assert last["n_curvature_faults"] == 0
    if name == "kfac_muon_reduce":
        assert n_first == n_last == 0 and (alter is dead_layer or last["loss"] < 0.7 * first["loss"])
        return
    assert n_first > 0
    if alter is zero_head:
        assert n_last <= 3 and last["loss"] < 0.7 * first["loss"]
    else:
        assert n_last > 5
