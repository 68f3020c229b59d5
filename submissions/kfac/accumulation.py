"""The first stage of an update: drop gradients that are not finite, clip, and average new estimates of the curvature.

An average leaves out estimates that are zero, not finite, or too large to average. This is decided for each factor
alone: before a head that is initialised to zero, and with reduce for attention keys, B is zero and A is not.

Axes: averages of the layers of one shape are stacked, `[n_layers, n, m]`. For example, two layers of 64 inputs, a bias
and 10 outputs have averages `[2, 65, 65]` of A and `[2, 10, 10]` of B.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .factors import moving_average
from .groups import Group, Parts, per_layer
from .schedules import Scalar

PyTree = Any

# Sums up to this count as finite. It leaves room for rounding, and for the difference of two of them.
_LARGEST = float(jnp.finfo(jnp.float32).max) / 4


class Average(NamedTuple):
    """Moving averages of one kind of estimate, for the layers of a group.

    Attributes:
        value: `[n_layers, n, m]`, of the parameters' dtype but at least float32; zero before a first estimate.
        n_estimates: how many were averaged `[n_layers]` int32.
    """

    value: Array
    n_estimates: Array


class Fallbacks(NamedTuple):
    """How often a layer's new curvature, or a parameter's gradient, was not used.

    Attributes:
        n_zero: `[]` int32, estimates that were zero: of a dead layer, of layers before a head that is initialised to
            zero, and with reduce always of attention keys.
        n_faulty: `[]` int32, times that a gradient, estimate, inverse, root or basis was not used since it was not
            finite (or, of a basis, not orthogonal).
    """

    n_zero: Array
    n_faulty: Array

    def plus(self, n_zero: int | Array = 0, n_faulty: int | Array = 0) -> "Fallbacks":
        return Fallbacks(self.n_zero + n_zero, self.n_faulty + n_faulty)


def usable_gradients(gradients: Parts, max_norm: Scalar | None = None) -> tuple[Parts, Array]:
    """The gradients, clipped by global norm; zero where a layer's, or another leaf's, sum of squares is not finite.

    Also returns how many were set to zero, `[]` int32.

    Args:
        max_norm: largest global norm, computed without those set to zero, since one NaN would make the norm NaN; None
            for no clipping.
    """
    sizes = Parts(
        {name: jnp.square(stack).sum((1, 2), keepdims=True) for name, stack in gradients.matrices.items()},
        {name: jnp.square(leaf).sum() for name, leaf in gradients.others.items()},
    )
    flags = jax.tree.map(lambda size: size < _LARGEST, sizes)
    scale: Scalar = 1.0
    if max_norm is not None:
        kept = jax.tree.map(lambda size, flag: jnp.where(flag, size, 0).sum(), sizes, flags)
        norm = jnp.sqrt(sum(jax.tree.leaves(kept), jnp.zeros([])))
        scale = jnp.where(norm > max_norm, max_norm / norm, 1)
    used = jax.tree.map(lambda g, flag: jnp.where(flag, g * scale, 0), gradients, flags)
    return used, count_false(jax.tree.leaves(flags))


def count_false(flags: Iterable[Array]) -> Array:
    """How many of the flags, in arrays of any shape, are false `[]` int32."""
    return sum(((~flag).sum(dtype=jnp.int32) for flag in flags), jnp.zeros([], jnp.int32))


def init_fallbacks() -> Fallbacks:
    return Fallbacks(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))


def init_average(shape: tuple[int, int, int], dtype: Any) -> Average:
    return Average(jnp.zeros(shape, dtype), jnp.zeros(shape[0], jnp.int32))


def init_factors(groups: Sequence[Group], parts: Parts) -> dict[str, tuple[Average, Average]]:
    """Group name -> averages of A and of B, before a first estimate, for the parameters in `parts`."""
    factors = {}
    for group in groups:
        inputs, outputs = group.factor_shapes
        dtype = parts.matrices[group.name].dtype
        factors[group.name] = init_average(inputs, dtype), init_average(outputs, dtype)
    return factors


def accumulate(
    averages: Mapping[str, PyTree], groups: Sequence[Group], estimates: Mapping[str, PyTree], decay: Scalar
) -> tuple[dict[str, PyTree], Fallbacks]:
    """Update the averages by one batch's estimates.

    An estimate is not used if it is zero, not finite, or so large that the average could overflow.

    Args:
        averages: group name -> tree of `Average`.
        estimates: layer name -> tree of arrays, of the same structure; layers may be missing.
        decay: of the moving average.

    Returns:
        The averages, and in how many layers an estimate was not used.
    """
    new, fallbacks = {}, init_fallbacks()
    for group in groups:
        old = jax.tree.leaves(averages[group.name], is_leaf=_is_average)
        treedef: Any = jax.tree.structure(averages[group.name], is_leaf=_is_average)  # JAX has no type for it
        missing = treedef.unflatten([jnp.zeros(average.value.shape[1:]) for average in old])
        batch = treedef.flatten_up_to(group.stack(estimates, missing))
        for average, estimate in zip(old, batch, strict=True):
            if estimate.shape != average.value.shape:
                expected = f"estimates of {estimate.shape} for averages of {average.value.shape}"
                raise ValueError(f"layers {group.name}: {expected}; take both from one `find_layers`")
        updated = [_updated(average, estimate, decay) for average, estimate in zip(old, batch, strict=True)]
        new[group.name] = treedef.unflatten([average for average, _, _ in updated])
        is_given = jnp.array([layer.name in estimates for layer in group.layers])
        is_finite, is_nonzero = (jnp.stack(flags).all(0) for flags in list(zip(*updated, strict=True))[1:])
        fallbacks = fallbacks.plus(
            n_zero=(is_given & is_finite & ~is_nonzero).sum(dtype=jnp.int32),
            n_faulty=(is_given & ~is_finite).sum(dtype=jnp.int32),
        )
    return new, fallbacks


def averaged_values(averages: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The averages' values alone."""
    found: dict[str, PyTree] = jax.tree.map(lambda average: average.value, dict(averages), is_leaf=_is_average)
    return found


def has_estimates(averages: Mapping[str, PyTree]) -> dict[str, Array]:
    """Group name -> whether each of a layer's averages has an estimate `[n_layers]`."""
    return {
        name: jnp.stack([average.n_estimates > 0 for average in jax.tree.leaves(tree, is_leaf=_is_average)]).all(0)
        for name, tree in averages.items()
    }


def _updated(average: Average, estimate: Array, decay: Scalar) -> tuple[Average, Array, Array]:
    """The new average; for each layer whether its estimate is finite, and whether it is not zero `[n_layers]`."""
    n = average.n_estimates
    value = moving_average(average.value, estimate, jnp.asarray(decay), per_layer(n))
    size = jnp.abs(estimate).sum((1, 2))  # NaN and infinity fail the first comparison; only zeros sum to zero
    is_finite, is_nonzero = size < _LARGEST, size != 0
    is_used = is_finite & is_nonzero
    return Average(jnp.where(per_layer(is_used), value, average.value), n + is_used), is_finite, is_nonzero


def _is_average(node: PyTree) -> bool:
    return isinstance(node, Average)
