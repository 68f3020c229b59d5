"""Schedule-free AdamW with linear warm-up."""

import dataclasses
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..algoperf import schedule
from ..algoperf.contract import Submission
from ..algoperf.first_order import FirstOrder, require_optax
from ..algoperf.hyperparameters import Hyperparameters

PyTree = Any

OLDEST_OPTAX = "0.2.3"  # the first with schedule-free optimisers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFreeHyperparameters(Hyperparameters):
    """`one_minus_beta1` is 1 - β of y = (1 - β) z + β x: the gradient's point y, the iterate z, the average x."""

    one_minus_beta1: float = 0.1
    beta2: float = 0.999

    bounds = {"one_minus_beta1": (0, 1 - 1e-6), "beta2": (0, 1 - 1e-6)}


class ScheduleFreeState(NamedTuple):
    """
    Attributes:
        inner: optax's state.
        params: the parameters to train at.
    """

    inner: PyTree
    params: PyTree


class ScheduleFreeAdamW(FirstOrder):
    """Takes gradients at y, which its state holds. The caller's parameters are x, the average of the iterates z."""

    def __init__(self):
        super().__init__(ScheduleFreeHyperparameters, _optimizer, _schedule)

    def init(self, params: PyTree, model_state: PyTree, h: Any) -> PyTree:
        params = jax.tree.map(jnp.copy, params)  # as a donated buffer may appear only once
        return ScheduleFreeState(super().init(params, model_state, h), params)

    def step(self, problem, state, params, h, key):
        del params
        result = super().step(problem, state.inner, state.params, h, key)
        average = optax.contrib.schedule_free_eval_params(result.state, result.params)
        return result._replace(state=ScheduleFreeState(result.state, result.params), params=average)


def _optimizer(h: Any, params: Any) -> optax.GradientTransformation:
    del params
    require_optax(OLDEST_OPTAX)
    return optax.contrib.schedule_free_adamw(
        h.learning_rate, b1=1 - h.one_minus_beta1, b2=h.beta2, weight_decay=h.weight_decay
    )


def _schedule(step: int, length: int, h: Any) -> float:
    """Linear warm-up, then constant."""
    return schedule.polynomial(step, length, types.SimpleNamespace(**vars(h), decay_steps_factor=1.0, end_factor=1.0))


_submission = Submission(ScheduleFreeAdamW())

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
