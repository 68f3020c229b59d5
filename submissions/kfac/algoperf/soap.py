"""SOAP: Adam in the eigenbasis of the gradient's covariances, which are Shampoo's factors."""

import dataclasses
from typing import Any

import optax
from jax.sharding import Mesh

from ...algoperf.averaging import AveragingOptions
from ..adaptive import eigenbasis_adam
from ..factors import gradient_covariances
from ..layers import Layer
from .curvature import CurvatureAlgorithm, CurvatureHyperparameters, Factors

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SOAPHyperparameters(AveragingOptions, CurvatureHyperparameters):
    """Of SOAP, which estimates its factors at every step; see `adaptive.eigenbasis_adam` for those not described here.

    Attributes:
        factor_decay: decay of the factors' moving average; 0.95 in the source.
        refresh_period: steps between refreshes of the bases; ten in the source.
        full_steps: after each of the first `full_steps` steps the bases are refreshed by eigendecomposition; later
            refreshes are power iterations. With a head and a learning rate that both start from zero, the layers
            before the head have no gradient in the first two steps, so the default is three.
    """

    weight_decay: float = 0.3
    schedule_fraction: float = 0.6
    beta2: float = 0.99
    epsilon: float = 1e-8
    relative_epsilon: float = 3e-4
    factor_decay: float = 0.95
    refresh_period: int = 10
    full_steps: int = 3

    bounds = {
        "beta2": (0, 1 - 1e-6),
        "epsilon": (1e-30, float("inf")),
        "relative_epsilon": (0, float("inf")),
        "factor_decay": (0, 1),
        "refresh_period": (1, float("inf")),
        "full_steps": (1, float("inf")),
    }


class SOAP(CurvatureAlgorithm):
    """Adam in the eigenbasis of Shampoo's factors.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024.
    """

    hyperparameters = SOAPHyperparameters

    def is_refresh_due(self, global_step: int, h: Any) -> bool:
        """As in the source, a step's gradient changes the bases of the step after it."""
        return bool(0 < global_step and (global_step <= h.full_steps or global_step % h.refresh_period == 0))

    def factors_of_gradient(self, gradients: PyTree, layers: tuple[Layer, ...]) -> Factors:
        return {layer.name: gradient_covariances(layer.read(gradients), layer.are_diagonal) for layer in layers}

    def optimizer(
        self, layers: tuple[Layer, ...], h: Any, mesh: Mesh | None = None
    ) -> optax.GradientTransformationExtraArgs:
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
            full_refreshes=h.full_steps + 1,  # the first one comes after the first update
            mesh=mesh,
        )
