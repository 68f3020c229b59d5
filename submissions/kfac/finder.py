"""Where a traced forward pass multiplies by a parameter: the uses of linear layers, found in its jaxpr.

Each parameter array is followed through the traced program. So a layer is recognised by the array that it uses, not by
its name, and an array that is computed from a parameter is not taken for it. A parameter may pass through jitted and
rematerialised functions, and through scans, which slice it (layers stacked over depth) or use it at each step (time).
"""

import dataclasses
from collections.abc import Sequence, Set

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from .layers import Path
from .products import OPAQUE, PRODUCTS, Key, Product, View, array_type, of_each_leaf
from .views import (
    Derived,
    Output,
    Tag,
    derived_from,
    kernel_operand,
    leaves_of,
    lies_along_outputs,
    output_after,
    side_by_side,
    size_of_leaf,
    sum_of,
    view_after,
)

CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "remat", "checkpoint")
REMATERIALISED = ("remat2", "remat", "checkpoint")
_KEEP_VALUES = (
    "convert_element_type",
    "copy",
    "copy_p",
    "sharding_constraint",
    "name",
    "pvary",
    "pcast",
    "reduce_precision",
    "optimization_barrier",
    "reshard",
)


@dataclasses.dataclass
class Products:
    """The products of a forward pass, and what else becomes of its parameters.

    Attributes:
        by_leaf: leaf -> its products, in order.
        problems: leaf -> what else it is used for, if for anything but products.
        consumers: product's output -> what it is used for; the path of a leaf that is added to it.
        kernels: other leaves that act as matrices on the data: a value computed from the leaf multiplies the data, or
            an operation that is not followed (such as `cond`) uses the leaf.
    """

    by_leaf: dict[Path, list[Product]] = dataclasses.field(default_factory=dict)
    problems: dict[Path, str] = dataclasses.field(default_factory=dict)
    consumers: dict[Key, list[Path | str]] = dataclasses.field(default_factory=dict)
    kernels: set[Path] = dataclasses.field(default_factory=set)

    def bias_of(self, leaf: Path) -> Path | None:
        """The leaf that is added to each of the kernel's products and used for nothing else; None if there is none."""
        keys = {product.output_key for product in self.by_leaf[leaf]}
        (first, *others) = {tuple(self.consumers[key]) for key in keys}
        bias = first[0] if first else None
        if others or len(first) != 1 or not isinstance(bias, tuple):
            return None
        return None if bias in self.problems or self.is_added_elsewhere(bias, keys) else bias

    def is_added_elsewhere(self, bias: Path, keys: Set[Key]) -> bool:
        """Whether a leaf is added to other products than those given, too."""
        return any(bias in consumers and key not in keys for key, consumers in self.consumers.items())


def find_products(closed: ClosedJaxpr, leaves: Sequence[Path | None], n_outputs: int) -> Products:
    """The products that a forward pass's first `n_outputs` results depend on, for gradients.

    Args:
        leaves: path of the parameter that each input of the jaxpr is; None for another input.
    """
    finder = _Finder()
    jaxpr = closed.jaxpr
    tags = [
        View(leaf, tuple(range(len(array_type(var).shape)))) if leaf is not None else None
        for leaf, var in zip(leaves, jaxpr.invars, strict=True)
    ]
    is_output = [i < n_outputs for i in range(len(jaxpr.outvars))]
    results = finder.walk(jaxpr, tags, is_output, ())
    for tag, is_needed in zip(results, is_output, strict=True):
        if is_needed:
            finder.consume(tag, "the output")
    return finder.found


class _Finder:
    """A walk through a jaxpr with what is known of its values."""

    def __init__(self) -> None:
        self.found = Products()

    def walk(
        self, jaxpr: Jaxpr, tags: Sequence[Tag], is_needed: Sequence[bool], at: Key, lengths: tuple[int, ...] = ()
    ) -> list[Tag]:
        """Tags of the jaxpr's results from those of its inputs."""
        known: dict[Var, Tag] = dict(zip(jaxpr.invars, tags, strict=True))
        needed = _needed(jaxpr, is_needed)
        for index, eqn in enumerate(jaxpr.eqns):
            inputs = [None if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
            if not any(map(leaves_of, inputs)) and (numbers := derived_from(eqn, inputs)):
                known.update(dict.fromkeys(eqn.outvars, numbers))
            elif any(inputs) and not needed.isdisjoint(eqn.outvars) and _is_differentiable(eqn):
                outputs = self._step(eqn, inputs, [v in needed for v in eqn.outvars], (*at, index), lengths)
                known.update(zip(eqn.outvars, outputs, strict=True))
        return [None if isinstance(v, Literal) else known.get(v) for v in jaxpr.outvars]

    def consume(self, tag: Tag, by: str) -> None:
        """Note a use of a tagged value that is no part of a linear layer."""
        if isinstance(tag, View):
            for leaf in tag.leaves:
                self.found.problems.setdefault(leaf, "`concatenate`" if tag.parts else by)
        elif isinstance(tag, Output):
            for product in tag.products:
                self.found.consumers[product.output_key].append(by)

    def _step(
        self, eqn: JaxprEqn, tags: list[Tag], is_needed: list[bool], at: Key, lengths: tuple[int, ...]
    ) -> list[Tag]:
        name = eqn.primitive.name
        nothing: list[Tag] = [None] * len(eqn.outvars)
        if name in CALLS and any(isinstance(tag, View | Derived) for tag in tags):
            return self.walk(inner_jaxpr(eqn), tags, is_needed, at, lengths)
        if name == "scan":
            return self._scan(eqn, tags, is_needed, at, lengths)
        if name in ("add", "add_any") and (pair := sum_of(tags)):
            output, bias = pair
            if lies_along_outputs(output, bias, array_type(eqn.invars[tags.index(bias)]).shape):
                for summand, leaf in zip(output.products, bias.leaves, strict=True):
                    self.found.consumers[summand.output_key].append(leaf)
                return nothing
        if name in _KEEP_VALUES:
            return tags[: len(eqn.outvars)]
        if isinstance(tags[0], Output) and (moved := output_after(eqn, tags[0])):
            return [moved]
        if name == "concatenate" and (joined := side_by_side(eqn, tags)):
            return [joined]
        if isinstance(tags[0], View) and (view := view_after(eqn, tags[0])):
            return [view]
        match = PRODUCTS.get(name)
        kernel = kernel_operand(tags)
        product = match(eqn, *kernel) if match and kernel is not None else None
        products = of_each_leaf(product, kernel[1]) if product is not None and kernel is not None else None
        for operand, tag in enumerate(tags):
            if products is None or kernel is None or operand != kernel[0]:
                self.consume(tag, _described(eqn))
        if products is None:
            parameters = frozenset().union(*map(leaves_of, tags))
            if parameters and (derived := derived_from(eqn, tags)):
                return [derived for _ in eqn.outvars]
            if match or name in OPAQUE:
                self.found.kernels |= parameters
            return nothing
        products = tuple(dataclasses.replace(each, key=at, lengths=lengths) for each in products)
        for each in products:
            self.found.by_leaf.setdefault(each.leaf, []).append(each)
            self.found.consumers[each.output_key] = []
        first = products[0]
        features = first.output_axes[-1:] if first.convolution else first.output_axes
        return [Output(products, tuple(range(len(first.output.shape))), features)]

    def _scan(
        self, eqn: JaxprEqn, tags: list[Tag], is_needed: list[bool], at: Key, lengths: tuple[int, ...]
    ) -> list[Tag]:
        n_consts, n_carry = eqn.params["num_consts"], eqn.params["num_carry"]

        def sliced(operand: int, tag: Tag) -> Derived:
            return Derived(leaves_of(tag), size_of_leaf(eqn.invars[operand], tag) // max(1, eqn.params["length"]))

        inner: list[Tag] = []
        for operand, tag in enumerate(tags):
            is_sliced = operand >= n_consts + n_carry
            is_carry = n_consts <= operand < n_consts + n_carry
            is_whole = isinstance(tag, View) and tag.axes[:1] == (0,) and not any(tag.is_sliced) and not tag.parts
            if isinstance(tag, Derived) and not is_carry:
                inner.append(sliced(operand, tag) if is_sliced else tag)
            elif not isinstance(tag, View) or is_carry or (is_sliced and not is_whole):
                nested = isinstance(tag, View) and any(tag.is_sliced) and is_sliced
                how = "a second `scan`, which slices it again" if nested else "a `scan`, not by its first axis"
                self.consume(tag, "a `scan`, as its carry" if is_carry else how)
                inner.append(sliced(operand, tag) if is_sliced and leaves_of(tag) else None)
            elif is_sliced:
                axes = tuple(None if axis is None else axis - 1 for axis in tag.axes[1:])
                inner.append(View(tag.leaf, axes, (*tag.is_sliced, True), tag.is_broadcast))
            else:
                inner.append(dataclasses.replace(tag, is_sliced=(*tag.is_sliced, False)))
        body, is_needed = inner_jaxpr(eqn), _needed_results(eqn, is_needed)
        results = self.walk(body, inner, is_needed, at, (*lengths, eqn.params["length"]))
        for tag, wanted in zip(results, is_needed, strict=True):
            if wanted:
                self.consume(tag, "a `scan`, as its result")
        nothing: list[Tag] = [None] * len(eqn.outvars)
        return nothing


def inner_jaxpr(eqn: JaxprEqn) -> Jaxpr:
    """The jaxpr that a call or scan carries out."""
    inner: Jaxpr | ClosedJaxpr = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner


def _described(eqn: JaxprEqn) -> str:
    """An equation in words."""
    name = eqn.primitive.name
    if name == "conv_general_dilated" and eqn.params["feature_group_count"] * eqn.params["batch_group_count"] > 1:
        return "a grouped convolution"
    if name == "dot_general" and eqn.params["dimension_numbers"][1][0]:
        return "a product for each entry of one of its axes (a `dot_general` with batch axes)"
    return f"`{name}`"


def _needed(jaxpr: Jaxpr, is_needed: Sequence[bool]) -> set[Var]:
    """The variables on which the needed results depend, for gradients."""
    needed = {v for v, wanted in zip(jaxpr.outvars, is_needed, strict=True) if wanted and not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if needed.isdisjoint(eqn.outvars) or not _is_differentiable(eqn):
            continue
        operands = eqn.invars
        if eqn.primitive.name in (*CALLS, "scan"):
            inner = inner_jaxpr(eqn)
            inside = _needed(inner, _needed_results(eqn, [v in needed for v in eqn.outvars]))
            operands = [v for v, own in zip(eqn.invars, inner.invars, strict=True) if own in inside]
        needed.update(v for v in operands if not isinstance(v, Literal))
    return needed


def _needed_results(eqn: JaxprEqn, is_needed: Sequence[bool]) -> list[bool]:
    """Which results of a call's or scan's body the needed ones depend on; of a scan, through later steps, too."""
    if eqn.primitive.name != "scan":
        return list(is_needed)
    body, n_consts, n_carry = inner_jaxpr(eqn), eqn.params["num_consts"], eqn.params["num_carry"]
    while True:
        inside = _needed(body, is_needed)
        carried = [v in inside for v in body.invars[n_consts : n_consts + n_carry]]
        wider = [a or b for a, b in zip(is_needed, [*carried, *[False] * (len(is_needed) - n_carry)], strict=True)]
        if wider == list(is_needed):
            return wider
        is_needed = wider


def _is_differentiable(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name == "stop_gradient":
        return False
    return any(jax.dtypes.issubdtype(v.aval.dtype, np.inexact) for v in eqn.outvars if hasattr(v.aval, "dtype"))
