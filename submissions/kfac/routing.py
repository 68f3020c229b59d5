"""Optimisers of layers inside those of others, which may keep arguments back, or wrap the state."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax import Array

from .layers import Layer

PyTree = Any


class NotGiven:
    """The default of an argument that must be given, if only as None."""


NOT_GIVEN = NotGiven()


def routed(
    layers: Sequence[Layer], build: Callable[[tuple[Layer, ...]], optax.GradientTransformationExtraArgs]
) -> optax.GradientTransformationExtraArgs:
    """The optimiser that `build` makes of `layers`, whose `update` must be given `factors`."""
    built = build(tuple(layers))

    def update(
        gradients: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        factors: Mapping[str, tuple[Array, Array]] | None | NotGiven = NOT_GIVEN,
        **options: Any,
    ) -> tuple[PyTree, PyTree]:
        return built.update(gradients, state, params, factors=_given(factors, layers), **options)

    return optax.GradientTransformationExtraArgs(built.init, update)


def states_of(optimizer_state: PyTree, kind: type) -> list[Any]:
    """The states of one kind in an optimiser's, however it is wrapped (chains, masks, schedules, accumulation)."""
    nodes = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def _given(factors: Mapping[str, PyTree] | None | NotGiven, layers: Sequence[Layer]) -> Mapping[str, PyTree]:
    if isinstance(factors, NotGiven):
        warnings.warn(
            "the optimizer's update was called without `factors`, so that no layer gets curvature from it: pass "
            "factors=estimate(...).factors, or factors=None on a step without new ones. Flax's "
            "TrainState.apply_gradients does not pass them on: call state.tx.update",
            stacklevel=3,
        )
        return {}
    unknown = sorted(set(factors or {}) - {layer.name for layer in layers})
    if unknown:
        raise ValueError(
            f"factors of layers that the optimizer does not have: {', '.join(unknown)}; "
            "give `estimate` and the optimizer the same layers"
        )
    return factors or {}
