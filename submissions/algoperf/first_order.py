"""A training algorithm that is an optax optimiser."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array

from .contract import Algorithm, StepResult
from .hyperparameters import Hyperparameters
from .problem import Problem

PyTree = Any


def require_optax(oldest: str) -> None:
    """
    Raises:
        ValueError: the installed optax is older, as the official harness's 0.2.2 may be.
    """

    def parts(version: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", version)[:3]]

    if parts(optax.__version__) < parts(oldest):
        raise ValueError(f"this submission needs optax {oldest} or newer, and optax {optax.__version__} is installed")


class FirstOrder(Algorithm):
    """An optax optimiser under a learning-rate schedule.

    Args:
        hyperparameters: the class of its hyperparameters.
        optimizer: (hyperparameters by name (traced numbers), parameters) -> gradient transformation.
        schedule: (step, schedule length, hyperparameters) -> learning rate; see `schedule`.
    """

    def __init__(
        self,
        hyperparameters: type[Hyperparameters],
        optimizer: Callable[[Any, PyTree], optax.GradientTransformation],
        schedule: Callable[[int, int, Any], float],
    ):
        self.hyperparameters = hyperparameters
        self._optimizer = optimizer
        self._schedule = schedule

    def init(self, params: PyTree, model_state: PyTree, h: Any) -> PyTree:
        del model_state
        return self._optimizer(h, params).init(params)

    def learning_rate(self, global_step: int, step_hint: int, h: Any) -> float:
        return self._schedule(global_step, int(h.schedule_fraction * step_hint), h)

    def step(self, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array) -> StepResult:
        def one(part: Problem, index: Array | None) -> tuple[PyTree, PyTree]:
            def summed_loss(p: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
                logits, model_state = part.forward(p)
                summed, n_terms = part.loss(logits)
                return summed, (n_terms, model_state)

            (summed, (n_terms, model_state)), gradients = jax.value_and_grad(summed_loss, has_aux=True)(params)
            return (summed, n_terms, gradients), model_state

        (summed, n_terms, gradients), model_state = problem.summed(h.micro_batches, one)
        loss, gradients = jax.tree.map(lambda x: x / n_terms.astype(x.dtype), (summed, gradients))
        norm = optax.global_norm(gradients)
        clip = optax.identity() if h.grad_clip is None else optax.clip_by_global_norm(h.grad_clip)
        gradients, _ = clip.update(gradients, clip.init(params))
        updates, state = self._optimizer(h, params).update(gradients, state, params)
        return StepResult(state, optax.apply_updates(params, updates), model_state, loss, norm)
