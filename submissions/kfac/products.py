"""The equations of a jaxpr that multiply a kernel with a layer's input.

A *product* is a matrix product, a convolution, or a lookup of an embedding's rows. Its kernel is a *view* of a
parameter: the leaf, possibly with another dtype, another order of its axes, and more or fewer axes of size 1.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal, Var

from .convolution import Convolution
from .layers import Path

Key = tuple[int, ...]  # an equation's place: its index in the jaxpr, preceded by those of the equations around it


class Kind(enum.Enum):
    DENSE = "dense"
    CONVOLUTION = "convolution"
    LOOKUP = "lookup"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """One multiplication by a kernel.

    Axes of the kernel are counted without the one that a scan slices.

    Attributes:
        key: place of the equation.
        leaf: the kernel.
        operand: which of the equation's operands is the layer's input.
        contracted: the kernel's axes that meet the input, ascending; of a convolution those of (*window, channels).
        input_axes: the input's axes that meet them, in the same order; for a convolution (batch, *spatial, channels).
        output_axes: the output's axes that are the kernel's others, ascending; for a convolution as for the input.
        output: shape and dtype of the product, without the scans' axes.
        lengths: of the scans around, outermost first.
        is_sliced: for each of these, whether it slices the kernel.
        convolution: geometry, where it is one.
        last_index: of a lookup that clips its indices, the largest one; else None.
        columns: for several kernels that are concatenated in one product, (axis, start, stop): the output's axis along
            which they lie, and this kernel's part of it; else None.
    """

    key: Key = ()
    leaf: Path
    kind: Kind
    operand: int
    contracted: tuple[int, ...]
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    output: jax.ShapeDtypeStruct
    lengths: tuple[int, ...] = ()
    is_sliced: tuple[bool, ...]
    convolution: Convolution | None = None
    last_index: int | None = None
    columns: tuple[int, int, int] | None = None

    @property
    def output_key(self) -> Key:
        """The place of this kernel's own part of the output."""
        return self.key if self.columns is None else (*self.key, self.columns[1])


@dataclasses.dataclass(frozen=True)
class Part:
    """A leaf's place `[start, stop)` among leaves that lie side by side."""

    leaf: Path
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class View:
    """A value equal to a leaf, possibly with another dtype, another order of its axes, and axes added or dropped.

    Or a concatenation of several leaves with equally many axes; all fields but `parts` then hold for each of them.

    Attributes:
        leaf: the leaf; of several the first.
        axes: the leaf's, without the one that a scan slices; None for one that is new.
        is_sliced: for each scan around, whether it slices the leaf.
        is_broadcast: whether a new axis repeats the leaf.
        parts: the leaves, in order, where there are several.
        along: the leaf's axis along which they lie.
    """

    leaf: Path
    axes: tuple[int | None, ...]
    is_sliced: tuple[bool, ...] = ()
    is_broadcast: bool = False
    parts: tuple[Part, ...] = ()
    along: int | None = None

    @property
    def leaves(self) -> tuple[Path, ...]:
        return tuple(part.leaf for part in self.parts) or (self.leaf,)


def of_each_leaf(product: Product, view: View) -> tuple[Product, ...] | None:
    """A view's product, or for leaves side by side one product of each; None where they do not lie along outputs."""
    if not view.parts:
        return (product,)
    free = sorted(axis for axis in view.axes if axis is not None and axis not in product.contracted)
    if product.kind is not Kind.DENSE or view.along not in free:
        return None
    axis = product.output_axes[free.index(view.along)]
    return tuple(
        dataclasses.replace(product, leaf=part.leaf, columns=(axis, part.start, part.stop)) for part in view.parts
    )


def array_type(variable: Var | Literal) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array in a jaxpr."""
    aval: Any = variable.aval  # JAX's own type of it has no shape
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _dense(eqn: JaxprEqn, kernel: int, view: View) -> Product | None:
    (contract, batch) = eqn.params["dimension_numbers"]
    axes = [axis for axis in view.axes if axis is not None]
    if batch[0] or len(axes) < len(view.axes) or not contract[0]:
        return None
    pairs = sorted((axes[k], x) for k, x in zip(contract[kernel], contract[1 - kernel], strict=True))
    n_kernel = len(axes) - len(pairs)
    output = array_type(eqn.outvars[0])
    n_positions = len(output.shape) - n_kernel
    free = [axis for i, axis in enumerate(axes) if i not in contract[kernel]]
    first = n_positions if kernel == 1 else 0  # the output has the left operand's free axes first
    return Product(
        leaf=view.leaf,
        kind=Kind.DENSE,
        operand=1 - kernel,
        contracted=tuple(axis for axis, _ in pairs),
        input_axes=tuple(x for _, x in pairs),
        output_axes=tuple(first + free.index(axis) for axis in sorted(free)),
        output=output,
        is_sliced=view.is_sliced,
    )


def _convolution(eqn: JaxprEqn, kernel: int, view: View) -> Product | None:
    p = eqn.params
    numbers, n = p["dimension_numbers"], len(view.axes) - 2
    order = [view.axes[i] for i in (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])]
    axes = [axis for axis in order if axis is not None]
    if kernel != 1 or p["feature_group_count"] != 1 or p["batch_group_count"] != 1 or len(axes) < n + 2:
        return None
    kernel_shape, output = array_type(eqn.invars[1]).shape, array_type(eqn.outvars[0])
    return Product(
        leaf=view.leaf,
        kind=Kind.CONVOLUTION,
        operand=0,
        contracted=tuple(axes[:-1]),
        input_axes=(numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]),
        output_axes=(numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]),
        output=output,
        is_sliced=view.is_sliced,
        convolution=Convolution(
            window=tuple(kernel_shape[i] for i in numbers.rhs_spec[2:]),
            strides=tuple(p["window_strides"]),
            padding=tuple((int(low), int(high)) for low, high in p["padding"]),
            dilation=tuple(p["rhs_dilation"]),
            input_dilation=tuple(p["lhs_dilation"]),
        ),
    )


def _lookup(eqn: JaxprEqn, kernel: int, view: View) -> Product | None:
    numbers, output = eqn.params["dimension_numbers"], array_type(eqn.outvars[0])
    last = len(output.shape) - 1
    is_by_row = numbers.start_index_map == numbers.collapsed_slice_dims == (0,) and numbers.offset_dims == (last,)
    shape = array_type(eqn.invars[0]).shape
    if kernel != 0 or view.axes != (0, 1) or not is_by_row or tuple(eqn.params["slice_sizes"]) != (1, shape[1]):
        return None
    return Product(
        leaf=view.leaf,
        kind=Kind.LOOKUP,
        operand=1,
        contracted=(0,),
        input_axes=(last,),
        output_axes=(last,),
        output=output,
        is_sliced=view.is_sliced,
        last_index=shape[0] - 1 if eqn.params["mode"] is jax.lax.GatherScatterMode.CLIP else None,
    )


# Name of a primitive -> (equation, which operand is the kernel, its view) -> the product, or None if it is none.
Match = Callable[[JaxprEqn, int, View], Product | None]
PRODUCTS: Mapping[str, Match] = {"dot_general": _dense, "conv_general_dilated": _convolution, "gather": _lookup}

# Operations that are not followed: with a program inside, or with several kernels.
OPAQUE = (
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "custom_jvp_call",
    "cond",
    "while",
    "shard_map",
    "pallas_call",
    "custom_linear_solve",
    "triangular_solve",
    "custom_vmap_call",
    "ragged_dot",  # a kernel for each group of rows, as of experts
    "ragged_dot_general",
)
