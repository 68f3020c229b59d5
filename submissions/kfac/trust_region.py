"""The length of a direction: a bound for all layers together, or one length for each layer."""

import jax
import jax.numpy as jnp
from jax import Array

# Root mean square of a layer's step before the learning rate: about that of Adam's, so that one rate serves both.
# Source: Liu et al., "Muon is Scalable for LLM Training", 2025.
ROOT_MEAN_SQUARE = 0.2


def scale_to_unit_max(matrices: Array) -> Array:
    """Matrices `[k, n, m]` with a largest entry of one, whose squares neither overflow nor vanish; zeros stay zeros."""
    largest = jnp.abs(matrices).max((1, 2), keepdims=True)
    return matrices / jnp.where(largest > 0, largest, 1)


def scale_to_rms(directions: Array) -> tuple[Array, Array]:
    """Each direction `[k, n_rows, d_out]` at the length `ROOT_MEAN_SQUARE`, and whether it has a length `[k]`.

    A direction without one, which is zero or not finite, becomes zero. No square of an entry may overflow.
    """
    mean_square = jnp.square(directions).mean((1, 2))
    has_length = jnp.isfinite(mean_square) & (mean_square > 0)
    factor = ROOT_MEAN_SQUARE * jnp.where(has_length, jax.lax.rsqrt(mean_square), 0)
    return jnp.where(has_length[:, None, None], factor[:, None, None] * directions, 0), has_length


def kl_clip(inner_product: Array, bound: Array) -> Array:
    """Factor c `[]`, at most 1, for a preconditioned update u = F⁻¹g, so that (c u)ᵀ F (c u) is at most `bound`.

    Since uᵀFu = ⟨u, g⟩, c = min(1, sqrt(κ / ⟨u, g⟩)). A step of -lr·c·u then has a Kullback-Leibler divergence of about
    ½ lr² c² ⟨u, g⟩, at most ½ lr² κ. The bound holds for this direction; momentum adds earlier directions to it.
    The source bounds lr² ⟨u, g⟩. Here the bound is without lr², so that the schedule shrinks the region.

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
