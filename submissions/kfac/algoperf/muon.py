"""Muon in the metric of K-FAC's input factors, those of expand or of reduce."""

import dataclasses
from typing import Any

import optax
from jax.sharding import Mesh

from ...algoperf.averaging import AveragingOptions
from ..layers import Layer
from ..muon import kfac_muon, layers_with_metric
from .curvature import CurvatureHyperparameters, FactorOptions, KroneckerAlgorithm, factor_decay

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class KFACMuonHyperparameters(AveragingOptions, FactorOptions, CurvatureHyperparameters):
    """See `muon.kfac_muon`."""

    weight_decay: float = 0.1
    schedule_fraction: float = 0.6
    damping: float = 1e-2
    beta2: float = 0.99

    bounds = {"damping": (1e-30, float("inf")), "beta2": (0, 1 - 1e-6)}


class KFACMuon(KroneckerAlgorithm):
    """Muon in the metric of the input factors, with the given treatment of shared weights."""

    hyperparameters = KFACMuonHyperparameters
    needs_output_factors = False

    def layers(self, params: PyTree) -> tuple[Layer, ...]:
        return layers_with_metric(super().layers(params))

    def optimizer(
        self, layers: tuple[Layer, ...], h: Any, mesh: Mesh | None = None
    ) -> optax.GradientTransformationExtraArgs:
        return kfac_muon(
            layers,
            learning_rate=h.learning_rate,
            damping=h.damping,
            beta1=1 - h.one_minus_beta1,
            beta2=h.beta2,
            weight_decay=h.weight_decay,
            grad_clip=h.grad_clip,
            factor_decay=factor_decay(h),
            mesh=mesh,
        )
