"""Schedule-free AdamW with linear warm-up."""

import dataclasses
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..algoperf import schedule
from ..algoperf.contract import Submission
from ..algoperf.first_order import FirstOrder, require_optax
from ..algoperf.hyperparameters import Hyperparameters

PyTree = Any

OLDEST_OPTAX = "0.2.3"  # the first with schedule-free optimisers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFreeHyperparameters(Hyperparameters):
    """`one_minus_beta1` is one minus the interpolation between the average and the fast iterate."""

    one_minus_beta1: float = 0.1
    beta2: float = 0.999

    bounds = Hyperparameters.bounds | {"one_minus_beta1": (0, 1), "beta2": (0, 1)}


class ScheduleFreeState(NamedTuple):
    """
    Attributes:
        inner: optax's state.
        is_average: `[]` bool, whether the parameters are the average to evaluate, not the point to train at.
    """

    inner: PyTree
    is_average: Array


class ScheduleFreeAdamW(FirstOrder):
    """Trains at one point, and is evaluated at the average of such points; `is_average` says which one is held."""

    def __init__(self):
        super().__init__(ScheduleFreeHyperparameters, _optimizer, _schedule)

    def init(self, params: PyTree, h: Any) -> PyTree:
        return ScheduleFreeState(super().init(params, h), jnp.asarray(False))

    def step(self, problem, state, params, h, key):
        beta1 = 1 - h.one_minus_beta1
        params = jax.tree.map(
            lambda x, z: jnp.where(state.is_average, beta1 * x + (1 - beta1) * z, x), params, state.inner.z
        )
        result = super().step(problem, state.inner, params, h, key)
        return result._replace(state=ScheduleFreeState(result.state, jnp.asarray(False)))

    def for_evaluation(self, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        return _to_average(state, params)


@jax.jit
def _to_average(state: ScheduleFreeState, params: PyTree) -> tuple[ScheduleFreeState, PyTree]:
    average = optax.contrib.schedule_free_eval_params(state.inner, params)
    params = jax.tree.map(lambda own, x: jnp.where(state.is_average, own, x), params, average)
    return state._replace(is_average=jnp.asarray(True)), params


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

data_selection = _submission.data_selection
get_batch_size = _submission.get_batch_size
init_optimizer_state = _submission.init_optimizer_state
prepare_for_eval = _submission.prepare_for_eval
update_params = _submission.update_params
