from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac.coverage import warn_once


@pytest.fixture(scope="session", autouse=True)
def float32_products():
    """A GPU would round the operands of products to TF32, and polar factors to bfloat16."""
    before = jax.config.jax_default_matmul_precision
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.fixture(autouse=True)
def warnings_anew():
    """Warnings that are shown once in a process are shown to each test."""
    warn_once.cache_clear()


@pytest.fixture
def randomized() -> Callable:
    """(model, *inputs) -> parameters with every leaf, biases included, drawn from N(0, 0.5²) in its own dtype."""

    def draw(model, *inputs, seed: int = 0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
        return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)

    return draw
