"""Wide ResNet with group normalisation, so that no example depends on another.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", 2016 (arXiv 1605.07146), with GroupNorm (Wu and He 2018,
arXiv 1803.08494) in place of batch normalisation.
"""

import jax
from flax import linen as nn

from workloads.dropout import Dropout

_N_NORM_GROUPS = 8  # a choice


def _conv(features: int, size: int, stride: int, name: str) -> nn.Module:
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nn.Conv(features, (size, size), (stride, stride), use_bias=False, kernel_init=init, name=name)


class ResidualBlock(nn.Module):
    """[batch, height, width, channels] -> [batch, height / stride, width / stride, features], pre-activation."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        y = nn.relu(nn.GroupNorm(_N_NORM_GROUPS, name="norm_1")(x))
        is_identity = x.shape[-1] == self.features and self.stride == 1
        shortcut = x if is_identity else _conv(self.features, 1, self.stride, "conv_shortcut")(y)
        y = _conv(self.features, 3, self.stride, "conv_1")(y)
        y = nn.relu(nn.GroupNorm(_N_NORM_GROUPS, name="norm_2")(y))
        y = Dropout(deterministic=not train)(y, dropout_rate)
        return shortcut + _conv(self.features, 3, 1, "conv_2")(y)


class WideResNet(nn.Module):
    """WRN-`depth`-`widen_factor`; `depth` is 4 more than a multiple of 6."""

    num_classes: int
    depth: int = 16
    widen_factor: int = 4

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> logits [batch, num_classes].

        Raises:
            ValueError: there is no such depth.
        """
        blocks_per_stage, rest = divmod(self.depth - 4, 6)
        if rest or blocks_per_stage < 1:
            raise ValueError(f"a Wide ResNet's depth is 4 more than a multiple of 6, not {self.depth}")
        x = _conv(16, 3, 1, "conv_stem")(images)
        for stage, base in enumerate((16, 32, 64)):
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                block = ResidualBlock(base * self.widen_factor, stride, name=f"stage_{stage}_block_{index}")
                x = block(x, train=train, dropout_rate=dropout_rate)
        x = nn.relu(nn.GroupNorm(_N_NORM_GROUPS, name="norm_out")(x))
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))
