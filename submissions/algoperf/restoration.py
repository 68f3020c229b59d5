"""Arrays as they come back from a checkpoint of the official runner."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

PyTree = Any


def without_device_axis(tree: PyTree, shapes: PyTree, sharding: Sharding) -> PyTree:
    """A tree in the shapes that its arrays had when they were made.

    The official runner restores each array once per device, on a new leading axis. The copies are equal.

    Args:
        tree: the arrays, restored or not.
        shapes: the same tree of `jax.ShapeDtypeStruct`.
        sharding: where restored arrays are put.
    """
    leaves, expected = jax.tree.leaves(tree), jax.tree.leaves(shapes)
    if not leaves or len(leaves) != len(expected) or np.ndim(leaves[0]) != len(expected[0].shape) + 1:
        return tree
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x[0]), sharding), tree)
