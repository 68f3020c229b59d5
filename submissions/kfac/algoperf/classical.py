"""K-FAC-expand and K-FAC-reduce."""

import dataclasses
from typing import Any

import optax
from jax import Array
from jax.sharding import Mesh

from ...algoperf.problem import Problem
from ..estimate import Estimate
from ..layers import Layer
from ..sharing import Sharing
from ..transform import Momentum, WeightDecay, kfac
from .curvature import (
    CurvatureAlgorithm,
    CurvatureHyperparameters,
    FactorOptions,
    FisherOptions,
    estimate_batch,
    factor_decay,
)

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class KFACHyperparameters(FactorOptions, FisherOptions, CurvatureHyperparameters):
    """See `transform.kfac`."""

    damping: float
    momentum: str = "nesterov"
    weight_decay_kind: str = "decoupled"

    bounds = (
        CurvatureHyperparameters.bounds
        | FactorOptions.bounds
        | FisherOptions.bounds
        | {"damping": (1e-30, float("inf"))}
    )
    choices = FisherOptions.choices | {"momentum": Momentum, "weight_decay_kind": WeightDecay}


class KFAC(CurvatureAlgorithm):
    """K-FAC with the given treatment of shared weights."""

    hyperparameters = KFACHyperparameters

    def __init__(self, sharing: Sharing):
        self._sharing = sharing

    def estimate(
        self, problem: Problem, state: PyTree, params: PyTree, layers: tuple[Layer, ...], h: Any, key: Array
    ) -> tuple[Estimate, dict[str, Any]]:
        del state
        batch = estimate_batch(problem, params, layers, self._sharing, h, key)
        return batch, {"factors": batch.factors}

    def optimizer(
        self, layers: tuple[Layer, ...], h: Any, mesh: Mesh | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return kfac(
            layers,
            learning_rate=h.learning_rate,
            damping=h.damping,
            momentum=1 - h.one_minus_beta1,
            momentum_kind=Momentum(h.momentum),
            weight_decay=h.weight_decay,
            weight_decay_kind=WeightDecay(h.weight_decay_kind),
            grad_clip=h.grad_clip,
            factor_decay=factor_decay(h),
            kl_clip=h.kl_clip,
            fallback_rate=h.fallback_rate,
            mesh=mesh,
        )
