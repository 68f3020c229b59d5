"""SGD with Nesterov momentum, linear warm-up and linear decay: the first-order reference of `ogbg`."""

import dataclasses
from typing import Any

import optax

from ..algoperf import schedule
from ..algoperf.contract import Submission
from ..algoperf.first_order import FirstOrder
from ..algoperf.hyperparameters import LinearDecay


@dataclasses.dataclass(frozen=True, kw_only=True)
class NesterovHyperparameters(LinearDecay):
    """Weight decay is added to the gradient; the rest is as the reference names it."""

    one_minus_beta1: float = 0.1
    end_factor: float = 1e-3

    bounds = {"one_minus_beta1": (0, 1)}


def _optimizer(h: Any, params: Any) -> optax.GradientTransformation:
    del params
    return optax.chain(
        optax.add_decayed_weights(h.weight_decay),
        optax.sgd(h.learning_rate, momentum=1 - h.one_minus_beta1, nesterov=True),
    )


_submission = Submission(FirstOrder(NesterovHyperparameters, _optimizer, schedule.polynomial))

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
