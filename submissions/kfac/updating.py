"""The order of an update, which all optimisers with curvature share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array

from .accumulation import accumulate, usable_gradients
from .groups import Group, Parts, join, split
from .schedules import Scalar

PyTree = Any
Factors = Mapping[str, tuple[Array, Array | None]]  # layer name -> (A, B)
Direction = Callable[[Parts, Any, PyTree | None], tuple[Parts, Any]]


def update_with_curvature(
    groups: Sequence[Group],
    *,
    grad_clip: Scalar | None,
    factor_decay: Scalar,
    refresh_state: Callable[[Any], Any],
    direction: Direction,
    select: Callable[[Factors], Mapping[str, PyTree]] = dict,
) -> Callable[..., tuple[PyTree, Any]]:
    """An optax `update`: average `factors`, refresh the curvature, clean and clip the gradients, make a direction.

    The `update` takes, beside optax's arguments,

    - `factors`: those of this batch, or None;
    - `refresh` (static): whether to recompute what is made of the averaged factors;
    - `is_step` (static): False changes the curvature alone, and returns the gradients as they are.

    Args:
        grad_clip: largest global norm of the gradients; None for no bound.
        factor_decay: decay of the factors' moving average.
        refresh_state: state -> the state with new curvature. States have `count`, `fallbacks` and `factors`.
        direction: (gradients, state, params) -> (direction, state); `count` includes this update.
        select: which of each layer's (A, B) are averaged: factors -> layer name -> those. By default both.
    """

    def update(
        gradients: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        factors: Factors | None = None,
        refresh: bool = False,
        is_step: bool = True,
        **_: Any,
    ) -> tuple[PyTree, Any]:
        earlier = state
        if factors:
            selected = select(factors)
            if len(jax.tree.leaves(selected)) < len(jax.tree.leaves(selected, is_leaf=lambda own: own is None)):
                raise ValueError("there are no output factors: call `estimate` with output_factors=True")
            averages, unused = accumulate(state.factors, groups, selected, factor_decay)
            state = state._replace(factors=averages, fallbacks=state.fallbacks.plus(*unused))
        if refresh:
            state = refresh_state(state)
        if not is_step:
            return gradients, _with_dtypes_of(earlier, state)
        parts, n_lost = usable_gradients(split(gradients, groups), grad_clip)
        state = state._replace(count=state.count + 1, fallbacks=state.fallbacks.plus(n_faulty=n_lost))
        parts, state = direction(parts, state, params)
        return join(gradients, groups, parts), _with_dtypes_of(earlier, state)

    return update


def _with_dtypes_of(earlier: Any, state: Any) -> Any:
    """The new state in the old one's dtypes, which numbers or gradients of a wider dtype would have changed."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), state, earlier)
