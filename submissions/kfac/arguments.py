"""Checks of the arguments of `estimate`. Each error says what to give instead."""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from .finder import CALLS, inner_jaxpr
from .fisher import Geometry, LossKind
from .layers import Layer
from .products import array_type
from .sharing import Layout

PyTree = Any

_DUE = "`loss` must return (summed loss, number of terms), two arrays without axes"

_SCALED = ("neg", "mul", "convert_element_type", "copy")  # primitives whose result is a multiple of an operand


def checked_forward(forward: Callable[[PyTree], Any]) -> Callable[[PyTree], tuple[PyTree, PyTree]]:
    """The forward pass, which when called checks what it returns.

    Raises:
        ValueError: it does not return (outputs, auxiliary values).
    """

    def checked(params: PyTree) -> tuple[PyTree, PyTree]:
        result = forward(params)
        if not isinstance(result, tuple | list) or len(result) != 2:
            due = "`forward` must return (outputs, auxiliary values)"
            raise ValueError(f"{due}; it returned {_form(result)}: return (outputs, None)")
        return tuple(result)

    return checked


def checked_loss(loss: Callable[[PyTree], Any]) -> Callable[[PyTree], tuple[Array, Array]]:
    """The loss function, which when called checks what it returns.

    Raises:
        ValueError: it does not return a summed loss `[]` and a number of terms `[]`, or the loss is a mean.
    """

    def checked(outputs: PyTree) -> tuple[Array, Array]:
        result = loss(outputs)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise ValueError(f"{_DUE}; it returned {_form(result)}: return the sum, and beside it the number of terms")
        summed, n_terms = result
        if np.shape(summed) != ():
            raise ValueError(f"{_DUE}; its loss is {_form(summed)}: sum it")
        if not hasattr(n_terms, "dtype"):
            raise ValueError(f"{_DUE}; its number of terms is {_form(n_terms)}: make it jnp.float32({n_terms})")
        if np.shape(n_terms) != ():
            raise ValueError(f"{_DUE}; its number of terms is {_form(n_terms)}: sum it")
        return summed, n_terms

    def summed_alone(outputs: PyTree) -> tuple[Array, Array]:
        closed = jax.make_jaxpr(lambda z: checked(z))(outputs)
        consts = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        summed, n_terms = (_Value(variable, closed.jaxpr, consts, {}) for variable in closed.jaxpr.outvars)
        if _is_mean(summed, n_terms.origin()):
            raise ValueError(f"{_DUE}; its loss is a mean: return the sum, and beside it what it would be divided by")
        return checked(outputs)

    return summed_alone


def check_member(name: str, value: Any, kind: type[enum.Enum]) -> None:
    """Check an option that is a member of an enum.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, kind):
        known = ", ".join(str(member) for member in kind)
        raise ValueError(f"{name} is {value!r}; it must be one of {known}")


def check_layers(layers: Any) -> None:
    """Check that `layers` is a sequence of `Layer`.

    Raises:
        ValueError: they are no sequence, or one is something else, such as a name.
    """
    if isinstance(layers, Layer):
        raise ValueError(f"layers is the one layer {layers.name}: give a sequence of layers")
    for layer in layers:
        if not isinstance(layer, Layer):
            raise ValueError(f"a layer is {layer!r}: give those that `find_layers` or `trace_layers` finds")


def check_logits(shape: tuple[int, ...], geometry: Geometry, layout: Layout | None) -> None:
    """Check the shape of logits `[*positions, n_outputs]`.

    Args:
        layout: where the examples must come first, as the exact Fisher has all positions of an example at once.

    Raises:
        ValueError: they are of another shape.
    """
    if geometry.kind is LossKind.SOFTMAX and len(shape) < 2:
        raise ValueError(f"logits of a softmax loss must be [examples, ..., classes]; their shape is {list(shape)}")
    if layout is not None and shape[:1] != (layout.n_examples,):
        raise ValueError(
            f"the exact Fisher needs logits [{layout.n_examples} examples, ...]; their shape is {list(shape)}: let "
            "`logits` move or reshape them, or sample the Fisher"
        )


def check_geometry(geometry: Any) -> None:
    """Check a geometry, or those of several heads.

    Raises:
        ValueError: one is something else, such as a kind alone.
    """
    for own in geometry if isinstance(geometry, tuple | list) and not isinstance(geometry, Geometry) else [geometry]:
        if isinstance(own, LossKind):
            raise ValueError(f"the geometry is the kind {own} alone: give Geometry({own}), or what `probe` finds")
        if not isinstance(own, Geometry):
            raise ValueError(f"the geometry is {own!r}: give a Geometry, or what `probe` finds")
        check_member("the geometry's kind", own.kind, LossKind)


def _form(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"an array {list(value.shape)}"
    if hasattr(value, "__len__"):
        return f"a {type(value).__name__} of {len(value)}"
    return f"the {type(value).__name__} {value}"


@dataclasses.dataclass(frozen=True)
class _Value:
    """A value in a jaxpr.

    Attributes:
        consts: the program's constants.
        outer: for a jitted function's jaxpr, the caller's value for each of its inputs.
    """

    variable: Var | Literal
    jaxpr: Jaxpr
    consts: Mapping[Var, Any]
    outer: Mapping[Var, "_Value"]

    def origin(self) -> "_Value":
        """The same value where it was computed, inside or outside of a jitted function."""
        if isinstance(self.variable, Literal):
            return self
        if self.variable in self.outer:
            return self.outer[self.variable].origin()
        eqn = self.equation()
        if eqn is None or eqn.primitive.name not in CALLS:
            return self
        inner, operands = inner_jaxpr(eqn), self.operands(eqn)
        result = inner.outvars[eqn.outvars.index(self.variable)]
        return _Value(result, inner, self.consts, dict(zip(inner.invars, operands, strict=True))).origin()

    def equation(self) -> JaxprEqn | None:
        """The equation of this jaxpr that computes it; None for a constant or an input."""
        return next((eqn for eqn in self.jaxpr.eqns if any(out is self.variable for out in eqn.outvars)), None)

    def operands(self, eqn: JaxprEqn) -> "list[_Value]":
        return [dataclasses.replace(self, variable=variable) for variable in eqn.invars]

    def constant(self) -> float | None:
        """A number that is known before the program runs; else None."""
        value = self.variable.val if isinstance(self.variable, Literal) else self.consts.get(self.variable)
        return None if value is None or isinstance(value, jax.core.Tracer) or np.shape(value) else float(value)


def _is_mean(value: _Value, n_terms: _Value) -> bool:
    """Whether a result is a mean, or a multiple or a sum of means.

    A mean is a sum that is divided by the number of its terms (above 2), by another sum or by the `n_terms` returned.
    """
    value = value.origin()
    eqn = value.equation()
    if eqn is None:
        return False
    operands, name = [own.origin() for own in value.operands(eqn)], eqn.primitive.name
    if name == "mul" and any(_counts(own, n_terms) for own in operands):
        return False
    if name in _SCALED:
        return any(_is_mean(own, n_terms) for own in operands if own.constant() is None)
    if name in ("add", "sub"):
        return all(_is_mean(own, n_terms) for own in operands)
    if name != "div":
        return False
    total, divisor = operands
    if divisor.variable is n_terms.variable:
        return True
    terms = _terms(total)
    if terms is None:
        return _is_mean(total, n_terms)
    number = divisor.constant()
    if number is not None:
        return number > 2 and number in (terms, n_terms.constant())
    return _terms(divisor, ("convert_element_type", "max")) is not None


def _counts(factor: _Value, n_terms: _Value) -> bool:
    """Whether a mean times this factor is a sum: it is the number of terms (above 2), or itself a sum."""
    number = factor.constant()
    if number is not None:
        return number > 2 and number == n_terms.constant()
    return factor.variable is n_terms.variable or _terms(factor, ("convert_element_type", "max")) is not None


def _terms(value: _Value, through: Sequence[str] = _SCALED) -> int | None:
    """How many terms a sum has, or a multiple of it; None where the value is no sum."""
    value = value.origin()
    eqn = value.equation()
    if eqn is not None and eqn.primitive.name == "reduce_sum":
        return int(math.prod(array_type(eqn.invars[0]).shape))
    if eqn is None or eqn.primitive.name not in through:
        return None
    found = (_terms(own, through) for own in value.operands(eqn))
    return next((terms for terms in found if terms is not None), None)
