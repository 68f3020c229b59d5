"""The factors of one kernel's layers, from all uses of the kernel in a forward pass.

An embedding may be looked up and, transposed, multiplied with; its factors are then those of the sum of both uses.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .capture import Family
from .eigenbasis import Bases
from .embedding import lookup_eigenvalues, lookup_sums, nearest_product
from .factors import Use, fisher_diagonal, input_sums, output_factor
from .layers import Layer
from .placement import place
from .products import Kind
from .sharing import Layout, Sharing

PyTree = Any
Counted = tuple[Array, Array]  # (a factor times its number of rows, that number [])


class InputSums(NamedTuple):
    """Of a layer's inputs, before the division by the number of rows.

    Attributes:
        direct: of A; None where the kernel is used transposed alone.
        transposed: the same of the inputs `[d_out, d_out]` that meet the kernel's output axes; None without such uses.
    """

    direct: Counted | None
    transposed: Counted | None


class OutputSums(NamedTuple):
    """Of a layer's output gradients, times the number of terms M.

    Attributes:
        direct: M B.
        transposed: the same of the gradients at the outputs `[n_rows, 1]` of transposed uses.
        eigenvalues: M times the Fisher's in the bases given; None without bases.
    """

    direct: Array | None
    transposed: Array | None
    eigenvalues: Array | None


class Method(NamedTuple):
    """How factors are made; see `estimate.estimate_sums`."""

    layout: Layout
    sharing: Sharing
    rows_per_width: int = 0
    row_key: Array | None = None


def input_products(family: Family, inputs: Sequence[Array], method: Method) -> dict[str, InputSums]:
    """Layer name -> sums of its inputs."""
    layer = family.layers[0]

    def sums(values: Sequence[Array]) -> InputSums:
        direct, transposed = _placed(family, values, method.layout, is_input=True)
        options = (method.rows_per_width, method.row_key)
        return InputSums(
            _direct_inputs(family, layer, direct, method) if direct else None,
            input_sums(transposed, method.sharing, False, layer.are_diagonal[1], *options) if transposed else None,
        )

    return _by_layer(family, sums, inputs)


def second_order(
    family: Family,
    inputs: Sequence[Array],
    gradients: Sequence[Array],
    method: Method,
    bases: Mapping[str, Bases] | None,
) -> dict[str, OutputSums]:
    """Layer name -> sums of its output gradients."""
    layer, one = family.layers[0], jnp.ones([])

    def sums(values: Sequence[Array], at_outputs: Sequence[Array], own: Bases | None) -> OutputSums:
        direct, transposed = _placed(family, at_outputs, method.layout, is_input=False)
        eigenvalues = None
        if own is not None:
            uses = zip(_placed(family, values, method.layout, is_input=True), (direct, transposed), strict=True)
            eigenvalues = _eigenvalues(family, *uses, method.sharing, own)
        return OutputSums(
            output_factor(direct, method.sharing, one, layer.are_diagonal[1]) if direct else None,
            output_factor(transposed, method.sharing, one, layer.are_diagonal[0]) if transposed else None,
            eigenvalues,
        )

    own = None if bases is None else [bases[layer.name] for layer in family.layers]
    if own is not None:
        own = own[0] if layer.index is None else jax.tree.map(lambda *each: jnp.stack(each), *own)
    return _by_layer(family, sums, inputs, gradients, own)


def combined(inputs: InputSums, outputs: OutputSums | None, n_terms: Array) -> tuple[Array, Array | None]:
    """A layer's factors (A, B); B is None without output gradients."""
    direct, transposed = (None if pair is None else pair[0] / jnp.maximum(pair[1], 1) for pair in inputs)
    if outputs is None:
        return direct, None
    b, at_outputs = (None if x is None else x / n_terms.astype(x.dtype) for x in outputs[:2])
    if transposed is None:
        return direct, b
    if direct is None:
        return at_outputs, transposed
    return nearest_product((direct, b), (at_outputs, transposed))


def _direct_inputs(family: Family, layer: Layer, uses: Sequence[Use], method: Method) -> Counted:
    lookups = [use for use, own in zip(uses, _direct(family), strict=True) if own.product.kind is Kind.LOOKUP]
    dense = [use for use, own in zip(uses, _direct(family), strict=True) if own.product.kind is not Kind.LOOKUP]
    parts = []
    if lookups:
        parts.append(lookup_sums(lookups, method.sharing, layer.d_in))
    if dense:
        options = (method.rows_per_width, method.row_key)
        parts.append(input_sums(dense, method.sharing, layer.has_bias, layer.are_diagonal[0], *options))
    return parts[0] if len(parts) == 1 else tuple(a + b for a, b in zip(*parts, strict=True))


def _eigenvalues(family: Family, direct: tuple, transposed: tuple, sharing: Sharing, bases: Bases) -> Array:
    layer, one, parts = family.layers[0], jnp.ones([]), []
    kinds = [use.product.kind is Kind.LOOKUP for use in _direct(family)]
    for is_lookup in sorted(set(kinds)):
        inputs, gradients = (
            [use for use, kind in zip(uses, kinds, strict=True) if kind is is_lookup] for uses in direct
        )
        if is_lookup:
            parts.append(lookup_eigenvalues(inputs, gradients, sharing, layer.d_in, bases.outputs))
        else:
            parts.append(fisher_diagonal(inputs, gradients, sharing, layer.has_bias, one, *bases))
    if transposed[0]:
        parts.append(fisher_diagonal(*transposed, sharing, False, one, bases.outputs, bases.inputs).T)
    return sum(parts[1:], parts[0])


def _direct(family: Family) -> list:
    return [use for use in family.uses if not use.is_transposed]


def _placed(family: Family, values: Sequence[Array], layout: Layout, is_input: bool) -> tuple[list[Use], list[Use]]:
    """The direct and the transposed uses, with their rows."""
    placed: tuple[list[Use], list[Use]] = ([], [])
    for use, x in zip(family.uses, values, strict=True):
        placed[use.is_transposed].append(place(use, x, layout, is_raw=is_input))
    return placed


def _by_layer(family: Family, function: Callable[..., PyTree], *arguments: PyTree) -> dict[str, PyTree]:
    """`function` of each layer's own arguments, which for stacked layers lie along a leading axis."""
    if family.layers[0].index is None:
        return {family.layers[0].name: function(*arguments)}
    stacked = jax.vmap(function)(*arguments)
    return {layer.name: jax.tree.map(lambda x, i=i: x[i], stacked) for i, layer in enumerate(family.layers)}
