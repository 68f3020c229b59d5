"""The vision transformer of AlgoPerf's `imagenet_vit`, with its parameter names.

Source: the simplified ViT (Beyer et al. 2022, arXiv 2205.01580): fixed sine-cosine position embedding, mean
pooling, tanh pre-logits, zero-initialised head. `is_gated`, `norm_after` and `pools_by_attention` make AlgoPerf's
three variants of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from workloads.dropout import Dropout

_TEMPERATURE = 10_000.0


def position_embedding(height: int, width: int, features: int) -> jax.Array:
    """[1, height * width, features]: sin x, cos x, sin y, cos y for frequencies in geometric progression.

    Source: MoCo v3 (arXiv 2104.02057). Raises ValueError unless `features` is a multiple of 4 above 4.
    """
    if features % 4 or features < 8:
        raise ValueError(f"the ViT's width must be a multiple of 4 and at least 8, not {features}")
    n_frequencies = features // 4
    frequencies = _TEMPERATURE ** (-jnp.arange(n_frequencies) / (n_frequencies - 1))
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    x, y = x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None].astype(jnp.float32)


def _attention(num_heads: int, name: str) -> nn.MultiHeadDotProductAttention:
    return nn.MultiHeadDotProductAttention(
        num_heads=num_heads, kernel_init=nn.initializers.xavier_uniform(), deterministic=True, name=name
    )


def _dense(features: int) -> nn.Dense:
    return nn.Dense(
        features,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6),
    )


class MlpBlock(nn.Module):
    """[batch, tokens, width] -> the same, through one hidden layer of `mlp_dim`."""

    mlp_dim: int
    is_gated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = nn.gelu(_dense(self.mlp_dim)(x))
        if self.is_gated:
            x = x * _dense(self.mlp_dim)(x)
        x = Dropout(deterministic=not train)(x, dropout_rate)
        return _dense(width)(x)


class EncoderBlock(nn.Module):
    """[batch, tokens, width] -> the same: attention, then MLP, each with a residual connection."""

    mlp_dim: int
    num_heads: int
    is_gated: bool
    norm_after: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        attention = _attention(self.num_heads, "MultiHeadDotProductAttention_1")
        mlp = MlpBlock(self.mlp_dim, self.is_gated, name="MlpBlock_3")
        norms = nn.LayerNorm(name="LayerNorm_0"), nn.LayerNorm(name="LayerNorm_2")
        layers: list[Callable[[jax.Array], jax.Array]]
        layers = [attention, lambda y: mlp(y, train=train, dropout_rate=dropout_rate)]
        for layer, norm in zip(layers, norms, strict=True):
            y = layer(x if self.norm_after else norm(x))
            x = x + Dropout(deterministic=not train)(y, dropout_rate)
            if self.norm_after:
                x = norm(x)
        return x


class Encoder(nn.Module):
    depth: int
    mlp_dim: int
    num_heads: int
    is_gated: bool
    norm_after: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        for index in range(self.depth):
            block = EncoderBlock(
                self.mlp_dim, self.num_heads, self.is_gated, self.norm_after, name=f"encoderblock_{index}"
            )
            x = block(x, train=train, dropout_rate=dropout_rate)
        return x if self.norm_after else nn.LayerNorm(name="encoder_layernorm")(x)


class AttentionPooling(nn.Module):
    """[batch, tokens, width] -> [batch, width]: one learned query, then an MLP block; no dropout, as in AlgoPerf."""

    mlp_dim: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, x.shape[-1]))
        x = _attention(self.num_heads, "MultiHeadDotProductAttention_0")(probe, x)
        y = nn.LayerNorm(name="LayerNorm_0")(x)
        x = x + MlpBlock(self.mlp_dim, name="MlpBlock_0")(y, train=False, dropout_rate=0.0)
        return x[:, 0]


class ViT(nn.Module):
    num_classes: int
    patch_size: tuple[int, int]
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    is_gated: bool = False
    norm_after: bool = False
    pools_by_attention: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> logits [batch, num_classes]."""
        x = nn.Conv(self.width, self.patch_size, strides=self.patch_size, padding="VALID", name="conv_patch_extract")(
            images
        )
        batch, rows, columns, features = x.shape
        x = x.reshape(batch, rows * columns, features) + position_embedding(rows, columns, features)
        x = Dropout(deterministic=not train)(x, dropout_rate)
        encoder = Encoder(self.depth, self.mlp_dim, self.num_heads, self.is_gated, self.norm_after, name="Transformer")
        x = encoder(x, train=train, dropout_rate=dropout_rate)
        if self.pools_by_attention:
            x = AttentionPooling(self.mlp_dim, self.num_heads, name="MAPHead_0")(x)
        else:
            x = x.mean(axis=1)
        x = nn.tanh(nn.Dense(self.width, name="pre_logits")(x))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)
