"""Adam in the eigenbasis of Kronecker factors: of the Fisher (EKFAC-Adam), or the gradient covariances (SOAP)."""

import dataclasses
from collections.abc import Hashable
from typing import Any

from jax import Array

from ...algoperf.contract import StepResult
from ...algoperf.problem import Problem
from ..adaptive import Scaling, eigenbasis_adam, scale_state
from ..eigenbasis import Refresh
from ..estimate import estimate
from ..factors import gradient_covariances
from ..layers import find_layers
from ..sharing import Sharing
from .curvature import (
    KroneckerHyperparameters,
    PeriodicAlgorithm,
    PeriodicHyperparameters,
    PyTree,
    estimate_batch,
    is_due,
    result,
)

_BOUNDS = {"beta2": (0, 1), "epsilon": (0, float("inf")), "full_steps": (1, float("inf"))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EKFACAdamHyperparameters(KroneckerHyperparameters):
    """See `adaptive.eigenbasis_adam`.

    Attributes:
        full_steps: the first steps, whose refreshes are eigendecompositions; later ones are power iterations.
        scaling: adam, or ekfac, which `damping`, `kl_clip` and `fallback_rate` are for.
    """

    schedule_fraction: float = 0.5
    statistics_period: int = 10
    refresh_period: int = 10
    beta2: float = 0.99
    epsilon: float = 1e-8
    full_steps: int = 2
    scaling: str = "adam"
    damping: float = 1e-3

    bounds = KroneckerHyperparameters.bounds | _BOUNDS | {"damping": (1e-30, float("inf"))}
    choices = KroneckerHyperparameters.choices | {"scaling": Scaling}


class EKFACAdam(PeriodicAlgorithm):
    """Adam in the eigenbasis of the K-FAC factors, with the given treatment of shared weights; or EK-FAC."""

    hyperparameters = EKFACAdamHyperparameters

    def __init__(self, sharing: Sharing):
        self._sharing = sharing

    def variant(self, global_step: int, h: Any) -> Hashable:
        """(estimate factors, how to refresh the bases)."""
        refresh = _refresh(global_step, h)
        return refresh is not None or is_due(global_step, h.statistics_period, h.early_steps), refresh

    def step(
        self, variant: Hashable, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array
    ) -> StepResult:
        estimate_factors, refresh = variant
        layers = find_layers(params)
        if estimate_factors:
            bases = scale_state(state).bases if h.scaling == Scaling.EKFAC.value else None
            batch = estimate_batch(problem, params, layers, self._sharing, h, key, bases)
        else:
            batch = estimate(problem.forward, problem.loss, params)
        updates, state = self.optimizer(layers, h, problem.mesh).update(
            batch.gradients,
            state,
            params,
            factors=batch.factors,
            eigenvalues=batch.eigenvalues,
            refresh=refresh,
        )
        return result(batch, params, updates, state)

    def optimizer(self, layers, h, mesh=None):
        return eigenbasis_adam(
            layers,
            learning_rate=h.learning_rate,
            beta1=1 - h.one_minus_beta1,
            beta2=h.beta2,
            epsilon=h.epsilon,
            weight_decay=h.weight_decay,
            grad_clip=h.grad_clip,
            factor_decay=h.factor_decay,
            scaling=Scaling(h.scaling),
            damping=h.damping,
            kl_clip=h.kl_clip,
            fallback_rate=h.fallback_rate,
            mesh=mesh,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SOAPHyperparameters(PeriodicHyperparameters):
    """Of SOAP; every step has its estimate, which is no more than products of the gradient with itself."""

    beta2: float = 0.99
    epsilon: float = 1e-8
    full_steps: int = 1
    statistics_period: int = 1
    refresh_period: int = 10
    early_steps: int = 1

    bounds = PeriodicHyperparameters.bounds | _BOUNDS


class SOAP(PeriodicAlgorithm):
    """Adam in the eigenbasis of Shampoo's factors.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024.
    """

    hyperparameters = SOAPHyperparameters

    def variant(self, global_step: int, h: Any) -> Hashable:
        """(estimate covariances, how to refresh the bases)."""
        refresh = _refresh(global_step, h)
        return refresh is not None or is_due(global_step, h.statistics_period, h.early_steps), refresh

    def step(
        self, variant: Hashable, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array
    ) -> StepResult:
        estimate_factors, refresh = variant
        layers = find_layers(params) if estimate_factors else ()
        batch = estimate(problem.forward, problem.loss, params)
        factors = {layer.name: gradient_covariances(layer.read(batch.gradients)) for layer in layers}
        optimizer = self.optimizer(find_layers(params), h, problem.mesh)
        updates, state = optimizer.update(batch.gradients, state, params, factors=factors, refresh=refresh)
        return result(batch, params, updates, state)

    def optimizer(self, layers, h, mesh=None):
        return eigenbasis_adam(
            layers,
            learning_rate=h.learning_rate,
            beta1=1 - h.one_minus_beta1,
            beta2=h.beta2,
            epsilon=h.epsilon,
            weight_decay=h.weight_decay,
            grad_clip=h.grad_clip,
            factor_decay=h.factor_decay,
            mesh=mesh,
        )


def _refresh(global_step: int, h: Any) -> Refresh | None:
    if not is_due(global_step, h.refresh_period, h.early_steps):
        return None
    return Refresh.FULL if global_step < h.full_steps else Refresh.POWER
