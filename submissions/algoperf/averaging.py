"""Training at the iterate, evaluation at a moving average of the iterates.

With a large learning rate the iterates scatter around better parameters, and their average is close to these. Averaging
therefore replaces the decay at the end of a schedule, so that the schedule may be longer than the time to a target.
"""

import dataclasses
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .contract import Algorithm, StepResult
from .problem import Problem

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class AveragingOptions:
    """
    Attributes:
        averaged_share: about what share of the steps so far the average spans; 0 evaluates the last iterate. Source:
            docs/ablations.md.
    """

    averaged_share: float = 0.05

    bounds: typing.ClassVar[dict[str, tuple[float, float]]] = {"averaged_share": (0, 1)}


class AveragedState(NamedTuple):
    """
    Attributes:
        inner: the algorithm's own state.
        params: the iterate, where the next step starts.
        model_state: the leaves of the model's state there.
        count: `[]` int32, steps made.
    """

    inner: PyTree
    params: PyTree
    model_state: list[Array]
    count: Array  # type: ignore[assignment]  # which hides the tuple's method


class Averaged(Algorithm):
    """An algorithm whose parameters, as the caller sees them, are the moving average of its iterates.

    After step n, counted from 0, the average moves by 1 / (1 + averaged_share·n) of its distance to the iterate. The
    model's state is averaged likewise, unless the step gave it more or fewer arrays. Source: Shamir and Zhang,
    "Stochastic Gradient Descent for Non-smooth Optimization", 2013 (polynomial-decay averaging; their η is
    1 / averaged_share - 1).

    Args:
        algorithm: its hyperparameters include `AveragingOptions`.

    Raises:
        TypeError: its hyperparameters do not include `AveragingOptions`.
    """

    def __init__(self, algorithm: Algorithm):
        if not issubclass(algorithm.hyperparameters, AveragingOptions):
            raise TypeError(f"{algorithm.hyperparameters.__name__} must inherit from AveragingOptions, too")
        self._algorithm = algorithm
        self.hyperparameters = algorithm.hyperparameters

    @property
    def has_refresh(self) -> bool:
        return self._algorithm.has_refresh

    def is_refresh_due(self, global_step: int, h: Any) -> bool:
        return self._algorithm.is_refresh_due(global_step, h)

    def learning_rate(self, global_step: int, step_hint: int, h: Any) -> float:
        return self._algorithm.learning_rate(global_step, step_hint, h)

    def describe(self, params: PyTree) -> str | None:
        return self._algorithm.describe(params)

    def metrics(self, state: AveragedState) -> dict[str, Array]:
        return self._algorithm.metrics(state.inner)

    def init(self, params: PyTree, model_state: PyTree, h: Any) -> AveragedState:
        inner = self._algorithm.init(params, model_state, h)
        params, model_state = jax.tree.map(jnp.copy, (params, model_state))  # as a donated buffer may appear only once
        return AveragedState(inner, params, jax.tree.leaves(model_state), jnp.zeros([], jnp.int32))

    def refresh(self, problem: Problem, state: AveragedState, params: PyTree, h: Any, key: Array) -> AveragedState:
        del params
        inner = self._algorithm.refresh(_at_iterate(problem, state), state.inner, state.params, h, key)
        return state._replace(inner=inner)

    def step(self, problem: Problem, state: AveragedState, params: PyTree, h: Any, key: Array) -> StepResult:
        result = self._algorithm.step(_at_iterate(problem, state), state.inner, state.params, h, key)
        weight = 1 / (1 + h.averaged_share * state.count)
        averages, iterates = (params, problem.model_state), (result.params, result.model_state)
        if len(jax.tree.leaves(averages)) != len(jax.tree.leaves(iterates)):
            averages = params, result.model_state
        moved = [
            _moved(average, iterate, weight)
            for average, iterate in zip(jax.tree.leaves(averages), jax.tree.leaves(iterates), strict=True)
        ]
        params, model_state = jax.tree.unflatten(jax.tree.structure(iterates), moved)
        iterate = AveragedState(result.state, result.params, jax.tree.leaves(result.model_state), state.count + 1)
        return result._replace(state=iterate, params=params, model_state=model_state)


def _at_iterate(problem: Problem, state: AveragedState) -> Problem:
    structure = jax.tree.structure(problem.model_state)
    return dataclasses.replace(problem, model_state=jax.tree.unflatten(structure, state.model_state))


def _moved(average: Array, iterate: Array, weight: Array) -> Array:
    """(1 - weight) average + weight iterate; the iterate itself for integers and for floats of less than 32 bits.

    In these types, rounding would lose a small change of the average.
    """
    if not jnp.issubdtype(average.dtype, jnp.floating) or jnp.finfo(average.dtype).bits < 32:
        return iterate
    return ((1 - weight) * average + weight * iterate).astype(average.dtype)
