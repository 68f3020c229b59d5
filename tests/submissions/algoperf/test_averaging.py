"""Averaged parameters: the iterates stay as they are, and what the caller sees is their weighted mean."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.algoperf import schedule
from submissions.algoperf.averaging import Averaged, _moved
from submissions.algoperf.contract import Submission
from submissions.algoperf.first_order import FirstOrder
from submissions.algoperf.hyperparameters import Hyperparameters
from submissions.kfac.algoperf import KFACMuon
from submissions.kfac.sharing import Sharing
from tests.submissions.fake_workload import FakeWorkload, Mode, Trial, batches

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

N_STEPS = 12


def after_each_step(algorithm, point) -> list:
    """(optimizer state, params, model state) after each step of a short run."""
    workload, batch_list = FakeWorkload(), batches()
    trial = Trial(Submission(algorithm), workload, namedtuple("Hyperparameters", point)(**point))
    return [trial.run(step, step + 1, batch_list).trees for step in range(N_STEPS)]


@pytest.fixture(scope="module")
def iterates():
    return [trees[1:] for trees in after_each_step(KFACMuon(Sharing.REDUCE), {"learning_rate": 0.02})]


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_it_is_the_weighted_mean_of_the_iterates(iterates, share):
    """Each iterate's weight, multiplied out in float64: its own share, less what every later step takes of it."""
    point = {"learning_rate": 0.02, "averaged_share": share}
    averaged = after_each_step(Averaged(KFACMuon(Sharing.REDUCE)), point)
    steps = 1 / (1 + share * np.arange(N_STEPS))
    for n, (state, *mean) in enumerate(averaged, start=1):
        weights = [steps[i] * np.prod(1 - steps[i + 1 : n]) for i in range(n)]
        assert sum(weights) == pytest.approx(1)
        for i, own in enumerate(map(jax.tree.leaves, mean)):
            each = zip(*(jax.tree.leaves(pair[i]) for pair in iterates[:n]), strict=True)
            expected = [np.einsum("i,i...", weights, np.float64(leaf)) for leaf in each]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), own, expected)
        jax.tree.map(np.testing.assert_array_equal, state.params, iterates[n - 1][0])


def test_a_share_of_zero_is_the_last_iterate(iterates):
    point = {"learning_rate": 0.02, "averaged_share": 0.0}
    averaged = after_each_step(Averaged(KFACMuon(Sharing.REDUCE)), point)
    jax.tree.map(np.testing.assert_array_equal, [trees[1:] for trees in averaged], iterates)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_numbers_too_coarse_for_small_moves_are_the_iterate(dtype):
    """In bfloat16, 1 + (2 - 1) / 1000 is 1: such an average would never move again."""
    moved = _moved(jnp.ones(3, dtype), 2 * jnp.ones(3, dtype), jnp.asarray(1e-3))
    assert moved.dtype == dtype and (moved == 2).all()


def test_a_model_without_state_may_return_none_for_an_empty_one():
    class Stateless(FakeWorkload):
        """As the official ViT: `{}` at first, then None."""

        def init_model_fn(self, rng):
            params, self.batch_stats = super().init_model_fn(rng)
            return params, {}

        def model_fn(self, params, batch, model_state, mode: Mode, *arguments, **named):
            return super().model_fn(params, batch, self.batch_stats, mode, *arguments, **named)[0], None

    point = namedtuple("Hyperparameters", ["learning_rate"])(0.02)
    trial = Trial(Submission(Averaged(KFACMuon(Sharing.REDUCE))), Stateless(), point).run(0, 3, batches())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trial.params))


def test_a_model_whose_state_begins_with_its_first_step_trains():
    class Later(FakeWorkload):
        def init_model_fn(self, rng):
            return super().init_model_fn(rng)[0], {}

    point = namedtuple("Hyperparameters", ["learning_rate"])(0.02)
    later = Trial(Submission(Averaged(KFACMuon(Sharing.REDUCE))), Later(), point).run(0, 3, batches())
    usual = Trial(Submission(Averaged(KFACMuon(Sharing.REDUCE))), FakeWorkload(), point).run(0, 3, batches())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (later.params, later.model_state),
        (usual.params, usual.model_state),
    )


def test_an_algorithm_without_the_option_is_refused():
    with pytest.raises(TypeError, match="Hyperparameters must inherit from AveragingOptions, too"):
        Averaged(FirstOrder(Hyperparameters, lambda h, params: optax.sgd(h.learning_rate), schedule.cosine))
