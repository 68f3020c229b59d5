"""The loss of one position, by which a workload's kind of loss is found out."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest

from submissions.algoperf.problem import Problem
from submissions.kfac import Geometry, LossKind, probe

N_POSITIONS, N_TOKENS = 6, 5


def problem(loss_fn) -> Problem:
    batch = {
        "inputs": jnp.zeros((4, N_POSITIONS)),
        "targets": jnp.zeros((4, N_POSITIONS), jnp.int32),
        "weights": jnp.ones((4, N_POSITIONS)),
    }
    return Problem(SimpleNamespace(loss_fn=loss_fn), batch, None, 0.0, None, jax.random.key(0))


@pytest.mark.parametrize("needs_all", [False, True])
def test_one_position_is_enough_where_the_loss_allows_it(needs_all):
    """All positions of a vocabulary of 50,000 would be folded into constants by the compiler, for minutes."""
    shapes = []

    def loss_fn(label_batch, logits_batch, mask_batch, label_smoothing):
        shapes.append((label_batch.shape, logits_batch.shape, mask_batch.shape))
        if needs_all:
            logits_batch = logits_batch.reshape(-1, N_POSITIONS, N_TOKENS)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_batch, label_batch)
        return {"summed": (losses * mask_batch).sum()}

    loss = problem(loss_fn).position_loss((4, N_POSITIONS, N_TOKENS))
    assert probe(loss, N_TOKENS) == Geometry(LossKind.SOFTMAX)
    n = N_POSITIONS if needs_all else 1
    assert shapes[-1] == ((1, n), (1, n, N_TOKENS), (1, n))


def test_a_loss_that_averages_over_positions_keeps_its_scale():
    def loss_fn(label_batch, logits_batch, mask_batch, label_smoothing):
        losses = jnp.abs(logits_batch - label_batch).mean(1)  # as fastMRI's, over the rows of an image
        return {"summed": (losses * mask_batch[:, :1]).sum()}

    own = problem(loss_fn)
    own.batch["targets"] = jnp.zeros((4, N_POSITIONS, 3))
    geometry = probe(own.position_loss((4, N_POSITIONS, 3)), 3)
    assert geometry.kind is LossKind.ABSOLUTE and geometry.scale == pytest.approx(1 / N_POSITIONS**2)


def test_targets_with_the_outputs_axes_keep_the_last_one():
    def loss_fn(label_batch, logits_batch, mask_batch, label_smoothing):
        assert label_batch.shape == logits_batch.shape and label_batch.shape in ((1, 1, 3), (1, 2, 3))
        return {"summed": 0.5 * jnp.square(logits_batch - label_batch).sum()}

    own = problem(loss_fn)
    own.batch["targets"] = jnp.zeros((4, N_POSITIONS, 3))
    assert probe(own.position_loss((4, N_POSITIONS, 3)), 3).kind is LossKind.SQUARE
