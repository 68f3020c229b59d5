"""Bounds on the length of a step."""

import jax.numpy as jnp
from jax import Array


def kl_clip(inner_product: Array, learning_rate: Array, bound: Array) -> Array:
    """Factor `[]`, at most 1, that keeps a step's predicted change of the model's output within `bound`.

    A step of -lr·u with u = F⁻¹g moves the output by about lr² uᵀFu = lr² ⟨u, g⟩, twice the Kullback-Leibler divergence.

    Args:
        inner_product: ⟨u, g⟩ `[]` over all preconditioned layers.
        learning_rate: lr `[]`.
        bound: κ `[]`.

    Source: Ba, Grosse and Martens, "Distributed Second-Order Optimization using Kronecker-Factored Approximations", 2017.
    """
    predicted = learning_rate**2 * jnp.maximum(inner_product, 0)
    return jnp.minimum(1, jnp.sqrt(bound / jnp.maximum(predicted, jnp.finfo(predicted.dtype).tiny)))
