"""New curvature in a program of its own, apart from the training step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .routing import states_of

PyTree = Any


def refresh_curvature(
    optimizer: optax.GradientTransformationExtraArgs,
    state: PyTree,
    params: PyTree,
    factors: Mapping[str, tuple[Array, Array | None]] | None,
) -> PyTree:
    """The optimiser's state with `factors` averaged and its curvature refreshed; all else in it stays, no step is made.

    After it, `optimizer.update(gradients, state, params, factors=None)` makes the step that `update` makes when it is
    given `factors` and `refresh=True`. So a training loop compiles its step once, and not a second time with the
    estimate and the refresh inside.

    Args:
        optimizer: one of this library's, which other transformations may wrap.
        factors: layer name -> (A, B), from `estimate`; None to refresh from the averages as they are.

    Raises:
        ValueError: the optimiser is inside `optax.MultiSteps`, which would drop the new state.
    """
    if states_of(state, optax.MultiStepsState):
        raise ValueError(
            "optax.MultiSteps drops what changes between its steps: give `factors` and `refresh` to its `update`, at "
            "the last of the calls whose gradients it averages"
        )
    nothing = jax.tree.map(jnp.zeros_like, params)
    _, new = optimizer.update(nothing, state, params, factors=factors, refresh=True, is_step=False)
    return jax.tree.map(lambda old, new: new if _has_curvature(old) else old, state, new, is_leaf=_has_curvature)


def _has_curvature(node: Any) -> bool:
    return hasattr(node, "factors")
