"""Estimates inside `shard_map`, `pmap` and `vmap`: what is one device's own, and sums over devices.

Inside `shard_map`, JAX types a value by the mesh axes over which it *varies*, and sums the gradient for a value that
does not vary over all devices. Factors need each device's own gradients, before the square; so parameters and
perturbations are made varying first. Without that typing (`check_vma=False`, `pmap`) gradients are each device's own
already.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any
AxisNames = str | tuple[str, ...]


def vary(tree: PyTree) -> PyTree:
    """Inside `shard_map`, the same values marked as device-varying, so that gradients are not summed over devices.

    Zero times an axis index is device-varying, and so is what it is added to. Outside `shard_map` nothing changes.
    """
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if not axes:
        return tree
    nothing = 0 * jax.lax.axis_index(axes)

    def one(x: Array) -> Array:
        return x + nothing.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x

    return jax.tree.map(one, tree)


def own_key(key: Array | None, axis_name: AxisNames | None) -> Array | None:
    """A key for each device along the axes; the key itself, if there is one, without axes."""
    return key if key is None or axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def sum_over(tree: PyTree, axis_name: AxisNames | None) -> PyTree:
    """Every leaf summed over the devices along the axes, if any; one that is equal on n devices becomes n times it."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
