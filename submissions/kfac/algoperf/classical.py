"""K-FAC-expand and K-FAC-reduce."""

import dataclasses
from typing import Any

import optax
from jax.sharding import Mesh

from ...algoperf.averaging import AveragingOptions
from ..fisher import Fisher
from ..layers import Layer
from ..transform import Length, Momentum, WeightDecay, kfac
from .curvature import (
    CurvatureHyperparameters,
    FactorOptions,
    KroneckerAlgorithm,
    factor_decay,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KFACHyperparameters(AveragingOptions, FactorOptions, CurvatureHyperparameters):
    """See `transform.kfac`, and `fisher.Fisher`."""

    damping: float
    fisher: Fisher = Fisher.SAMPLED
    weight_decay: float = 0.1
    schedule_fraction: float = 0.6
    length: Length = Length.LAYERWISE
    kl_clip: float = 1.0
    fallback_rate: float = 0.1
    momentum_kind: Momentum = Momentum.NESTEROV
    weight_decay_kind: WeightDecay = WeightDecay.DECOUPLED

    bounds = {"damping": (1e-30, float("inf")), "kl_clip": (0, float("inf")), "fallback_rate": (0, float("inf"))}


class KFAC(KroneckerAlgorithm):
    """K-FAC with the given treatment of shared weights."""

    hyperparameters = KFACHyperparameters

    def optimizer(
        self, layers: tuple[Layer, ...], h: Any, mesh: Mesh | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return kfac(
            layers,
            learning_rate=h.learning_rate,
            damping=h.damping,
            momentum=1 - h.one_minus_beta1,
            momentum_kind=h.momentum_kind,
            weight_decay=h.weight_decay,
            weight_decay_kind=h.weight_decay_kind,
            grad_clip=h.grad_clip,
            factor_decay=factor_decay(h),
            length=h.length,
            kl_clip=h.kl_clip,
            fallback_rate=h.fallback_rate,
            mesh=mesh,
        )
