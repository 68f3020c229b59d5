"""What becomes of parameters and of products on their way through a jaxpr: views, and sums with a bias."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

from .layers import KERNEL_NAMES, Path
from .products import OPAQUE, PRODUCTS, Part, Product, View, array_type


@dataclasses.dataclass(frozen=True)
class Output:
    """A product's output, possibly in another dtype, transposed, or with axes of size 1 added or removed.

    `products` is one, or one for each of several kernels side by side. `axes` are those of the product's output, None
    for one that is new; `features` are the ones along which a bias lies.
    """

    products: tuple[Product, ...]
    axes: tuple[int | None, ...]
    features: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Derived:
    """A value that is computed from parameters and numbers, or from a parameter and data with as many entries.

    Without `leaves` it is computed from numbers alone. `size` is the number of entries of the largest leaf.
    """

    leaves: frozenset[Path] = frozenset()
    size: int = 0


Tag = View | Output | Derived | None

_RESHAPES = ("reshape", "squeeze", "expand_dims")


def derived_from(eqn: JaxprEqn, tags: Sequence[Tag]) -> Derived | None:
    """What an equation computes from parameters and numbers; None if data enter.

    A single number does not count as data. Nor does an array by which a parameter becomes one with as many entries, as
    by a mask, noise, rounding, or the frozen matrix that a low-rank one is added to.
    """
    others = [v for v, tag in zip(eqn.invars, tags, strict=True) if tag is None and _n_entries(v) > 1]
    if any(isinstance(tag, Output) for tag in tags):
        return None
    sizes: set[int] = set()
    for v, tag in zip(eqn.invars, tags, strict=True):
        if leaves_of(tag):
            size = size_of_leaf(v, tag)
            sizes |= {size, min(size, _n_entries(v))}  # of the leaf, or of a slice of it
    is_product = eqn.primitive.name in (*PRODUCTS, *OPAQUE)
    if others and (is_product or not {_n_entries(v) for v in eqn.outvars} <= sizes):
        return None
    return Derived(frozenset().union(*map(leaves_of, tags)), max(sizes, default=0))


def leaves_of(tag: Tag) -> frozenset[Path]:
    """The parameters that a value is, or is computed from."""
    if isinstance(tag, View):
        return frozenset(tag.leaves)
    return tag.leaves if isinstance(tag, Derived) else frozenset()


def size_of_leaf(variable: Var | Literal, tag: Tag) -> int:
    """Entries of the leaf that a value is, or of the largest one that it is computed from, before any broadcast."""
    if not isinstance(tag, View):
        return tag.size if isinstance(tag, Derived) else 0
    return int(np.prod([n for n, axis in zip(array_type(variable).shape, tag.axes, strict=True) if axis is not None]))


def _n_entries(variable: Var | Literal) -> int:
    return int(np.prod(getattr(variable.aval, "shape", ())))


def sum_of(tags: Sequence[Tag]) -> tuple[Output, View] | None:
    """The product's output and the leaf of a sum of the two."""
    outputs = [tag for tag in tags if isinstance(tag, Output)]
    views = [tag for tag in tags if isinstance(tag, View)]
    return (outputs[0], views[0]) if len(outputs) == len(views) == 1 else None


def lies_along_outputs(output: Output, bias: View, shape: Sequence[int]) -> bool:
    """Whether a leaf added to a product lies along the output features alone, in order, and is sliced as the kernel.

    Leaves side by side are added to products that lie so.
    """
    first = output.products[0]
    positions = {axis: position for position, axis in enumerate(output.features)}
    expected = [None if axis is None else positions.get(axis) for axis in output.axes]
    sizes = [1 if axis is None else first.output.shape[axis] for axis in output.axes]
    if [product.columns for product in output.products] != _columns(output, bias):
        return False
    own = [axis if size > 1 else None for axis, size in zip(bias.axes, shape, strict=True)]
    due = [axis if size > 1 else None for axis, size in zip(expected, sizes, strict=True)]
    return _ranks(own) == _ranks(due) and bias.is_sliced == first.is_sliced


def _ranks(axes: Sequence[int | None]) -> list[int | None]:
    """The axes counted anew, without those that do not occur: a bias may have further axes of length 1."""
    order = sorted(axis for axis in axes if axis is not None)
    return [None if axis is None else order.index(axis) for axis in axes]


def _columns(output: Output, bias: View) -> list[tuple[int, int, int] | None]:
    """Where the leaves of a bias lie in the output that they are added to, as `Product.columns` says it."""
    if bias.along is None:
        return [None]
    axis = output.axes[bias.axes.index(bias.along)]
    return [None if axis is None else (axis, part.start, part.stop) for part in bias.parts]


def kernel_operand(tags: Sequence[Tag]) -> tuple[int, View] | None:
    """(index of the operand that is the kernel, its view); None if no operand is.

    A single operand that is a view of a parameter is the kernel. Of two, the one called "kernel" or "embedding" is.
    """
    views = [(i, tag) for i, tag in enumerate(tags) if isinstance(tag, View) and not tag.is_broadcast]
    if len(views) > 1:
        views = [(i, view) for i, view in views if view.leaf[-1] in KERNEL_NAMES]
    return views[0] if len(views) == 1 else None


def side_by_side(eqn: JaxprEqn, tags: Sequence[Tag]) -> View | None:
    """The view that a concatenation makes of leaves; None if these have different axes, or one of them comes twice."""
    views = [tag for tag in tags if isinstance(tag, View) and not tag.is_broadcast and not tag.parts]
    along = views[0].axes[eqn.params["dimension"]] if len(views) == len(tags) else None
    alike = {dataclasses.replace(view, leaf=()) for view in views}
    if along is None or len(alike) > 1 or len({view.leaf for view in views}) < len(views):
        return None
    stops = np.cumsum([array_type(v).shape[eqn.params["dimension"]] for v in eqn.invars]).tolist()
    parts = tuple(
        Part(view.leaf, start, stop) for view, start, stop in zip(views, [0, *stops[:-1]], stops, strict=True)
    )
    return dataclasses.replace(views[0], parts=parts, along=along)


def output_after(eqn: JaxprEqn, output: Output) -> Output | None:
    """The output that an equation makes of another by moving axes, and adding or removing those of size 1."""
    axes: tuple[int | None, ...] | None = None
    shape, new_shape = array_type(eqn.invars[0]).shape, array_type(eqn.outvars[0]).shape
    if eqn.primitive.name == "transpose":
        axes = tuple(output.axes[i] for i in eqn.params["permutation"])
    elif eqn.primitive.name == "broadcast_in_dim" and np.prod(shape) == np.prod(new_shape):
        places = eqn.params["broadcast_dimensions"]
        axes = tuple(output.axes[places.index(i)] if i in places else None for i in range(len(new_shape)))
    elif _is_plain_reshape(eqn):
        axes = _reshaped(output.axes, shape, new_shape)
    return None if axes is None else dataclasses.replace(output, axes=axes)


def view_after(eqn: JaxprEqn, view: View) -> View | None:
    """The view that an equation makes of another; None if it makes none."""
    name, shape, new_shape = eqn.primitive.name, array_type(eqn.invars[0]).shape, array_type(eqn.outvars[0]).shape
    if name == "transpose":
        return dataclasses.replace(view, axes=tuple(view.axes[i] for i in eqn.params["permutation"]))
    if name == "broadcast_in_dim":
        axes: list[int | None] = [None] * len(new_shape)
        for axis, size, place in zip(view.axes, shape, eqn.params["broadcast_dimensions"], strict=True):
            axes[place] = axis if size == new_shape[place] else None
        is_broadcast = view.is_broadcast or int(np.prod(shape)) != int(np.prod(new_shape))
        return dataclasses.replace(view, axes=tuple(axes), is_broadcast=is_broadcast)
    if _is_plain_reshape(eqn):
        kept = _reshaped(view.axes, shape, new_shape)
        return dataclasses.replace(view, axes=kept) if kept is not None else None
    return None


def _is_plain_reshape(eqn: JaxprEqn) -> bool:
    """Whether an equation reshapes without another order of the axes, as Fortran's."""
    name = eqn.primitive.name
    return name in _RESHAPES and not (name == "reshape" and eqn.params.get("dimensions") is not None)


def _reshaped(
    axes: Sequence[int | None], shape: Sequence[int], new_shape: Sequence[int]
) -> tuple[int | None, ...] | None:
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
