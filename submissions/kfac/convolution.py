"""The inputs of a convolution seen as a linear layer: patches, and their sums without building them.

Axes: inputs `[batch, *spatial, channels]`, patches `[batch, *spatial_out, window · channels]`. For example, images
`[8, 10, 10, 4]` and a window of 3 by 3 with strides of 2 ("SAME") have patches `[8, 5, 5, 36]`.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Convolution(NamedTuple):
    """Geometry of a convolution over `[batch, *spatial, channels]`, one entry per spatial axis.

    Attributes:
        window, strides, dilation: kernel size, window strides and kernel dilation.
        padding: (low, high) zeros added to each axis; where negative, entries taken away.
        input_dilation: k puts k - 1 zeros between neighbouring inputs, as a transposed convolution does.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...] = ()

    def offsets(self, x: Array) -> list[Array]:
        """For each kernel position, in the kernel's order, the inputs it meets: `[batch, *spatial_out, channels]`."""
        spread = self.input_dilation or (1,) * len(self.window)
        inner = [(low, high, step - 1) for (low, high), step in zip(self.padding, spread, strict=True)]
        padded = jax.lax.pad(x, jnp.zeros([], x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
        reach = [(size - 1) * step for size, step in zip(self.window, self.dilation, strict=True)]
        n_out = [(n - r - 1) // s + 1 for n, r, s in zip(padded.shape[1:-1], reach, self.strides, strict=True)]
        slices = []
        for position in itertools.product(*(range(size) for size in self.window)):
            start = [p * step for p, step in zip(position, self.dilation, strict=True)]
            stop = [b + (n - 1) * s + 1 for b, n, s in zip(start, n_out, self.strides, strict=True)]
            index = (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *self.strides, 1)
            slices.append(jax.lax.slice(padded, *index))
        return slices


def patches(x: Array, convolution: Convolution) -> Array:
    """`[batch, *spatial, channels]` -> `[batch, *spatial_out, window·channels]` in the order of a Flax kernel."""
    return jnp.concatenate(convolution.offsets(x), axis=-1)


def patch_sums(x: Array, convolution: Convolution) -> tuple[Array, int]:
    """Sum of each example's patches over the output positions `[batch, window·channels]`, and their number.

    Equal to summing `patches`, with memory for one strided view at a time.
    """
    slices = convolution.offsets(x)
    spatial = tuple(range(1, x.ndim - 1))
    return jnp.concatenate([part.sum(spatial) for part in slices], axis=-1), math.prod(slices[0].shape[1:-1])
