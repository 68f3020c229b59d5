"""A batch in parts, one after another, so that only one part's activations are in memory at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def n_examples(batch: Mapping[str, Any]) -> int:
    """Examples of a batch, padding included; the targets may be a tuple, such as `(labels, paddings)`."""
    return len(jax.tree.leaves(batch["targets"])[0])


def divide(batch: Mapping[str, Any], n: int, mesh: Mesh | None = None) -> dict[str, PyTree]:
    """`[examples, …]` -> `[n, examples / n, …]`: part i has the examples i, i + n, i + 2n, …; none changes its device.

    Args:
        batch: `inputs`, `targets` and perhaps `weights`, examples leading.
        mesh: the devices, on one axis, that the examples are split over.

    Raises:
        ValueError: packed graphs, whose edges refer to nodes by index, or a number of examples that is no multiple of n
            times the number of devices.
    """
    if hasattr(batch["inputs"], "n_node"):
        raise ValueError("micro_batches is not for packed graphs: use a smaller batch")
    n_devices = 1 if mesh is None else mesh.size
    size = n_examples(batch)
    if size % (n * n_devices):
        raise ValueError(f"micro_batches {n} on {n_devices} devices does not divide the batch of {size} examples")

    def one(x: Array) -> Array:
        parts = jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0)
        if mesh is None or n_devices == 1:
            return parts
        return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec(None, *mesh.axis_names)))

    return jax.tree.map(one, dict(batch))


def summed(
    function: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]], parts: PyTree, carried: PyTree, n: int
) -> tuple[PyTree, PyTree]:
    """Call `function(part i, carried, i)` for each part in turn; return (sum of its first results, the last `carried`).

    Args:
        function: returns (what to sum, the next call's `carried`), with the same shapes for every part.
        parts: arrays `[n, …]`.
    """

    def add(total: tuple[PyTree, PyTree], x: tuple[Array, PyTree]) -> tuple[tuple[PyTree, PyTree], None]:
        index, part = x
        sums, carried = function(part, total[1], index)
        return (jax.tree.map(jnp.add, total[0], sums), carried), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(function, first, carried, jnp.asarray(0))[0]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, (zeros, carried), (jnp.arange(n), parts))[0]
