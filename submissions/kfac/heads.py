"""The logits of a model's losses: one array or several heads; pseudo-targets are drawn from them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .arguments import check_logits
from .fisher import Fisher, Geometry
from .sharing import Layout

PyTree = Any


class Head(NamedTuple):
    """One loss's logits, geometry and weights; `to_outputs`: cotangent of the logits -> cotangent of the outputs."""

    logits: Array
    geometry: Geometry
    weights: Array | None
    to_outputs: Callable[[Array], PyTree]


def heads_of(
    outputs: PyTree,
    logits: Callable[[PyTree], Array | Sequence[Array]] | None,
    geometry: Any,
    weights: Any,
    fisher: Fisher,
    layout: Layout,
) -> list[Head]:
    """The heads whose pseudo-targets are drawn; none where the Fisher needs no pseudo-targets.

    Args:
        outputs: of the model, any tree.
        logits: outputs -> one array `[examples, *positions, n_outputs]`, or a sequence of several heads'; None where
            the outputs are the logits.
        geometry, weights: one for all heads, or a sequence with one for each.

    Raises:
        ValueError: there are no arrays to draw for, these are of the wrong shape, or the numbers of heads, geometries
            and weights differ.
    """
    if fisher is Fisher.EMPIRICAL:
        return []
    outputs = jax.lax.stop_gradient(outputs)
    picked, to_outputs = jax.vjp(logits or (lambda z: z), outputs)
    is_sequence = isinstance(picked, tuple | list) and all(isinstance(own, jax.Array) for own in picked)
    if not is_sequence and not isinstance(picked, jax.Array):
        raise ValueError(
            f"the model's outputs are a {type(picked).__name__}: give `logits`, a function of the outputs that returns "
            "the array, or the sequence of arrays, that the loss is of"
        )
    heads, structure = jax.tree.flatten(picked)
    if logits is None and len(heads) > 1 and isinstance(geometry, Geometry):
        raise ValueError(
            f"the model's outputs are {len(heads)} arrays, and the geometry is that of one: give `logits`, a function "
            "of the outputs that returns the array that the loss is of; or a geometry for each array"
        )
    if not (weights is None or hasattr(weights, "shape") or isinstance(weights, tuple | list)):
        raise ValueError(f"weights is {weights!r}; it must be an array, or for several heads a sequence of arrays")
    geometry = [geometry] * len(heads) if isinstance(geometry, Geometry) else geometry
    weights = [weights] * len(heads) if weights is None or hasattr(weights, "shape") else weights
    if not len(heads) == len(geometry) == len(weights):
        raise ValueError(f"{len(heads)} heads of logits, {len(geometry)} geometries and {len(weights)} weights differ")
    for own, kind, weight in zip(heads, geometry, weights, strict=True):
        check_logits(own.shape, kind, layout if fisher is Fisher.EXACT else None)
        if weight is not None and own.shape[: weight.ndim] != weight.shape:
            due = f"the shape of the logits, {list(own.shape)}, or of its first axes"
            raise ValueError(f"weights have the shape {list(weight.shape)}; it must be {due}")

    def of_head(index: int) -> Callable[[Array], PyTree]:
        def one(cotangent: Array) -> PyTree:
            others = [jnp.zeros_like(own) for own in heads]
            others[index] = cotangent.astype(heads[index].dtype)
            return to_outputs(jax.tree.unflatten(structure, others))[0]

        return one

    return [Head(own, geometry[i], weights[i], of_head(i)) for i, own in enumerate(heads)]
