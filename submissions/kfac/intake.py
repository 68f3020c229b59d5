"""What an update takes in, without what tells nothing: finite gradients, and moving averages of informative factors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .factors import moving_average
from .groups import Group, Parts, for_each

Scalar = float | Array


def finite_gradients(gradients: Parts) -> tuple[Parts, Array]:
    """Gradients with zeros for a layer, or another leaf, whose sum of squares is not finite; how many `[]` int32."""

    def is_finite(gradient: Array, axes: tuple[int, ...] | None) -> Array:
        size = jnp.square(gradient.astype(jnp.float32)).sum(axes, keepdims=True)
        return size < jnp.finfo(size.dtype).max / 4  # with room for what rotations add by rounding

    flags = Parts(
        {name: is_finite(stack, (1, 2)) for name, stack in gradients.matrices.items()},
        {name: is_finite(leaf, None) for name, leaf in gradients.others.items()},
    )
    kept = jax.tree.map(lambda g, flag: jnp.where(flag, g, 0), gradients, flags)
    return kept, count_false(jax.tree.leaves(flags))


def count_false(flags: Iterable[Array]) -> Array:
    """How many of the flags, in arrays of any shape, are false `[]` int32."""
    return sum(((~flag).sum(dtype=jnp.int32) for flag in flags), jnp.zeros([], jnp.int32))


class Averages(NamedTuple):
    """Complete at the start, of constant shapes.

    Attributes:
        n_estimates: group name -> informative estimates averaged, of each layer `[n_layers]` int32.
        factors: group name -> (A `[n_layers, n_rows, n_rows]`, B `[n_layers, d_out, d_out]`) float32.
    """

    n_estimates: dict[str, Array]
    factors: dict[str, tuple[Array, Array]]


def no_averages(groups: Sequence[Group]) -> Averages:
    def zeros(n_layers: int, size: int) -> Array:
        return jnp.zeros((n_layers, size, size), jnp.float32)

    return Averages(
        {group.name: jnp.zeros(len(group.layers), jnp.int32) for group in groups},
        {group.name: tuple(zeros(len(group.layers), size) for size in (group.n_rows, group.d_out)) for group in groups},
    )


def accumulate(
    averages: Averages, groups: Sequence[Group], estimates: Mapping[str, tuple[Array, Array]], decay: Scalar
) -> tuple[Averages, Array]:
    """Average in one batch's factors, where they tell something: finite, and neither zero.

    Args:
        estimates: layer name -> (A, B); layers may be missing.
        decay: of the moving average.

    Returns:
        The averages, and how many estimates were left out `[]` int32.
    """
    factors, counts = dict(averages.factors), dict(averages.n_estimates)
    n_left_out = jnp.zeros([], jnp.int32)
    for group in groups:
        is_given = jnp.array([layer.name in estimates for layer in group.layers])
        missing = tuple(jnp.zeros(factor.shape[1:]) for factor in factors[group.name])
        pair, count = group.stack(estimates, missing), counts[group.name]
        is_finite = jnp.stack([jnp.isfinite(factor).all((1, 2)) for factor in pair]).all(0)
        is_positive = jnp.stack([jnp.trace(factor, axis1=1, axis2=2) > 0 for factor in pair]).all(0)
        is_informative = is_finite & is_positive
        is_taken, n_before = for_each(is_informative), for_each(count)
        factors[group.name] = tuple(
            jnp.where(is_taken, moving_average(average, estimate, jnp.asarray(decay), n_before), average)
            for average, estimate in zip(factors[group.name], pair, strict=True)
        )
        counts[group.name] = count + is_informative
        n_left_out += (is_given & ~is_informative).sum(dtype=jnp.int32)
    return Averages(counts, factors), n_left_out
