"""Which example each of a layer's rows belongs to, by the batch's layout."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from .capture import Family, KernelUse
from .convolution import patches
from .factors import Use
from .fisher import Fisher
from .layers import Path
from .products import Kind
from .sharing import Layout, LayoutError


def place(use: KernelUse, values: Array, layout: Layout, is_raw: bool = False) -> Use:
    """A use's inputs or output gradients, of one layer, with their rows.

    Args:
        values: `[lead, *time, *sites, d]`.
        is_raw: whether they are a convolution's inputs, not yet patches.
    """
    if _is_time_major(use, layout):
        values = jnp.moveaxis(values, 1 + len(use.time), 0)
    rows, n_axes = layout.rows(positions(use, layout))
    convolution = use.raw_convolution if is_raw else None
    if n_axes > 1:
        values = patches(values, convolution) if convolution else values
        return Use(values.reshape(math.prod(values.shape[:n_axes]), *values.shape[n_axes:]), rows)
    return Use(values, rows, convolution)


def with_described_rows(
    families: Mapping[Path, Family], layout: Layout, fisher: Fisher
) -> tuple[dict[Path, Family], dict[str, str]]:
    """The families whose rows the layout describes; and layer name -> why another's are not described."""
    kept: dict[Path, Family] = {}
    reasons: dict[str, str] = {}
    for kernel, family in families.items():
        if reason := _reason(family, layout, fisher):
            reasons |= {layer.name: reason for layer in family.layers}
        else:
            kept[kernel] = family
    return kept, reasons


def _reason(family: Family, layout: Layout, fisher: Fisher) -> str | None:
    """Why the layout does not describe a family's rows, or why its uses cannot be combined; None where all is well."""
    try:
        rows = [layout.rows(positions(use, layout))[0] for use in family.uses]
    except LayoutError as error:
        return str(error)
    if fisher is not Fisher.SAMPLED and any(own.is_shared for own in rows):
        return "its rows are common to all examples, for which the Fisher must be sampled"
    is_mixed = len({(own.n_examples, own.is_shared) for own in rows}) > 1
    return "its uses have rows of different kinds, or of different numbers of examples" if is_mixed else None


def positions(use: KernelUse, layout: Layout) -> tuple[int, ...]:
    """Lengths of the axes `[lead, *time, *sites]`, examples first."""
    first, *others = use.positions
    if _is_time_major(use, layout):
        return (others[0], first, *use.time, *others[1:])
    return (first, *use.time, *others)


def _is_time_major(use: KernelUse, layout: Layout) -> bool:
    return layout.example_axis == 1 and len(use.positions) > 1 and use.product.kind is not Kind.CONVOLUTION
