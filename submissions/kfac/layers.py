"""Which parameters are the weights of a linear layer, and how a layer's weights form one matrix.

A linear layer is `s = a W + b` with input `a [d_in]` and output `s [d_out]`. Its parameters are read off the parameter
tree alone: a mapping with a `kernel` and usually a `bias`, whose shape tells how many of the kernel's axes are outputs.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any

# Above this width a whole Kronecker factor costs more than it gives (vocabulary-like outputs): 8,192² float32 is
# 256 MiB.
MAX_FACTOR_WIDTH = 8192


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer's place in the parameter tree and the split of its kernel into inputs and outputs.

    Attributes:
        path: keys from the root of the parameter tree to the mapping that holds `kernel` and `bias`.
        kernel_shape: `[*input_axes, *output_axes]`.
        n_output_axes: how many trailing axes of the kernel are outputs.
        has_bias: whether there is a `bias` of shape `[*output_axes]`.
        max_width: of a side that is wider, the factor is its diagonal alone.
    """

    path: tuple[str, ...]
    kernel_shape: tuple[int, ...]
    n_output_axes: int
    has_bias: bool
    max_width: int = MAX_FACTOR_WIDTH

    @property
    def name(self) -> str:
        return ".".join(self.path)

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
        return tuple((size, size if size <= self.max_width else 1) for size in (self.n_rows, self.d_out))

    @property
    def are_diagonal(self) -> tuple[bool, bool]:
        """Whether A and B are diagonals alone."""
        return tuple(map(is_diagonal, self.factor_shapes))

    def rows(self, tree: PyTree) -> list[Array]:
        """The layer's leaves of a tree like the parameters, as its matrix's rows `[..., d_out]`, float32 or wider."""
        leaves = _descend(tree, self.path)
        parts = [leaves["kernel"].reshape(self.d_in, self.d_out)]
        if self.has_bias:
            parts.append(leaves["bias"].reshape(1, self.d_out))
        return [at_least_float32(part) for part in parts]

    def read(self, tree: PyTree) -> Array:
        """The layer's matrix `[n_rows, d_out]` in a parameter-like tree."""
        return jnp.concatenate(self.rows(tree))

    def write(self, leaves: Mapping[str, Array], matrix: Array) -> dict[str, Array]:
        """The inverse of `read`: `{"kernel", "bias"}` in the shapes and dtypes of `leaves`."""
        values = {"kernel": matrix[: self.d_in], "bias": matrix[self.d_in :]}
        return {key: values[key].reshape(leaf.shape).astype(leaf.dtype) for key, leaf in leaves.items()}


def at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def is_diagonal(shape: Sequence[int]) -> bool:
    """Whether factors of a shape `[..., n, n]` or `[..., n, 1]` are diagonals."""
    return shape[-1] != shape[-2]


def find_layers(params: PyTree, max_width: int = MAX_FACTOR_WIDTH) -> tuple[Layer, ...]:
    """Every linear layer of a parameter tree that K-FAC can precondition, in tree order.

    A side wider than `max_width` has a diagonal factor, and in the eigenbasis keeps its own axes.

    A kernel is left out, and so goes to the first-order fallback, where its split is unknown (three axes and no bias,
    or a bias that is not the kernel's trailing shape, as in layers stacked by a scan), where other parameters
    share its mapping, and where both sides are wider than `max_width`.
    """
    found = (_layer(path, leaves, max_width) for path, leaves in _mappings(params, ()))
    return tuple(layer for layer in found if layer and not all(layer.are_diagonal))


def replace_layers(tree: PyTree, layers: tuple[Layer, ...], matrices: Mapping[str, Array]) -> PyTree:
    """A copy of a parameter-like tree with the named layers' leaves taken from `matrices {name: [n_rows, d_out]}`."""
    by_path = {layer.path: layer for layer in layers if layer.name in matrices}

    def visit(node: PyTree, path: tuple[str, ...]) -> PyTree:
        if path in by_path:
            return type(node)(by_path[path].write(node, matrices[by_path[path].name]))
        if isinstance(node, Mapping):
            return type(node)({key: visit(value, (*path, key)) for key, value in node.items()})
        return node

    return visit(tree, ())


def describe(params: PyTree, layers: tuple[Layer, ...]) -> str:
    """Which parameters are preconditioned and which go to the fallback, one line each; every parameter once."""
    preconditioned = {layer.path: layer for layer in layers}
    lines, n_preconditioned, n_all = [], 0, 0
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = tuple(getattr(key, "key", str(key)) for key in keys)
        layer = preconditioned.get(path[:-1])
        n_all += leaf.size
        n_preconditioned += leaf.size if layer else 0
        how = "factors " + " and ".join(map(_factor, layer.factor_shapes)) if layer else "fallback"
        lines.append(f"  {'.'.join(path)} {tuple(leaf.shape)}: {how}")
    head = f"{n_preconditioned:,} of {n_all:,} parameters in {len(layers)} layers are preconditioned:"
    return "\n".join([head, *lines])


def _factor(shape: Sequence[int]) -> str:
    return f"{shape[0]} (diagonal)" if is_diagonal(shape) else str(shape[0])


def _layer(path: tuple[str, ...], leaves: Mapping[str, Any], max_width: int) -> Layer | None:
    if "kernel" not in leaves or set(leaves) - {"kernel", "bias"}:
        return None
    kernel, bias = leaves["kernel"], leaves.get("bias")
    if isinstance(kernel, Mapping) or kernel.ndim < 2:
        return None
    n_output_axes = 1 if bias is None else bias.ndim
    ambiguous = bias is None and kernel.ndim == 3
    if ambiguous or n_output_axes >= kernel.ndim or n_output_axes < 1:
        return None
    if bias is not None and tuple(kernel.shape[-n_output_axes:]) != tuple(bias.shape):
        return None
    return Layer(path, tuple(kernel.shape), n_output_axes, bias is not None, max_width)


def _mappings(node: PyTree, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from _mappings(value, (*path, key))


def _descend(tree: PyTree, path: tuple[str, ...]) -> Mapping[str, Array]:
    for key in path:
        tree = tree[key]
    return tree
