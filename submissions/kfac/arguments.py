"""Arguments of an estimate that have the wrong form, and what is due instead."""

import enum
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from .fisher import Geometry, LossKind
from .products import array_type

PyTree = Any

_DUE = "`loss` must return (summed loss, number of terms), two arrays without axes"


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
        if _is_mean(jax.make_jaxpr(lambda z: checked(z)[0])(outputs).jaxpr):
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


def _form(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"an array {list(value.shape)}"
    if hasattr(value, "__len__"):
        return f"a {type(value).__name__} of {len(value)}"
    return f"the {type(value).__name__} {value}"


def _is_mean(jaxpr: Jaxpr) -> bool:
    """Whether a result is a sum, divided by the number of its terms (above 2) or by another sum."""
    division = _maker(jaxpr, jaxpr.outvars[0])
    if division is None or division.primitive.name != "div":
        return False
    total, divisor = _maker(jaxpr, division.invars[0]), division.invars[1]
    if total is None or total.primitive.name != "reduce_sum":
        return False
    if isinstance(divisor, Literal):
        size = math.prod(array_type(total.invars[0]).shape)
        return size > 2 and bool(divisor.val == size)
    maker = _maker(jaxpr, divisor)
    while maker is not None and maker.primitive.name in ("convert_element_type", "max"):
        maker = _maker(jaxpr, maker.invars[0])
    return maker is not None and maker.primitive.name == "reduce_sum"


def _maker(jaxpr: Jaxpr, variable: Var | Literal) -> JaxprEqn | None:
    return next((eqn for eqn in jaxpr.eqns if any(out is variable for out in eqn.outvars)), None)
