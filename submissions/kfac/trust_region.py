"""Bounds on the length of a direction."""

import jax.numpy as jnp
from jax import Array


def kl_clip(inner_product: Array, bound: Array) -> Array:
    """Factor `[]`, at most 1, that keeps ⟨u, g⟩ of a preconditioned update u = F⁻¹g within `bound`.

    A step of -lr·u has a Kullback-Leibler divergence of about ½ lr² uᵀFu = ½ lr² ⟨u, g⟩, so it stays below ½ lr² κ.
    It bounds the direction u, to which momentum then adds earlier ones, not the step that is taken.
    Bounding ⟨u, g⟩ rather than lr² ⟨u, g⟩, as the source does, lets the learning rate's schedule shrink the region.

    Args:
        inner_product: ⟨u, g⟩ `[]` over all preconditioned layers.
        bound: κ `[]`.

    Source: Ba, Grosse and Martens, "Distributed Second-Order Optimization using Kronecker-Factored Approximations",
    2017.
    """
    # A sum that overflowed to both infinities is NaN: the step is too long to take any of it.
    predicted = jnp.where(jnp.isnan(inner_product), jnp.inf, inner_product)
    predicted = jnp.maximum(predicted, jnp.finfo(inner_product.dtype).tiny)
    return jnp.minimum(1, jnp.sqrt(bound / predicted))
