"""Dropout whose rate may be a traced value, which `flax.linen.Dropout` does not take."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class Dropout(nn.Module):
    """Inverted dropout, the same function of rate and random stream as `flax.linen.Dropout`.

    A static rate of 0 draws no random numbers and returns the input itself. At rate 1 output and gradient are 0.
    """

    deterministic: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, rate: float | jax.Array) -> jax.Array:
        """[...] -> [...]; an entry is dropped with probability `rate`, else scaled by 1 / (1 - rate)."""
        if self.deterministic or (isinstance(rate, (int, float)) and rate == 0):
            return inputs
        keep = 1.0 - rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), p=keep, shape=inputs.shape)
        # At keep = 0 the division would put 0 * inf = NaN into the gradient, although no entry is kept.
        divisor = jnp.where(jnp.asarray(keep) > 0, keep, 1.0).astype(inputs.dtype)
        return jnp.where(mask, inputs / divisor, jnp.zeros_like(inputs))
