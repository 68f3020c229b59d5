"""Schedules in the place of an optimiser's numbers."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

Scalar = float | Array
Factory = Callable[..., optax.GradientTransformationExtraArgs]


def schedulable(*static: str) -> Callable[[Factory], Factory]:
    """A decorator of optimisers: any argument but the `static` ones may be a schedule.

    A schedule maps the number of updates made to a number, as in optax.

    With a schedule, the state is that of `optax.inject_hyperparams`, whose `hyperparams` holds the scheduled numbers
    last used, in float32. Without one, the optimiser and its state are as they were.
    """

    def decorate(factory: Factory) -> Factory:
        names = set(inspect.signature(factory).parameters)

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
            scheduled = {name for name, value in kwargs.items() if name not in static and callable(value)}
            if not scheduled:
                return factory(*args, **kwargs)
            # Numbers without a schedule stay out of the state, where they would not follow the arguments.
            injected = optax.inject_hyperparams(factory, names - scheduled, hyperparam_dtype=jnp.float32)
            return injected(*args, **kwargs)

        return build

    return decorate
