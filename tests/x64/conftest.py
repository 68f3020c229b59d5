"""Tests of this folder need 64-bit JAX, which is set once per process: without JAX_ENABLE_X64=1 none is collected."""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

collect_ignore_glob = [] if os.environ.get("JAX_ENABLE_X64", "0").lower() in {"1", "true"} else ["*"]


@pytest.fixture
def randomized() -> Callable:
    """A parameter tree's shapes -> the tree with every leaf, biases included, drawn from N(0, 1) in float64."""

    def draw(params, seed: int = 0):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)

    return draw


@pytest.fixture
def kronecker_error() -> Callable:
    """Largest difference `[]` between A ⊗ B and the generalised Gauss-Newton block, over the block's largest entry."""

    def error(outputs: Callable, summed_loss: Callable, params, path: tuple[str, ...], n_terms, factors) -> jax.Array:
        block = gauss_newton_block(outputs, summed_loss, params, path) / n_terms
        return jnp.abs(jnp.kron(*factors) - block).max() / jnp.abs(block).max()

    return error


@pytest.fixture
def gauss_newton() -> Callable:
    return gauss_newton_block


def gauss_newton_block(outputs: Callable, summed_loss: Callable, params, path: tuple[str, ...]) -> jax.Array:
    """Jᵀ H J for the weights under `path`, `[n_rows·d_out, n_rows·d_out]`: kernel rows first, then the bias.

    `outputs` maps params to an array, of which J is the Jacobian; H is the Hessian of `summed_loss` for it.
    """
    leaves = params
    for key in path:
        leaves = leaves[key]
    shape = jax.eval_shape(outputs, params).shape
    flat_outputs = outputs(params).reshape(-1)

    def replaced(tree, keys, value):
        return {**tree, keys[0]: replaced(tree[keys[0]], keys[1:], value)} if keys else value

    jacobian = jax.jacrev(lambda value: outputs(replaced(params, path, value)).reshape(-1))(dict(leaves))
    columns = [jacobian[key].reshape(flat_outputs.size, -1) for key in ("kernel", "bias") if key in jacobian]
    j = jnp.concatenate(columns, axis=1)
    h = jax.hessian(lambda z: summed_loss(z.reshape(shape)))(flat_outputs)
    return j.T @ h @ j
