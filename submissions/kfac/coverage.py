"""Which parameters have curvature and which do not, with the reason: for people to read, and as a warning."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from .capture import Family, Forward, KernelUse, families, trace
from .discovery import layers_of
from .finder import Products
from .fisher import Fisher
from .layers import KERNEL_NAMES, MAX_FACTOR_WIDTH, Layer, Path, is_diagonal, named_leaves
from .placement import positions, with_described_rows
from .products import Kind
from .sharing import Layout

PyTree = Any

_NO_PRODUCT = "no kernel of a linear layer"
_TOO_WIDE = "both of its sides are wider than the layers' `max_width`"


class CurvatureWarning(UserWarning):
    """Some parameters have no curvature, or rows of a layer may be assigned to the wrong examples."""


class Reasons(dict[str, str]):
    """Layer name -> why it has no factors. In a pytree it is part of the structure, so that it may leave `jit`."""

    def __hash__(self) -> int:  # type: ignore[override]  # a dict has none
        return hash(tuple(sorted(self.items())))


jax.tree_util.register_static(Reasons)


def describe(
    params: PyTree,
    layers: Sequence[Layer],
    forward: Forward | None = None,
    layout: Layout | None = None,
    fisher: Fisher = Fisher.SAMPLED,
) -> str:
    """Which parameters are preconditioned and which go to the fallback, one line each; every parameter once.

    With `forward`, and the arguments for `estimate`, the text says which factors this model's estimate will have, and
    why a layer has none. Without it, the text assumes that the model uses every layer as its parameters suggest.

    Args:
        forward: params -> (outputs, auxiliary values); only shapes are computed.
        layout: the batch's leading axes; without, all rows are taken as described.
    """
    refused: dict[str, str] = {}
    missing: dict[Path, str] = {}
    if forward is not None:
        products = trace(forward, params).products
        found, refused = families(products, params, layers)
        refused |= with_described_rows(found, layout, fisher)[1] if layout is not None else {}
        missing = left_out(products, params, layers)
    by_leaf: dict[Path, list[Layer]] = {}
    for layer in layers:
        for path in layer.leaf_paths:
            by_leaf.setdefault(path, []).append(layer)
    lines, n_preconditioned, n_all = [], 0, 0
    for path, leaf in named_leaves(params).items():
        own = by_leaf.get(path, [])
        reason = next((refused[layer.name] for layer in own if layer.name in refused), None)
        n_all += leaf.size
        if own and reason is None:
            n_preconditioned += leaf.size
            how = _factors(own)
        else:
            reason = reason or missing.get(path, _NO_PRODUCT if forward is not None else "")
            how = f"fallback: {reason}" if reason else "fallback"
        lines.append(f"  {'.'.join(path)} {tuple(leaf.shape)}: {how}")
    n_layers = sum(layer.name not in refused for layer in layers)
    return "\n".join([f"{n_preconditioned:,} of {n_all:,} parameters in {n_layers} layers are preconditioned:", *lines])


def left_out(products: Products, params: PyTree, layers: Sequence[Layer]) -> dict[Path, str]:
    """Kernel -> why it is in none of the layers.

    A kernel is a matrix that multiplies data (or may do so, in an operation that is not followed), or a leaf that is
    called "kernel" or "embedding" and has another use.
    """
    known = {layer.kernel_path for layer in layers}
    max_width = max((layer.max_width for layer in layers), default=MAX_FACTOR_WIDTH)
    reasons = {}
    for path, leaf in named_leaves(params).items():
        problem = products.problems.get(path)
        is_named = problem is not None and path[-1] in KERNEL_NAMES
        is_matrix = sum(size > 1 for size in leaf.shape) > 1
        is_kernel = path in products.by_leaf or (path in products.kernels and is_matrix) or is_named
        if not is_kernel or path in known:
            continue
        own = layers_of(path, tuple(leaf.shape), products, max_width) if problem is None else []
        if own and all(own[0].are_diagonal):
            reasons[path] = _TOO_WIDE
        elif problem is not None:
            reasons[path] = f"it goes into {problem}, not into linear layers' products alone"
        elif not own:
            reasons[path] = (
                "its products are not those of one matrix: they contract all, or different, axes of the kernel"
            )
        else:
            reasons[path] = "its layer is not among those given"
    return reasons


def report(
    params: PyTree, layers: Sequence[Layer], refused: Mapping[str, str], missing: Mapping[Path, str], strict: bool
) -> None:
    """Warn of layers without factors, and of kernels that are in no layer; each text is shown once.

    Kernels that are left out because both of their sides are too wide are not reported.

    Args:
        refused: layer name -> reason, see `Estimate.uncaptured`.
        missing: kernel -> reason, see `left_out`.

    Raises:
        ValueError: `strict`, and there are such parameters.
    """
    missing = {path: reason for path, reason in missing.items() if reason != _TOO_WIDE}  # left out on purpose
    if not refused and not missing:
        return
    leaves = named_leaves(params)
    names: dict[str, list[str]] = {}
    paths = set(missing)
    for layer in layers:
        if layer.name in refused:
            names.setdefault(refused[layer.name], []).append(layer.name)
            paths |= set(layer.leaf_paths)
    for path, reason in missing.items():
        names.setdefault(reason, []).append(".".join(path))
    share = sum(leaves[path].size for path in paths if path in leaves) / sum(leaf.size for leaf in leaves.values())
    lines = [f"  {', '.join(own)}: {reason}" for reason, own in names.items()]
    count = sum(map(len, names.values()))
    text = "\n".join([f"no curvature for {count} layers, {share:.1%} of the parameters:", *lines])
    if strict:
        raise ValueError(text)
    warn_once(text + "\nThe optimiser's fallback trains them. `strict=True` makes this an error.")


def report_positions(families: Mapping[Path, Family], layout: Layout) -> None:
    """Warn if the example axis cannot be told from the position axis, or if a layer's positions match no mask."""

    def names(has_use: Callable[[KernelUse], bool]) -> str:
        own = (family for family in families.values() if any(map(has_use, family.uses)))
        return ", ".join(layer.name for family in own for layer in family.layers)

    def is_ambiguous(use: KernelUse) -> bool:
        return use.product.kind is not Kind.CONVOLUTION and layout.is_ambiguous(positions(use, layout))

    if found := names(is_ambiguous):
        warn_once(
            f"inputs of {found} have two leading axes of the batch's length; the first is taken as the examples'. "
            "Give the layout `example_axis=0` to say so, or `example_axis=1` for time-major data."
        )
    if found := names(lambda use: layout.lacks_positions(positions(use, layout))):
        warn_once(
            f"inputs of {found} have other positions than those whose padding the layout describes; all of "
            "them count. Describe these positions, too, by `row_layout`."
        )


@functools.cache
def warn_once(text: str) -> None:
    """A warning that is shown once, however often a step is traced."""
    warnings.warn(text, CurvatureWarning, stacklevel=5)


def _factors(layers: Sequence[Layer]) -> str:
    sides = " and ".join(f"{n} (diagonal)" if is_diagonal((n, m)) else str(n) for n, m in layers[0].factor_shapes)
    return f"factors {sides}" if layers[0].index is None else f"{len(layers)} times factors {sides}"
