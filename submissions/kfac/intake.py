"""What an update takes in, without what tells nothing: finite gradients, and moving averages of informative factors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .factors import moving_average
from .layers import Layer

PyTree = Any
Scalar = float | Array


def finite_gradients(gradients: PyTree) -> tuple[PyTree, Array]:
    """Gradients with zeros for a leaf whose sum of squares is not finite, and how many such there were `[]` int32."""

    def is_finite(gradient: Array) -> Array:
        size = jnp.square(gradient.astype(jnp.float32)).sum()
        return size < jnp.finfo(size.dtype).max / 4  # so that a kernel's and its bias's together are finite too

    flags = jax.tree.map(is_finite, gradients)
    kept = jax.tree.map(lambda g, flag: jnp.where(flag, g, 0), gradients, flags)
    return kept, count_false(jax.tree.leaves(flags))


def count_false(flags: Iterable[Array]) -> Array:
    """How many of the flags `[]` are false `[]` int32."""
    return sum((jnp.asarray(~flag, jnp.int32) for flag in flags), jnp.zeros([], jnp.int32))


class Averages(NamedTuple):
    """Complete at the start, of constant shapes.

    Attributes:
        n_estimates: layer name -> `[]` int32, informative estimates averaged.
        factors: layer name -> (A `[n_rows, n_rows]`, B `[d_out, d_out]`) float32.
    """

    n_estimates: dict[str, Array]
    factors: dict[str, tuple[Array, Array]]


def no_averages(layers: Sequence[Layer]) -> Averages:
    def zeros(size: int) -> Array:
        return jnp.zeros((size, size), jnp.float32)

    return Averages(
        {layer.name: jnp.zeros([], jnp.int32) for layer in layers},
        {layer.name: (zeros(layer.n_rows), zeros(layer.d_out)) for layer in layers},
    )


def accumulate(
    averages: Averages, estimates: Mapping[str, tuple[Array, Array]], decay: Scalar
) -> tuple[Averages, Array]:
    """Average in one batch's factors, where they tell something: finite, and neither zero.

    Args:
        estimates: layer name -> (A, B); layers may be missing.
        decay: of the moving average.

    Returns:
        The averages, and how many estimates were left out `[]` int32.
    """
    factors, counts = dict(averages.factors), dict(averages.n_estimates)
    informative = []
    for name, pair in estimates.items():
        traces = jnp.stack([jnp.trace(factor) for factor in pair])
        is_finite = jnp.stack([jnp.isfinite(factor).all() for factor in pair]).all()
        is_informative = is_finite & (traces > 0).all()
        factors[name] = tuple(
            jnp.where(is_informative, moving_average(average, estimate, jnp.asarray(decay), counts[name]), average)
            for average, estimate in zip(factors[name], pair, strict=True)
        )
        counts[name] = counts[name] + is_informative
        informative.append(is_informative)
    return Averages(counts, factors), count_false(informative)
