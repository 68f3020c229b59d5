"""Micro-batches: their sums make the whole batch's step, curvature included, and only the parts' memory is needed."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from submissions.algoperf import micro_batches
from submissions.algoperf.contract import Submission
from submissions.algoperf.problem import Problem
from submissions.kfac.algoperf import KFAC
from submissions.kfac.algoperf.curvature import plain_batch
from submissions.kfac.fisher import Fisher
from submissions.kfac.layers import find_layers
from submissions.kfac.sharing import Sharing
from submissions.nadamw import submission as nadamw
from tests.submissions.fake_workload import BATCH_SIZE, FakeWorkload, Mode, Trial, batches


class Plain(nn.Module):
    """Positions that share weights, and nothing that depends on other examples or on random numbers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(6, name="shared")(x.reshape(len(x), 2, -1)))
        return nn.Dense(3, name="head")(x.mean(1))


class PlainWorkload(FakeWorkload):
    def __init__(self):
        self.metrics_logger, self.model = None, Plain()

    def init_model_fn(self, rng):
        return self.model.init(rng, jnp.zeros((1, 8)))["params"], {}

    def model_fn(
        self,
        params,
        augmented_and_preprocessed_input_batch,
        model_state,
        mode: Mode,
        rng,
        update_batch_norm,
        dropout_rate=0.0,
    ):
        return self.model.apply({"params": params}, augmented_and_preprocessed_input_batch["inputs"]), model_state


@pytest.fixture(scope="module")
def workload():
    return PlainWorkload()


def uneven_batch() -> dict[str, np.ndarray]:
    """Every fourth example from the first is padding, so that one of four parts has nothing."""
    batch = batches()[0]
    return batch | {"weights": (np.arange(BATCH_SIZE) % 4 > 0).astype(np.float32)}


def assert_close(got, expected) -> None:
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * float(np.abs(right).max()))


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("fisher", [Fisher.EXACT, Fisher.EMPIRICAL])
@pytest.mark.parametrize("sharing", list(Sharing))
def test_sums_over_parts_are_the_whole_batchs(workload, sharing, fisher, n):
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    problem = Problem(workload, uneven_batch(), state, 0.0, None, jax.random.PRNGKey(1))
    layers = find_layers(params)
    point = {"learning_rate": 0.1, "damping": 1e-3, "fisher": fisher, "rows_per_width": 0}

    def estimate(n_parts: int) -> dict:
        h = KFAC.hyperparameters(**point, micro_batches=n_parts)
        factors = jax.jit(lambda p: KFAC(sharing).factors(problem, p, layers, h, jax.random.PRNGKey(2)))(params)
        batch = jax.jit(lambda p: plain_batch(problem, p, h))(params)
        return {"factors": factors, "loss": batch.loss, "gradients": batch.gradients}

    whole, parts = estimate(1), estimate(n)
    assert len(whole["factors"]) == 2
    assert_close(parts, whole)


def test_the_mean_is_over_all_terms_not_over_parts(workload):
    """By hand, with a part of padding alone, whose own mean would be 0 / 0."""
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    batch = uneven_batch()
    h = dataclasses.replace(KFAC.hyperparameters(learning_rate=0.1, damping=1e-3), micro_batches=4)
    got = plain_batch(Problem(workload, batch, state, 0.0, None, jax.random.PRNGKey(1)), params, h)
    losses = optax.softmax_cross_entropy(workload.model.apply({"params": params}, batch["inputs"]), batch["targets"])
    np.testing.assert_allclose(got.loss, losses[batch["weights"] > 0].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "submission",
    [nadamw, Submission(KFAC(Sharing.REDUCE)), Submission(KFAC(Sharing.EXPAND))],
    ids=["nadamw", "kfac_reduce", "kfac_expand"],
)
def test_training_is_the_same(submission, workload):
    """Ten steps. The curvature is empirical and of all rows, as the parts' pseudo-targets and rows are other draws.

    Predictions are compared, as Adam makes full steps of the rounding along what these do not depend on.
    """
    values = {"learning_rate": 0.01, "one_minus_beta1": 0.1}
    if submission is not nadamw:
        values |= {"fisher": "empirical", "damping": 1e-2, "rows_per_width": 0}

    def trained(n: int):
        point = values | {"micro_batches": n}
        trial = Trial(submission, workload, collections.namedtuple("Point", point)(**point)).run(0, 10, batches())
        return jax.nn.softmax(workload.model.apply({"params": trial.params}, batches()[0]["inputs"]))

    np.testing.assert_allclose(trained(4), trained(1), atol=1e-4)


def test_dropout_differs_from_part_to_part():
    """A batch of one example many times over: with the same draws in each part, all parts' sums would be equal."""
    workload = FakeWorkload()
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    batch = jax.tree.map(lambda x: np.repeat(x[:1], BATCH_SIZE, 0), batches()[0])

    def loss(part: Problem, index):
        logits, model_state = part.forward(params)
        return jnp.zeros(2).at[index].set(part.loss(logits)[0]), model_state

    seen = Problem(workload, batch, state, 0.0, 0.5, jax.random.PRNGKey(1)).summed(2, loss)[0]
    assert abs(seen[0] - seen[1]) > 1e-3


def test_part_i_has_every_nth_example():
    batch = {"inputs": np.arange(12.0).reshape(6, 2), "targets": np.arange(6)}
    parts = micro_batches.divide(jax.tree.map(jnp.asarray, batch), 3)
    np.testing.assert_array_equal(parts["targets"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(parts["inputs"][1], [[2, 3], [8, 9]])


def test_memory_falls(workload):
    """Of a wide forward and backward pass, by the compiled program's own count."""
    wide = nn.Sequential([nn.Dense(512), nn.tanh, nn.Dense(512), nn.tanh, nn.Dense(3)])
    params = wide.init(jax.random.PRNGKey(0), jnp.zeros((1, 8)))
    x = {"inputs": jnp.zeros((4096, 8)), "targets": jnp.zeros((4096, 3))}

    def gradients(n: int):
        def one(batch, carried, index):
            def loss(p):
                return jnp.square(wide.apply(p, batch["inputs"]) - batch["targets"]).sum()

            return jax.grad(loss)(params), carried

        return jax.jit(lambda batch: micro_batches.summed(one, micro_batches.divide(batch, n), (), n)[0])

    whole, eighth = (gradients(n).lower(x).compile().memory_analysis().temp_size_in_bytes for n in (1, 8))
    assert eighth < 0.4 * whole


def test_what_cannot_be_split_is_refused():
    batch = {"inputs": jnp.zeros((6, 2)), "targets": jnp.zeros(6)}
    with pytest.raises(ValueError, match="micro_batches 4 on 1 devices does not divide the batch of 6 examples"):
        micro_batches.divide(batch, 4)
    graphs = collections.namedtuple("Graphs", ["n_node"])(jnp.ones(6))
    with pytest.raises(ValueError, match="not for packed graphs: use a smaller batch"):
        micro_batches.divide(batch | {"inputs": graphs}, 2)
