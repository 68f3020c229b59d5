"""A traced forward pass carried out again, with perturbations added to some products and their inputs handed out."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from .finder import REMATERIALISED, inner_jaxpr
from .products import Key, Product

ByKey = dict[Key, Array]


def replay(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    products: Mapping[Key, Product],
    perturbations: Mapping[Key, Array],
    at: Key = (),
) -> tuple[list[Any], ByKey]:
    """The jaxpr's results, and the input of every product.

    Args:
        products: the products to perturb and to take inputs of, by their places.
        perturbations: added to their outputs; a product may have none. Scans around a product are leading axes, of
            perturbations and inputs alike, outermost first.
        at: the jaxpr's own place.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    inputs: ByKey = {}
    for index, eqn in enumerate(jaxpr.eqns):
        here = (*at, index)
        operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if here in products:
            (output,) = _evaluate(jaxpr, eqn, operands)
            inputs[here] = operands[products[here].operand]
            results = [output + perturbations[here] if here in perturbations else output]
        elif any(key[: len(here)] == here for key in products):
            results, inside = _call(eqn, operands, products, perturbations, here)
            inputs |= inside
        else:
            results = _evaluate(jaxpr, eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars], inputs


def _call(
    eqn: JaxprEqn, operands: list[Any], products: Mapping[Key, Product], perturbations: Mapping[Key, Array], at: Key
) -> tuple[list[Any], ByKey]:
    """A call or scan with products inside; a jitted function becomes part of the one around it."""
    inner, consts = inner_jaxpr(eqn), _consts(eqn)
    within = {key: value for key, value in perturbations.items() if key[: len(at)] == at}

    def body(arguments: list[Any], added: ByKey) -> tuple[list[Any], ByKey]:
        return replay(inner, consts, arguments, products, added, at)

    if eqn.primitive.name == "scan":
        return _scan(eqn, operands, body, within)
    if eqn.primitive.name in REMATERIALISED:
        body = jax.checkpoint(body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return body(operands, within)


def _scan(eqn: JaxprEqn, operands: list[Any], body: Any, perturbations: ByKey) -> tuple[list[Any], ByKey]:
    p = eqn.params
    n_consts, n_carry = p["num_consts"], p["num_carry"]
    consts, carry, slices = (
        operands[:n_consts],
        operands[n_consts : n_consts + n_carry],
        operands[n_consts + n_carry :],
    )

    def step(carry: list[Any], sliced: tuple[list[Any], ByKey]) -> tuple[list[Any], tuple[list[Any], ByKey]]:
        arguments, added = sliced
        results, inputs = body([*consts, *carry, *arguments], added)
        return results[:n_carry], (results[n_carry:], inputs)

    options = {"length": p["length"], "reverse": p["reverse"], "unroll": p["unroll"]}
    carry, (stacked, inputs) = jax.lax.scan(step, carry, (slices, perturbations), **options)
    return [*carry, *stacked], inputs


def _consts(eqn: JaxprEqn) -> Sequence[Any]:
    return getattr(eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"], "consts", ())


def _evaluate(jaxpr: Jaxpr, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """One equation's results."""
    by_variable = {v: x for v, x in zip(eqn.invars, operands, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(
        constvars=[],
        invars=list(by_variable),
        outvars=eqn.outvars,
        eqns=[eqn],
        effects=eqn.effects,
    )
    results: list[Any] = jaxpr_as_fun(ClosedJaxpr(alone, []))(*by_variable.values())
    return results
