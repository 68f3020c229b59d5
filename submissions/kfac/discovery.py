"""The linear layers found in a traced forward pass, whatever the parameters' names and shapes."""

import dataclasses
from collections.abc import Callable
from typing import Any

from .capture import trace
from .finder import Products
from .layers import MAX_FACTOR_WIDTH, Layer, Path, check_names, named_leaves
from .products import Kind

PyTree = Any


def trace_layers(
    params: PyTree, forward: Callable[[PyTree], Any], max_width: int = MAX_FACTOR_WIDTH
) -> tuple[Layer, ...]:
    """Every linear layer of a model that K-FAC can precondition, in the order of the parameter tree.

    Where `find_layers` reads names and shapes, this looks at what the forward pass does with the parameters: which leaf
    is multiplied with an input, over which axes, and what is added to the product. It finds attention without biases,
    layers stacked by a scan over depth, and kernels of any name.

    Args:
        forward: params -> (outputs, auxiliary values), as for `estimate`; only shapes are computed.
        max_width: see `find_layers`.
    """
    check_names(params)
    products, leaves = trace(forward, params).products, named_leaves(params)
    found: dict[str, Layer] = {}
    for path, leaf in leaves.items():
        if path in products.by_leaf and path not in products.problems:
            for layer in layers_of(path, tuple(leaf.shape), products, max_width):
                found.setdefault(layer.name, layer)  # a node's kernel and embedding would share its name
    return tuple(layer for layer in found.values() if not all(layer.are_diagonal))


def layers_of(path: Path, shape: tuple[int, ...], products: Products, max_width: int = MAX_FACTOR_WIDTH) -> list[Layer]:
    """A kernel's layer, or those that a scan over depth stacks in it; none where its uses differ."""
    uses = products.by_leaf[path]
    stacked = {any(product.is_sliced) for product in uses}
    if len(stacked) > 1:
        return []
    is_stacked = stacked.pop()
    own_shape = shape[1:] if is_stacked else shape
    inputs = _input_axes({product.contracted for product in uses}, len(own_shape))
    if inputs is None:
        return []
    outputs = tuple(axis for axis in range(len(own_shape)) if axis not in inputs)
    is_transposed = any(product.contracted != inputs for product in uses)
    is_lookup = any(product.kind is Kind.LOOKUP for product in uses)
    bias = None if is_transposed or is_lookup else products.bias_of(path)
    if bias is not None and bias[:-1] != path[:-1]:
        bias = None
    layer = Layer(
        path=path[:-1],
        kernel_shape=tuple(own_shape[axis] for axis in (*inputs, *outputs)),
        n_output_axes=len(outputs),
        has_bias=bias is not None,
        max_width=max_width,
        kernel=path[-1],
        bias=bias[-1] if bias else "bias",
        is_embedding=is_lookup,
        input_axes=None if inputs == tuple(range(len(inputs))) else inputs,
    )
    return [dataclasses.replace(layer, index=index) for index in range(shape[0])] if is_stacked else [layer]


def _input_axes(contracted: set[tuple[int, ...]], n_axes: int) -> tuple[int, ...] | None:
    """The kernel's axes that are the matrix's rows; None where there is no such matrix.

    They are those that every use contracts. If some uses contract all the others instead, as with a tied embedding, the
    leading axes are the rows.
    """
    if len(contracted) == 1:
        (axes,) = contracted
        return axes if len(axes) < n_axes else None
    sides = {tuple(range(n)) for n in range(1, n_axes)}
    if any(list(axes) != sorted(axes) for axes in contracted):  # convolutions with their windows in different orders
        return None
    rows = {axes if axes in sides else tuple(i for i in range(n_axes) if i not in axes) for axes in contracted}
    return rows.pop() if len(rows) == 1 and rows <= sides else None
