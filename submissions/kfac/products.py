"""Where a traced forward pass multiplies by a parameter: the uses of linear layers, found in its jaxpr.

A *product* is an equation that multiplies a kernel with the layer's input: a matrix product, a convolution, or a lookup
of an embedding's rows. Parameters are followed from the jaxpr's inputs, so that it is the leaf itself that counts, not
its name: neither another model's parameters nor a value computed from the leaf is taken for the layer's kernel.

A leaf may be converted, transposed and given axes of size 1 on its way; it may pass through jitted and rematerialised
functions, and through scans, which slice it (layers stacked over depth) or use it again and again (time).
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from .convolution import Convolution
from .layers import Path

Key = tuple[int, ...]  # an equation's place: its index in the jaxpr, preceded by those of the equations around it

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
)


class Kind(enum.Enum):
    DENSE = "dense"
    CONVOLUTION = "convolution"
    LOOKUP = "lookup"


@dataclasses.dataclass(frozen=True)
class Product:
    """One multiplication by a kernel.

    Axes of the kernel are counted without the one that a scan slices.

    Attributes:
        key: place of the equation.
        leaf: the kernel.
        operand: which of the equation's operands is the layer's input.
        contracted: the kernel's axes that meet the input, ascending.
        input_axes: the input's axes that meet them, in the same order; for a convolution (batch, *spatial, channels).
        output_axes: the output's axes that are the kernel's others, ascending; for a convolution as for the input.
        output: shape and dtype of the product, without the scans' axes.
        lengths: of the scans around, outermost first.
        is_sliced: for each of these, whether it slices the kernel.
        convolution: geometry, where it is one.
    """

    key: Key
    leaf: Path
    kind: Kind
    operand: int
    contracted: tuple[int, ...]
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    output: jax.ShapeDtypeStruct
    lengths: tuple[int, ...]
    is_sliced: tuple[bool, ...]
    convolution: Convolution | None = None


@dataclasses.dataclass
class Products:
    """The products of a forward pass, and what else becomes of its parameters.

    Attributes:
        by_leaf: leaf -> its products, in order.
        problems: leaf -> the use of it that is no product, where there is one.
        consumers: product's key -> what the product's output is used for; the path of a leaf that is added to it.
    """

    by_leaf: dict[Path, list[Product]] = dataclasses.field(default_factory=dict)
    problems: dict[Path, str] = dataclasses.field(default_factory=dict)
    consumers: dict[Key, list[Path | str]] = dataclasses.field(default_factory=dict)

    def bias_of(self, leaf: Path) -> Path | None:
        """The leaf that is added to each of the kernel's products and used for nothing else; None if there is none."""
        biases = {tuple(self.consumers[product.key]) for product in self.by_leaf[leaf]}
        (first, *others) = biases
        if others or len(first) != 1 or not isinstance(first[0], tuple) or first[0] in self.problems:
            return None
        return first[0]


@dataclasses.dataclass(frozen=True)
class _View:
    """A value that is a leaf but for its dtype, the order of its axes, and axes of no consequence.

    `axes` are the leaf's, without the one that a scan slices; None for one that is new. `is_broadcast` where a new axis
    repeats the leaf.
    """

    leaf: Path
    axes: tuple[int | None, ...]
    is_sliced: tuple[bool, ...] = ()
    is_broadcast: bool = False


@dataclasses.dataclass(frozen=True)
class _Output:
    """A value that is a product's output but for its dtype and the order of its axes.

    `axes` are those of the product's output; `features` are the ones along which a bias lies.
    """

    product: Product
    axes: tuple[int, ...]
    features: tuple[int, ...]


_Tag = _View | _Output | None


def find_products(closed: ClosedJaxpr, leaves: Sequence[Path | None], n_outputs: int) -> Products:
    """The products that a forward pass's first `n_outputs` results depend on, for gradients.

    Args:
        leaves: path of the parameter that each input of the jaxpr is; None for another input.
    """
    finder = _Finder()
    jaxpr = closed.jaxpr
    tags = [
        _View(leaf, tuple(range(len(var.aval.shape)))) if leaf is not None else None
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

    def __init__(self):
        self.found = Products()

    def walk(
        self, jaxpr: Jaxpr, tags: Sequence[_Tag], is_needed: Sequence[bool], at: Key, lengths: tuple[int, ...] = ()
    ) -> list[_Tag]:
        """Tags of the jaxpr's results from those of its inputs."""
        known: dict[Var, _Tag] = dict(zip(jaxpr.invars, tags, strict=True))
        needed = _needed(jaxpr, is_needed)
        for index, eqn in enumerate(jaxpr.eqns):
            inputs = [None if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
            if any(inputs) and not needed.isdisjoint(eqn.outvars) and _is_differentiable(eqn):
                outputs = self._step(eqn, inputs, [v in needed for v in eqn.outvars], (*at, index), lengths)
                known.update(zip(eqn.outvars, outputs, strict=True))
        return [None if isinstance(v, Literal) else known.get(v) for v in jaxpr.outvars]

    def consume(self, tag: _Tag, by: str) -> None:
        """Note a use of a tagged value that is no part of a linear layer."""
        if isinstance(tag, _View):
            self.found.problems.setdefault(tag.leaf, by)
        elif isinstance(tag, _Output):
            self.found.consumers[tag.product.key].append(by)

    def _step(
        self, eqn: JaxprEqn, tags: list[_Tag], is_needed: list[bool], at: Key, lengths: tuple[int, ...]
    ) -> list[_Tag]:
        name = eqn.primitive.name
        nothing = [None] * len(eqn.outvars)
        if name in CALLS and any(isinstance(tag, _View) for tag in tags):
            return self.walk(inner_jaxpr(eqn), tags, is_needed, at, lengths)
        if name == "scan":
            return self._scan(eqn, tags, at, lengths)
        if name in ("add", "add_any") and (pair := _sum(tags)):
            output, bias = pair
            if _fits(output, bias, eqn.invars[tags.index(bias)].aval.shape):
                self.found.consumers[output.product.key].append(bias.leaf)
                return nothing
        if name in _KEEP_VALUES:
            return [tags[0]]
        if isinstance(tags[0], _Output) and name == "transpose":
            return [dataclasses.replace(tags[0], axes=tuple(tags[0].axes[i] for i in eqn.params["permutation"]))]
        if isinstance(tags[0], _View) and (view := _viewed(eqn, tags[0])):
            return [view]
        match = _PRODUCTS.get(name)
        kernel = _kernel_operand(tags)
        product = match(eqn, kernel, tags[kernel]) if match and kernel is not None else None
        for operand, tag in enumerate(tags):
            if product is None or operand != kernel:
                self.consume(tag, _described(eqn))
        if product is None:
            return nothing
        product = dataclasses.replace(product, key=at, lengths=lengths)
        self.found.by_leaf.setdefault(product.leaf, []).append(product)
        self.found.consumers[at] = []
        features = product.output_axes[-1:] if product.convolution else product.output_axes
        return [_Output(product, tuple(range(len(product.output.shape))), features)]

    def _scan(self, eqn: JaxprEqn, tags: list[_Tag], at: Key, lengths: tuple[int, ...]) -> list[_Tag]:
        n_consts, n_carry = eqn.params["num_consts"], eqn.params["num_carry"]
        inner: list[_Tag] = []
        for operand, tag in enumerate(tags):
            is_sliced = operand >= n_consts + n_carry
            is_carry = n_consts <= operand < n_consts + n_carry
            if not isinstance(tag, _View) or is_carry or (is_sliced and (tag.axes[0] != 0 or any(tag.is_sliced))):
                self.consume(tag, "a `scan`, as its carry" if is_carry else "a `scan`, not by its first axis")
                inner.append(None)
            elif is_sliced:
                axes = tuple(None if axis is None else axis - 1 for axis in tag.axes[1:])
                inner.append(_View(tag.leaf, axes, (*tag.is_sliced, True), tag.is_broadcast))
            else:
                inner.append(dataclasses.replace(tag, is_sliced=(*tag.is_sliced, False)))
        body = inner_jaxpr(eqn)
        for tag in self.walk(body, inner, [True] * len(body.outvars), at, (*lengths, eqn.params["length"])):
            self.consume(tag, "a `scan`, as its result")
        return [None] * len(eqn.outvars)


def inner_jaxpr(eqn: JaxprEqn) -> Jaxpr:
    """The jaxpr that a call or scan carries out."""
    inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return getattr(inner, "jaxpr", inner)


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
        operands = [v for v in eqn.invars if not isinstance(v, Literal)]
        if eqn.primitive.name in CALLS:
            inner = inner_jaxpr(eqn)
            inside = _needed(inner, [v in needed for v in eqn.outvars])
            pairs = zip(eqn.invars, inner.invars, strict=True)
            operands = [v for v, own in pairs if own in inside and not isinstance(v, Literal)]
        needed.update(operands)
    return needed


def _is_differentiable(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name == "stop_gradient":
        return False
    return any(jax.dtypes.issubdtype(v.aval.dtype, np.inexact) for v in eqn.outvars if hasattr(v.aval, "dtype"))


def _sum(tags: Sequence[_Tag]) -> tuple[_Output, _View] | None:
    """The product's output and the leaf of a sum of the two."""
    outputs = [tag for tag in tags if isinstance(tag, _Output)]
    views = [tag for tag in tags if isinstance(tag, _View)]
    return (outputs[0], views[0]) if len(outputs) == len(views) == 1 else None


def _fits(output: _Output, bias: _View, shape: Sequence[int]) -> bool:
    """Whether a leaf added to a product lies along the output features alone, in order, and is sliced as the kernel."""
    positions = {axis: position for position, axis in enumerate(output.features)}
    expected = [positions.get(axis) for axis in output.axes]
    sizes = [output.product.output.shape[axis] for axis in output.axes]
    own = [axis if size > 1 else None for axis, size in zip(bias.axes, shape, strict=True)]
    due = [axis if size > 1 else None for axis, size in zip(expected, sizes, strict=True)]
    return own == due and bias.is_sliced == output.product.is_sliced


def _kernel_operand(tags: Sequence[_Tag]) -> int | None:
    """Which of two operands is the kernel: the leaf, and of two leaves the one with a kernel's name."""
    views = [i for i, tag in enumerate(tags) if isinstance(tag, _View) and not tag.is_broadcast]
    if len(views) > 1:
        views = [i for i in views if tags[i].leaf[-1] in ("kernel", "embedding")]
    return views[0] if len(views) == 1 else None


def _viewed(eqn: JaxprEqn, view: _View) -> _View | None:
    """The view that an equation makes of another; None if it makes none."""
    name, shape, new_shape = eqn.primitive.name, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if name == "transpose":
        return dataclasses.replace(view, axes=tuple(view.axes[i] for i in eqn.params["permutation"]))
    if name == "broadcast_in_dim":
        axes: list[int | None] = [None] * len(new_shape)
        for axis, size, place in zip(view.axes, shape, eqn.params["broadcast_dimensions"], strict=True):
            axes[place] = axis if size == new_shape[place] else None
        is_broadcast = view.is_broadcast or int(np.prod(shape)) != int(np.prod(new_shape))
        return dataclasses.replace(view, axes=tuple(axes), is_broadcast=is_broadcast)
    if name in ("reshape", "squeeze", "expand_dims"):
        axes = _reshaped(view.axes, shape, new_shape)
        return dataclasses.replace(view, axes=axes) if axes is not None else None
    return None


def _reshaped(axes: Sequence[int | None], shape: Sequence[int], new_shape: Sequence[int]) -> tuple | None:
    """The axes after a reshape that adds or removes axes of size 1 alone; None for another."""
    old = [(axis, size) for axis, size in zip(axes, shape, strict=True)]
    new: list[int | None] = []
    for size in new_shape:
        while old and old[0][1] == 1 and size != 1:
            old.pop(0)
        if old and old[0][1] == size:
            new.append(old.pop(0)[0])
        elif size == 1:
            new.append(None)
        else:
            return None
    return tuple(new) if all(size == 1 for _, size in old) else None


def _dense(eqn: JaxprEqn, kernel: int, view: _View) -> Product | None:
    (contract, batch) = eqn.params["dimension_numbers"]
    if batch[0] or None in view.axes or not contract[0]:
        return None
    pairs = sorted((view.axes[k], x) for k, x in zip(contract[kernel], contract[1 - kernel], strict=True))
    n_kernel = len(view.axes) - len(pairs)
    output = eqn.outvars[0].aval
    n_rows = len(output.shape) - n_kernel
    free = [view.axes[i] for i in range(len(view.axes)) if i not in contract[kernel]]
    first = n_rows if kernel == 1 else 0  # the output has the left operand's free axes first
    return Product(
        key=(),
        leaf=view.leaf,
        kind=Kind.DENSE,
        operand=1 - kernel,
        contracted=tuple(axis for axis, _ in pairs),
        input_axes=tuple(x for _, x in pairs),
        output_axes=tuple(first + free.index(axis) for axis in sorted(free)),
        output=jax.ShapeDtypeStruct(output.shape, output.dtype),
        lengths=(),
        is_sliced=view.is_sliced,
    )


def _convolution(eqn: JaxprEqn, kernel: int, view: _View) -> Product | None:
    p = eqn.params
    numbers, n = p["dimension_numbers"], len(view.axes) - 2
    order = [view.axes[i] for i in (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])]
    if kernel != 1 or p["feature_group_count"] != 1 or p["batch_group_count"] != 1 or order != list(range(n + 2)):
        return None
    kernel_shape, output = eqn.invars[1].aval.shape, eqn.outvars[0].aval
    return Product(
        key=(),
        leaf=view.leaf,
        kind=Kind.CONVOLUTION,
        operand=0,
        contracted=tuple(range(n + 1)),
        input_axes=(numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]),
        output_axes=(numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]),
        output=jax.ShapeDtypeStruct(output.shape, output.dtype),
        lengths=(),
        is_sliced=view.is_sliced,
        convolution=Convolution(
            window=tuple(kernel_shape[i] for i in numbers.rhs_spec[2:]),
            strides=tuple(p["window_strides"]),
            padding=tuple((int(low), int(high)) for low, high in p["padding"]),
            dilation=tuple(p["rhs_dilation"]),
            input_dilation=tuple(p["lhs_dilation"]),
        ),
    )


def _lookup(eqn: JaxprEqn, kernel: int, view: _View) -> Product | None:
    numbers, output = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    last = len(output.shape) - 1
    is_by_row = numbers.start_index_map == numbers.collapsed_slice_dims == (0,) and numbers.offset_dims == (last,)
    shape = eqn.invars[0].aval.shape
    if kernel != 0 or view.axes != (0, 1) or not is_by_row or tuple(eqn.params["slice_sizes"]) != (1, shape[1]):
        return None
    return Product(
        key=(),
        leaf=view.leaf,
        kind=Kind.LOOKUP,
        operand=1,
        contracted=(0,),
        input_axes=(last,),
        output_axes=(last,),
        output=jax.ShapeDtypeStruct(output.shape, output.dtype),
        lengths=(),
        is_sliced=view.is_sliced,
    )


_PRODUCTS: Mapping[str, Any] = {"dot_general": _dense, "conv_general_dilated": _convolution, "gather": _lookup}
