"""The factors of one kernel's layers, from all uses of the kernel in a forward pass.

Axes: captured inputs and output gradients are `[lead, *time, *sites, d]`, and of layers that a scan over depth stacks
`[n_layers, lead, *time, *sites, d]`. For example, 3 stacked dense layers on 8 sequences of 16 tokens have inputs
`[3, 8, 16, d_in]`, and factors for each of the three.

An embedding may be looked up and, transposed, multiplied with; its factors are then those of the sum of both uses.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .capture import Family, KernelUse
from .embedding import lookup_sums, nearest_product
from .factors import Use, input_sums, output_factor
from .layers import Layer, Path
from .placement import place
from .products import Kind
from .sharing import Layout, Sharing

PyTree = Any
Families = Mapping[Path, Family]  # by kernel
ByKernel = Mapping[Path, Sequence[Array]]  # the inputs, or the output gradients, of a kernel's uses
Counted = tuple[Array, Array]  # (a factor times its number of rows, that number [])


class InputSums(NamedTuple):
    """Sums of x xᵀ over the rows x of a layer's inputs, before the division by their number. Diagonals are `[n, 1]`.

    Attributes:
        direct: from uses x @ W, `[d_in (+1), d_in (+1)]`; None if there is no such use.
        transposed: from uses x @ Wᵀ, such as a tied output layer, `[d_out, d_out]`; None if there is no such use.
    """

    direct: Counted | None
    transposed: Counted | None


class OutputSums(NamedTuple):
    """Sums of g gᵀ over a layer's output gradients g, before the division by the number of terms M.

    Attributes:
        direct: M B, from uses x @ W, `[d_out, d_out]`; a diagonal is `[d_out, 1]`.
        transposed: the same from uses x @ Wᵀ, whose outputs have width d_in: `[d_in, d_in]`, or `[d_in, 1]`.
    """

    direct: Array | None
    transposed: Array | None


def input_products(
    families: Families,
    inputs: ByKernel,
    layout: Layout,
    sharing: Sharing,
    rows_per_width: int = 0,
    row_key: Array | None = None,
) -> dict[str, InputSums]:
    """Layer name -> sums of its inputs; see `factors.input_sums`."""
    options = (rows_per_width, row_key)

    def sums(family: Family, values: Sequence[Array]) -> InputSums:
        layer = family.layers[0]
        direct, transposed = _placed(family, values, layout, is_input=True)
        return InputSums(
            _direct_inputs(family, layer, direct, sharing, options) if direct else None,
            input_sums(transposed, sharing, False, layer.are_diagonal[1], *options) if transposed else None,
        )

    return _by_layer(families, sums, inputs)


def output_products(families: Families, gradients: ByKernel, layout: Layout, sharing: Sharing) -> dict[str, OutputSums]:
    """Layer name -> sums of its output gradients."""

    def sums(family: Family, values: Sequence[Array]) -> OutputSums:
        layer, one = family.layers[0], jnp.ones([])
        direct, transposed = _placed(family, values, layout, is_input=False)
        return OutputSums(
            output_factor(direct, sharing, one, layer.are_diagonal[1]) if direct else None,
            output_factor(transposed, sharing, one, layer.are_diagonal[0]) if transposed else None,
        )

    return _by_layer(families, sums, gradients)


def combined(inputs: InputSums, outputs: OutputSums | None, n_terms: Array) -> tuple[Array, Array | None]:
    """A layer's factors (A, B); B is None without output gradients."""
    terms: list[tuple[Array, Array]] = []
    if inputs.direct is not None:
        a = _mean(inputs.direct)
        if outputs is None or outputs.direct is None:
            return a, None
        terms.append((a, _per_term(outputs.direct, n_terms)))
    if inputs.transposed is not None and outputs is not None and outputs.transposed is not None:
        terms.append((_per_term(outputs.transposed, n_terms), _mean(inputs.transposed)))
    return terms[0] if len(terms) == 1 else nearest_product(*terms)


def _mean(sums: Counted) -> Array:
    return sums[0] / jnp.maximum(sums[1], 1)


def _per_term(sums: Array, n_terms: Array) -> Array:
    return sums / n_terms.astype(sums.dtype)


def _direct_inputs(
    family: Family, layer: Layer, uses: Sequence[Use], sharing: Sharing, options: tuple[int, Array | None]
) -> Counted:
    lookups = [use for use, own in zip(uses, _direct(family), strict=True) if own.product.kind is Kind.LOOKUP]
    dense = [use for use, own in zip(uses, _direct(family), strict=True) if own.product.kind is not Kind.LOOKUP]
    parts = []
    if lookups:
        parts.append(lookup_sums(lookups, sharing, layer.d_in))
    if dense:
        parts.append(input_sums(dense, sharing, layer.has_bias, layer.are_diagonal[0], *options))
    products, counts = zip(*parts, strict=True)
    return sum(products[1:], products[0]), sum(counts[1:], counts[0])


def _direct(family: Family) -> list[KernelUse]:
    return [use for use in family.uses if not use.is_transposed]


def _placed(family: Family, values: Sequence[Array], layout: Layout, is_input: bool) -> tuple[list[Use], list[Use]]:
    """The direct and the transposed uses, with their rows."""
    placed: tuple[list[Use], list[Use]] = ([], [])
    for use, x in zip(family.uses, values, strict=True):
        placed[use.is_transposed].append(place(use, x, layout, is_raw=is_input))
    return placed


def _by_layer(
    families: Families, function: Callable[[Family, Sequence[Array]], PyTree], values: ByKernel
) -> dict[str, PyTree]:
    """`function` of each layer's own values, which for stacked layers lie along a leading axis."""
    found = {}
    for kernel, family in families.items():
        own = functools.partial(function, family)
        if family.layers[0].index is None:
            found[family.layers[0].name] = own(values[kernel])
        else:
            stacked = jax.vmap(own)(values[kernel])
            found |= {layer.name: jax.tree.map(lambda x, i=i: x[i], stacked) for i, layer in enumerate(family.layers)}
    return found
