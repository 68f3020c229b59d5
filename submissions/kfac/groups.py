"""A parameter-like tree as a few arrays: the matrices of layers of one shape stacked, and the other leaves.

A step on hundreds of small arrays spends its time on handing them over and on starting operations, not on arithmetic.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .layers import Layer, at_least_float32, dotted, is_diagonal, leaf_path, named_leaves, replace_layers

PyTree = Any


class Parts(NamedTuple):
    """What `split` makes of a tree.

    Attributes:
        matrices: group name -> its layers' matrices `[n_layers, n_rows, d_out]`, at least float32.
        others: dotted path -> a leaf of no layer, at least float32.
    """

    matrices: dict[str, Array]
    others: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers of one `(n_rows, d_out)` and kind of factors, their arrays stacked along a leading axis, in this order."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """`65x10`; `65dx10` where A is a diagonal alone, and `65x10d` where B is."""
        first = self.layers[0]
        return "x".join(f"{n}{'d' if is_diagonal((n, m)) else ''}" for n, m in first.factor_shapes)

    @property
    def factor_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Of the stacks of A and of B: `[n_layers, n, n]`, or `[n_layers, n, 1]` for diagonals."""
        inputs, outputs = self.layers[0].factor_shapes
        return (len(self.layers), *inputs), (len(self.layers), *outputs)

    def read(self, tree: PyTree) -> Array:
        """The layers' matrices in a parameter-like tree `[n_layers, n_rows, d_out]`."""
        rows = jnp.concatenate([part for layer in self.layers for part in layer.rows(tree)])
        return rows.reshape(len(self.layers), -1, self.layers[0].d_out)

    def stack(self, by_layer: Mapping[str, PyTree], missing: PyTree) -> PyTree:
        """One layer's arrays on top of another's; `missing` where a layer has none."""
        return jax.tree.map(lambda *each: jnp.stack(each), *(by_layer.get(own.name, missing) for own in self.layers))


def group_by_shape(layers: Sequence[Layer]) -> tuple[Group, ...]:
    """The layers in groups, both in the order of their first layer."""
    by_shape: dict[tuple[int, int, tuple[bool, bool]], list[Layer]] = {}
    for layer in layers:
        by_shape.setdefault((layer.n_rows, layer.d_out, layer.are_diagonal), []).append(layer)
    return tuple(Group(tuple(alike)) for alike in by_shape.values())


def unstack(groups: Sequence[Group], stacked: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The inverse of `Group.stack`: from group name -> stacked arrays to layer name -> this layer's arrays."""
    return {
        layer.name: jax.tree.map(lambda x, i=i: x[i], stacked[group.name])
        for group in groups
        for i, layer in enumerate(group.layers)
    }


def split(tree: PyTree, groups: Sequence[Group]) -> Parts:
    """A parameter-like tree in parts."""
    leaves = named_leaves(tree)
    in_layers = {path for group in groups for layer in group.layers for path in layer.leaf_paths}
    others = {dotted(path): at_least_float32(leaf) for path, leaf in leaves.items() if path not in in_layers}
    return Parts({group.name: group.read(leaves) for group in groups}, others)


def join(like: PyTree, groups: Sequence[Group], parts: Parts) -> PyTree:
    """The tree that `parts` are of, with the structure, shapes and dtypes of `like`."""
    layers = tuple(layer for group in groups for layer in group.layers)
    tree = replace_layers(like, layers, unstack(groups, parts.matrices))

    def other(keys: Sequence[Any], leaf: Array) -> Array:
        return parts.others.get(dotted(leaf_path(keys)), leaf).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(other, tree)


def per_layer(values: Array) -> Array:
    """One value per layer `[n_layers]` -> `[n_layers, 1, 1]`, which broadcasts over the layers' matrices."""
    return values[:, None, None]
