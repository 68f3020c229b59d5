"""Estimates on several devices: values that differ between devices, and sums over devices.

Inside `shard_map`, JAX's type of a value names the mesh axes over which the value *varies*. The gradient with respect
to a value that does not vary is summed over the devices. Factors need each device's own gradients, before the square;
so parameters and perturbations are first marked as varying. Without such types (`check_vma=False`, `pmap`), gradients
are each device's own already.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

PyTree = Any
AxisNames = str | tuple[str, ...]


def vary(tree: PyTree, axis_name: AxisNames | None) -> PyTree:
    """Inside `shard_map`, the same values marked as device-varying, so that gradients are not summed over devices.

    Zero times an axis index is device-varying, and so is what it is added to. Outside `shard_map` nothing changes.

    Args:
        axis_name: along which they vary; None for all axes.
    """
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if axis_name is not None:
        axes = tuple(axis for axis in axes if axis in _names(axis_name))
    if not axes:
        return tree
    nothing = 0 * jax.lax.axis_index(axes)

    def one(x: Array) -> Array:
        return x + nothing.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x

    return jax.tree.map(one, tree)


def check_axes(outputs: PyTree, axis_name: AxisNames | None) -> None:
    """
    Raises:
        ValueError: inside `shard_map`, a model's outputs vary over devices along other axes than those named, too.
    """
    if axis_name is None:
        return
    kinds: list[Any] = [jax.typeof(leaf) for leaf in jax.tree.leaves(outputs)]  # a value's type says its axes
    varying = set().union(*(k.manual_axis_type.varying if hasattr(k, "manual_axis_type") else k.vma for k in kinds))
    if others := sorted(varying - set(_names(axis_name))):
        raise ValueError(f"the outputs vary along the axis {others[0]!r}, too: name all axes in `axis_name`")


def _names(axis_name: AxisNames) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else axis_name


def is_explicit(mesh: Any) -> bool:
    """Whether arrays on a mesh have their sharding in their type, as by `jax.make_mesh`."""
    return AxisType.Explicit in mesh.axis_types


def on_all_devices(rows: Array) -> dict[str, Any]:
    """Arguments of `jnp.einsum` for a product of split rows: on an explicit mesh, its result is on every device."""
    mesh = jax.typeof(rows).sharding.mesh
    return {"out_sharding": NamedSharding(mesh, PartitionSpec())} if is_explicit(mesh) else {}


def sum_over(tree: PyTree, axis_name: AxisNames | None) -> PyTree:
    """Every leaf summed over the devices along the axes, if any: one that is equal on n devices is multiplied by n."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
