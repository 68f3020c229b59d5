"""Which parameters are the weights of a linear layer, and how a layer's weights form one matrix.

A linear layer is `s = Wᵀ a + b` with input `a [d_in]` and output `s [d_out]`. Its kernel W is one leaf of the parameter
tree, its bias b another leaf of the same node. An embedding is a layer whose input is a one-hot vector.

A leaf is named by the keys on its way from the root, so that any tree will do: nested dicts, NNX states, dataclasses.
The box that Flax puts around a leaf (`nn.Partitioned`, `nnx.Param`) is no part of its name.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any
Path = tuple[str, ...]

# A layer has two sides: its inputs, with factor A, and its outputs, with factor B. A side that is wider than this, such
# as a vocabulary, keeps only the diagonal of its factor: a whole one of 8,192² float32 takes 256 MiB, and its
# decomposition more time than a run has. A choice; SOAP's limit is 10,000.
MAX_FACTOR_WIDTH = 8192

KERNEL_NAMES = ("kernel", "embedding")
_PROJECTIONS = ("query", "key", "value")
_BOX = "value"  # the attribute in which Flax's boxes hold their leaf


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer's place in the parameter tree and the split of its kernel into inputs and outputs.

    Attributes:
        path: keys from the root of the parameter tree to the node that holds the kernel and the bias.
        kernel_shape: `[*inputs, *outputs]`.
        n_output_axes: how many trailing axes of `kernel_shape` are outputs.
        has_bias: whether there is a bias of shape `[*outputs]`, perhaps with axes of length 1 more or fewer.
        max_width: of a side that is wider, the factor is its diagonal alone.
        kernel: the kernel's key in the node at `path`.
        bias: the bias's key there.
        index: position on a further leading axis of kernel and bias, where a scan over depth stacks layers; else None.
        is_embedding: whether the input is one-hot, so that A is a diagonal.
        input_axes: the kernel's axes that are inputs, in the order of `kernel_shape`, where they are not its leading
            ones; else None.
    """

    path: Path
    kernel_shape: tuple[int, ...]
    n_output_axes: int
    has_bias: bool
    max_width: int = MAX_FACTOR_WIDTH
    kernel: str = "kernel"
    bias: str = "bias"
    index: int | None = None
    is_embedding: bool = False
    input_axes: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        keys = self.path if self.kernel in KERNEL_NAMES and self.path else self.kernel_path
        return ".".join(keys) + ("" if self.index is None else f"[{self.index}]")

    @property
    def kernel_path(self) -> Path:
        return (*self.path, self.kernel)

    @property
    def bias_path(self) -> Path | None:
        return (*self.path, self.bias) if self.has_bias else None

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The kernel's axes that are inputs, and those that are outputs, in the order of `kernel_shape`."""
        n = len(self.kernel_shape)
        inputs = tuple(range(n - self.n_output_axes)) if self.input_axes is None else self.input_axes
        return inputs, tuple(axis for axis in range(n) if axis not in inputs)

    @property
    def leaf_paths(self) -> tuple[Path, ...]:
        """Of the kernel, and of the bias if there is one."""
        return (self.kernel_path,) if self.bias_path is None else (self.kernel_path, self.bias_path)

    @property
    def d_in(self) -> int:
        """Width of the layer's input, without the bias entry."""
        return math.prod(self.kernel_shape[: -self.n_output_axes])

    @property
    def d_out(self) -> int:
        return math.prod(self.kernel_shape[-self.n_output_axes :])

    @property
    def n_rows(self) -> int:
        """Rows of the weight matrix: `d_in`, and one more for the bias."""
        return self.d_in + self.has_bias

    @property
    def factor_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of A and of B: `[n, n]`, or `[n, 1]` for its diagonal."""
        is_whole = self.d_in <= self.max_width and not self.is_embedding
        inputs = (self.n_rows, self.n_rows if is_whole else 1)
        return inputs, (self.d_out, self.d_out if self.d_out <= self.max_width else 1)

    @property
    def are_diagonal(self) -> tuple[bool, bool]:
        """Whether A and B are diagonals alone."""
        inputs, outputs = self.factor_shapes
        return is_diagonal(inputs), is_diagonal(outputs)

    def rows(self, tree: PyTree) -> list[Array]:
        """The layer's leaves of a tree like the parameters, as its matrix's rows `[..., d_out]`, float32 or wider."""
        leaves = named_leaves(tree)
        values = [leaves[path] if self.index is None else leaves[path][self.index] for path in self.leaf_paths]
        if self.input_axes is not None:
            inputs, outputs = self.axes
            values[0] = values[0].transpose(*inputs, *outputs)
        return [at_least_float32(value.reshape(-1, self.d_out)) for value in values]

    def read(self, tree: PyTree) -> Array:
        """The layer's matrix `[n_rows, d_out]` in a parameter-like tree."""
        return jnp.concatenate(self.rows(tree))

    def write(self, matrix: Array) -> dict[Path, Array]:
        """The inverse of `read`: path -> values of the kernel and of the bias."""
        shapes = self.kernel_shape, self.kernel_shape[-self.n_output_axes :]
        parts = matrix[: self.d_in], matrix[self.d_in :]
        named = {path: part.reshape(shape) for path, part, shape in zip(self.leaf_paths, parts, shapes, strict=False)}
        if self.input_axes is not None:
            inputs, outputs = self.axes
            order = (*inputs, *outputs)
            kernel = named[self.kernel_path]
            named[self.kernel_path] = kernel.transpose(*(order.index(axis) for axis in range(len(order))))
        return named


class Leaves(dict[Path, Any]):
    """The leaves of a tree by path, in tree order."""


def named_leaves(tree: PyTree) -> Leaves:
    """The leaves of a tree by path. A tree that is a `Leaves` already is returned unchanged."""
    if isinstance(tree, Leaves):
        return tree
    return Leaves((leaf_path(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0])


def dotted(path: Path) -> str:
    """A leaf's path as one word."""
    return ".".join(path)


def check_names(tree: PyTree) -> None:
    """Raises ValueError where two leaves of a tree have one name, as keys may contain dots."""
    names = [dotted(path) for path in named_leaves(tree)]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two parameters are called {name}: rename one, as a key contains a dot")


def leaf_path(keys: Sequence[Any]) -> Path:
    """The keys of a leaf as words, without the attribute of a box around it."""
    if len(keys) > 1 and getattr(keys[-1], "name", None) == _BOX:
        keys = keys[:-1]
    return tuple(str(_word(key)) for key in keys)


def _word(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


def at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def is_diagonal(shape: Sequence[int]) -> bool:
    """Whether factors of a shape `[..., n, n]` or `[..., n, 1]` are diagonals."""
    return shape[-1] != shape[-2]


def find_layers(params: PyTree, max_width: int = MAX_FACTOR_WIDTH) -> tuple[Layer, ...]:
    """The linear layers, recognised by the names and shapes of a Flax parameter tree, in tree order.

    `trace_layers` finds them by the forward pass, whatever their names and shapes.

    A side wider than `max_width` has a diagonal factor, and in the eigenbasis keeps its own axes.

    A kernel is left out, and the first-order fallback trains it, if its split is unknown, if its node has other
    parameters, too, or if both of its sides are wider than `max_width`. The split is unknown if the kernel has three
    axes, no bias, and is no projection of attention, or if the bias has not the kernel's trailing shape. Layers that a
    scan over depth stacked are found one by one.
    """
    check_names(params)
    nodes: dict[Path, dict[str, Any]] = {}
    for path, leaf in named_leaves(params).items():
        for depth in range(len(path)):
            value = leaf if depth == len(path) - 1 else None
            nodes.setdefault(path[:depth], {})[path[depth]] = value
    found = []
    for path, children in nodes.items():
        if set(children) == {"embedding"} and getattr(children["embedding"], "ndim", 0) == 2:
            shape = tuple(children["embedding"].shape)
            found.append(Layer(path, shape, 1, False, max_width, kernel="embedding", is_embedding=True))
        elif (
            "kernel" in children
            and not set(children) - {"kernel", "bias"}
            and all(x is not None for x in children.values())
        ):
            found += _layers_of_node(path, children, _is_attention(path, nodes), max_width)
    return tuple(layer for layer in found if not all(layer.are_diagonal))


def _layers_of_node(path: Path, leaves: Mapping[str, Any], is_attention: bool, max_width: int) -> list[Layer]:
    """A node's layer, or the layers that a scan over depth stacked in it; none where the split is not known."""
    kernel = tuple(leaves["kernel"].shape)
    bias = tuple(leaves["bias"].shape) if "bias" in leaves else None
    n_outputs = len(bias) if bias is not None else 2 if is_attention and path[-1] != "out" else 1
    if len(kernel) < 2 or not 0 < n_outputs < len(kernel):
        return []
    if bias is None:
        is_known = len(kernel) != 3 or is_attention
        return [Layer(path, kernel, n_outputs, False, max_width)] if is_known else []
    if kernel[-n_outputs:] == bias:
        return [Layer(path, kernel, n_outputs, True, max_width)]
    if n_outputs > 1 and kernel[0] == bias[0] and kernel[1 - n_outputs :] == bias[1:]:
        return [Layer(path, kernel[1:], n_outputs - 1, True, max_width, index=i) for i in range(kernel[0])]
    return []


def _is_attention(path: Path, nodes: Mapping[Path, Mapping[str, Any]]) -> bool:
    """Whether a node is a projection of attention: `[d, heads, d_head]`, and Flax's `out` of `[heads, d_head, d]`.

    Attention may project its result by a layer of another name, whose kernel has two axes.
    """
    projections = {name: nodes.get((*path[:-1], name), {}).get("kernel") for name in (*_PROJECTIONS, "out")}
    shapes = {name: tuple(kernel.shape) for name, kernel in projections.items() if kernel is not None}
    if not path or path[-1] not in shapes or any(len(shape) != 3 for shape in shapes.values()):
        return False
    if not shapes.keys() >= set(_PROJECTIONS):
        return False
    heads = {shapes[name][1:] for name in _PROJECTIONS}
    return len(heads) == 1 and ("out" not in shapes or heads == {shapes["out"][:2]})


def replace_layers(tree: PyTree, layers: Sequence[Layer], matrices: Mapping[str, Array]) -> PyTree:
    """A copy of a parameter-like tree with the named layers' leaves taken from `matrices {name: [n_rows, d_out]}`."""
    new: dict[Path, Any] = {}
    leaves = named_leaves(tree)
    for layer in layers:
        if layer.name not in matrices:
            continue
        for path, value in layer.write(matrices[layer.name]).items():
            if layer.index is None:
                new[path] = value
            else:
                new.setdefault(path, list(leaves[path]))[layer.index] = value

    def replaced(keys: Sequence[Any], leaf: Array) -> Array:
        value = new.get(leaf_path(keys), leaf)
        value = jnp.stack(value) if isinstance(value, list) else value
        return value.reshape(leaf.shape).astype(leaf.dtype)  # the leaf may have axes of length 1

    return jax.tree_util.tree_map_with_path(replaced, tree)
