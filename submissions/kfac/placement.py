"""Which example each of a layer's rows belongs to, by the batch's layout."""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from .capture import Family, KernelUse
from .convolution import patches
from .factors import Use
from .fisher import Fisher
from .layers import Path
from .products import Kind
from .sharing import Layout, LayoutError

_SHARED = "its rows are common to all examples, for which the Fisher must be sampled"


def place(use: KernelUse, values: Array, layout: Layout, is_raw: bool = False) -> Use:
    """A use's inputs or output gradients, of one layer, with their rows.

    Args:
        values: `[lead, *time, *sites, d]`.
        is_raw: whether they are a convolution's inputs, not yet patches.
    """
    if _is_time_major(use, layout):
        values = jnp.moveaxis(values, 1 + len(use.time), 0)
    rows, n_axes = layout.rows(_positions(use, layout))
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
        reason = next(filter(None, (_reason(use, layout, fisher) for use in family.uses)), None)
        reason = reason or _mixed(family, layout)
        if reason:
            reasons |= {layer.name: reason for layer in family.layers}
        else:
            kept[kernel] = family
    return kept, reasons


def ambiguous(families: Mapping[Path, Family], layout: Layout) -> list[str]:
    """Names of the layers whose inputs would look the same with time first."""

    def is_ambiguous(use: KernelUse) -> bool:
        return use.product.kind is not Kind.CONVOLUTION and layout.is_ambiguous(_positions(use, layout))

    return _names(families, is_ambiguous)


def unmasked(families: Mapping[Path, Family], layout: Layout) -> list[str]:
    """Names of the layers with positions of their own, other than those whose padding the layout knows."""
    return _names(families, lambda use: layout.lacks_positions(_positions(use, layout)))


def _names(families: Mapping[Path, Family], has_use: Callable[[KernelUse], bool]) -> list[str]:
    """The layers that have such a use."""
    return [layer.name for family in families.values() if any(map(has_use, family.uses)) for layer in family.layers]


def _reason(use: KernelUse, layout: Layout, fisher: Fisher) -> str | None:
    try:
        rows, _ = layout.rows(_positions(use, layout))
    except LayoutError as error:
        return str(error)
    return _SHARED if rows.is_shared and fisher is not Fisher.SAMPLED else None


def _mixed(family: Family, layout: Layout) -> str | None:
    """Why the uses of one kernel cannot be combined; None where they can."""
    kinds = {(rows.n_examples, rows.is_shared) for rows, _ in (layout.rows(_positions(u, layout)) for u in family.uses)}
    return "its uses have rows of different kinds, or of different numbers of examples" if len(kinds) > 1 else None


def _positions(use: KernelUse, layout: Layout) -> tuple[int, ...]:
    """Lengths of the axes `[lead, *time, *sites]`, examples first."""
    first, *others = use.positions
    if _is_time_major(use, layout):
        return (others[0], first, *use.time, *others[1:])
    return (first, *use.time, *others)


def _is_time_major(use: KernelUse, layout: Layout) -> bool:
    return layout.example_axis == 1 and len(use.positions) > 1 and use.product.kind is not Kind.CONVOLUTION
