"""Adam in the eigenbasis of Kronecker factors: of the Fisher (EKFAC-Adam), or the gradient covariances (SOAP)."""

import dataclasses
from collections.abc import Hashable
from typing import Any

from jax import Array

from ...algoperf.contract import StepResult
from ...algoperf.problem import Problem
from ..adaptive import Scaling, bases_by_layer, eigenbasis_adam
from ..eigenbasis import Refresh
from ..factors import gradient_covariances
from ..layers import find_layers
from ..sharing import Sharing
from .curvature import (
    KroneckerHyperparameters,
    PeriodicAlgorithm,
    PeriodicHyperparameters,
    PyTree,
    estimate_batch,
    plain_batch,
    result,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EigenbasisHyperparameters(PeriodicHyperparameters):
    """Of Adam in an eigenbasis; see `adaptive.eigenbasis_adam` for those not described here.

    Attributes:
        full_steps: the first steps, which all refresh, by eigendecompositions; later refreshes are power iterations.
            Three, as a head that starts from zero, under a warm-up that does, keeps every gradient from the layers
            before it until then.
    """

    beta2: float = 0.99
    epsilon: float = 1e-8
    relative_epsilon: float = 3e-4
    full_steps: int = 3

    bounds = PeriodicHyperparameters.bounds | {
        "beta2": (0, 1 - 1e-6),
        "epsilon": (1e-30, float("inf")),
        "relative_epsilon": (0, float("inf")),
        "full_steps": (1, float("inf")),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class EKFACAdamHyperparameters(KroneckerHyperparameters, EigenbasisHyperparameters):
    """Of Adam in the eigenbasis of the K-FAC factors, and of EK-FAC.

    Attributes:
        scaling: adam, or ekfac, which `damping`, `kl_clip` and `fallback_rate` are for.
    """

    schedule_fraction: float = 0.6
    factor_decay: float = 0.8
    statistics_period: int = 20
    refresh_period: int = 20
    scaling: str = "adam"
    damping: float = 1e-3

    bounds = KroneckerHyperparameters.bounds | EigenbasisHyperparameters.bounds | {"damping": (1e-30, float("inf"))}
    choices = KroneckerHyperparameters.choices | {"scaling": Scaling}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SOAPHyperparameters(EigenbasisHyperparameters):
    """Of SOAP, with the periods of its source: an estimate every step, a refresh every ten."""

    statistics_period: int = 1
    refresh_period: int = 10
    early_steps: int = 0


class _EigenbasisAlgorithm(PeriodicAlgorithm):
    def variant(self, global_step: int, h: Any) -> Hashable:
        """(estimate factors, how to refresh the bases)."""
        if global_step < h.full_steps:
            return True, Refresh.FULL
        estimate_factors, refresh = super().variant(global_step, h)
        return estimate_factors, Refresh.POWER if refresh else None

    def optimizer(self, layers, h, mesh=None, **more: Any):
        return eigenbasis_adam(
            layers,
            learning_rate=h.learning_rate,
            beta1=1 - h.one_minus_beta1,
            beta2=h.beta2,
            epsilon=h.epsilon,
            relative_epsilon=h.relative_epsilon,
            weight_decay=h.weight_decay,
            grad_clip=h.grad_clip,
            factor_decay=h.factor_decay,
            mesh=mesh,
            **more,
        )


class EKFACAdam(_EigenbasisAlgorithm):
    """Adam in the eigenbasis of the K-FAC factors, with the given treatment of shared weights; or EK-FAC."""

    hyperparameters = EKFACAdamHyperparameters

    def __init__(self, sharing: Sharing):
        self._sharing = sharing

    def step(
        self, variant: Hashable, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array
    ) -> StepResult:
        estimate_factors, refresh = variant
        layers = find_layers(params)
        if estimate_factors:
            bases = bases_by_layer(state, layers) if Scaling(h.scaling) is Scaling.EKFAC else None
            batch = estimate_batch(problem, params, layers, self._sharing, h, key, bases)
        else:
            batch = plain_batch(problem, params, h)
        updates, state = self.optimizer(layers, h, problem.mesh).update(
            batch.gradients, state, params, factors=batch.factors, eigenvalues=batch.eigenvalues, refresh=refresh
        )
        return result(problem, batch, params, updates, state)

    def optimizer(self, layers, h, mesh=None):
        return super().optimizer(
            layers,
            h,
            mesh,
            scaling=Scaling(h.scaling),
            damping=h.damping,
            kl_clip=h.kl_clip,
            fallback_rate=h.fallback_rate,
        )


class SOAP(_EigenbasisAlgorithm):
    """Adam in the eigenbasis of Shampoo's factors.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024.
    """

    hyperparameters = SOAPHyperparameters

    def step(
        self, variant: Hashable, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array
    ) -> StepResult:
        estimate_factors, refresh = variant
        layers = find_layers(params)
        batch = plain_batch(problem, params, h)
        factors = {}
        if estimate_factors:
            factors = {
                layer.name: gradient_covariances(layer.read(batch.gradients), layer.are_diagonal) for layer in layers
            }
        updates, state = self.optimizer(layers, h, problem.mesh).update(
            batch.gradients, state, params, factors=factors, refresh=refresh
        )
        return result(problem, batch, params, updates, state)
