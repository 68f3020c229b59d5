"""Parameters and states in one form, whether newly initialised, returned by a step, or restored from a checkpoint."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

PyTree = Any


def as_returned_by_a_step(tree: PyTree, shapes: PyTree, sharding: Sharding) -> PyTree:
    """The tree as a compiled step returns it, so that no step is compiled again for arrays of another form.

    Arrays that were initialised, or read from a file, get the sharding `sharding`. The official runner restores each
    array with a new leading axis of equal copies, one per device; one copy is kept. The form of the tree's first array
    is taken to be that of all.

    Args:
        tree: the arrays.
        shapes: the tree of `jax.ShapeDtypeStruct` of the newly initialised arrays.
        sharding: of the arrays that a step returns.
    """
    leaves, expected = jax.tree.leaves(tree), jax.tree.leaves(shapes)
    if not leaves or len(leaves) != len(expected):
        return tree
    if np.ndim(leaves[0]) == len(expected[0].shape) + 1:
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x[0]), sharding), tree)
    if isinstance(leaves[0], jax.Array) and leaves[0].sharding == sharding:
        return tree
    return jax.device_put(tree, sharding)
