"""NAdamW with linear warm-up and cosine decay: the first-order reference of `imagenet_vit`."""

import dataclasses
from typing import Any

import optax

from ..algoperf import schedule
from ..algoperf.contract import Submission
from ..algoperf.first_order import FirstOrder
from ..algoperf.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class NAdamWHyperparameters(Hyperparameters):
    """Weight decay is decoupled; the rest is as the reference names it."""

    one_minus_beta1: float = 0.1
    beta2: float = 0.999

    bounds = {"one_minus_beta1": (1e-6, 1), "beta2": (0, 1 - 1e-6)}


def _optimizer(h: Any, params: Any) -> optax.GradientTransformation:
    del params
    return optax.nadamw(h.learning_rate, b1=1 - h.one_minus_beta1, b2=h.beta2, weight_decay=h.weight_decay)


_submission = Submission(FirstOrder(NAdamWHyperparameters, _optimizer, schedule.cosine))

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
