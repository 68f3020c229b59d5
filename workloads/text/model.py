"""A causal transformer over characters.

Source: the decoder of Vaswani et al. 2017 (arXiv 1706.03762) with layer norms before each sublayer (Xiong et al. 2020,
arXiv 2002.04745).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from workloads.dropout import Dropout

_TEMPERATURE = 10_000.0


def position_embedding(length: int, features: int) -> jax.Array:
    """[length, features]: sines, then cosines, of the position, for frequencies in geometric progression."""
    n_frequencies = features // 2
    frequencies = _TEMPERATURE ** (-jnp.arange(n_frequencies) / n_frequencies)
    angles = jnp.arange(length)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class Block(nn.Module):
    """[batch, length, width] -> the same: causal attention, then an MLP, each with a residual connection."""

    num_heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        dropout = Dropout(deterministic=not train)
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.LayerNorm(name="layer_norm_attention")(x)
        y = nn.MultiHeadDotProductAttention(num_heads=self.num_heads, deterministic=True, name="attention")(
            y, mask=mask
        )
        x = x + dropout(y, dropout_rate)
        y = nn.LayerNorm(name="layer_norm_mlp")(x)
        y = nn.gelu(nn.Dense(self.mlp_dim, name="mlp_in")(y))
        return x + dropout(nn.Dense(x.shape[-1], name="mlp_out")(y), dropout_rate)


class CharacterTransformer(nn.Module):
    """Each output predicts the character after its position from the characters up to it."""

    vocabulary: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, characters: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        """int [batch, length] -> logits [batch, length, vocabulary]."""
        x = nn.Embed(self.vocabulary, self.width, name="embedding")(characters)
        x = x + position_embedding(characters.shape[1], self.width)
        x = Dropout(deterministic=not train)(x, dropout_rate)
        for index in range(self.depth):
            x = Block(self.num_heads, self.mlp_dim, name=f"block_{index}")(x, train=train, dropout_rate=dropout_rate)
        x = nn.LayerNorm(name="layer_norm_out")(x)
        return nn.Dense(self.vocabulary, name="head")(x)
