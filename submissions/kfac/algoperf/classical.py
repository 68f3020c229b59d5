"""K-FAC-expand and K-FAC-reduce."""

import dataclasses
from collections.abc import Hashable
from typing import Any

from jax import Array

from ...algoperf.contract import StepResult
from ...algoperf.problem import Problem
from ..layers import find_layers
from ..sharing import Sharing
from ..transform import Momentum, WeightDecay, kfac
from .curvature import KroneckerHyperparameters, PeriodicAlgorithm, PyTree, estimate_batch, plain_batch, result


@dataclasses.dataclass(frozen=True, kw_only=True)
class KFACHyperparameters(KroneckerHyperparameters):
    """See `transform.kfac`."""

    damping: float
    momentum: str = "nesterov"
    weight_decay_kind: str = "decoupled"

    bounds = KroneckerHyperparameters.bounds | {"damping": (1e-30, float("inf"))}
    choices = KroneckerHyperparameters.choices | {"momentum": Momentum, "weight_decay_kind": WeightDecay}


class KFAC(PeriodicAlgorithm):
    """K-FAC with the given treatment of shared weights."""

    hyperparameters = KFACHyperparameters

    def __init__(self, sharing: Sharing):
        self._sharing = sharing

    def step(
        self, variant: Hashable, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array
    ) -> StepResult:
        estimate_factors, refresh_inverses = variant
        layers = find_layers(params)
        if estimate_factors:
            batch = estimate_batch(problem, params, layers, self._sharing, h, key)
        else:
            batch = plain_batch(problem, params, h)
        updates, state = self.optimizer(layers, h, problem.mesh).update(
            batch.gradients, state, params, factors=batch.factors, refresh_inverses=refresh_inverses
        )
        return result(problem, batch, params, updates, state)

    def optimizer(self, layers, h, mesh=None):
        return kfac(
            layers,
            learning_rate=h.learning_rate,
            damping=h.damping,
            momentum=1 - h.one_minus_beta1,
            momentum_kind=Momentum(h.momentum),
            weight_decay=h.weight_decay,
            weight_decay_kind=WeightDecay(h.weight_decay_kind),
            grad_clip=h.grad_clip,
            factor_decay=h.factor_decay,
            kl_clip=h.kl_clip,
            fallback_rate=h.fallback_rate,
            mesh=mesh,
        )
