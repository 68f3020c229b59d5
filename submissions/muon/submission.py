"""Muon with linear warm-up and linear decay; vectors have AdamW."""

import dataclasses
from typing import Any

import jax
import optax

from ..algoperf import schedule
from ..algoperf.averaging import Averaged, AveragingOptions
from ..algoperf.contract import Submission
from ..algoperf.first_order import FirstOrder, require_optax
from ..algoperf.hyperparameters import LinearDecay
from ..kfac.layers import find_layers

PyTree = Any

OLDEST_OPTAX = "0.2.7"  # the first whose Muon takes kernels of any shape and scales its updates as here

# Scales Muon's updates to the root mean square of AdamW's, so that one learning rate serves both.
# Source: Liu et al., "Muon is Scalable for LLM Training", 2025.
_CONSISTENT_RMS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonHyperparameters(AveragingOptions, LinearDecay):
    """Weight decay is decoupled; `beta2` is AdamW's."""

    weight_decay: float = 0.2
    schedule_fraction: float = 0.6
    one_minus_beta1: float = 0.05
    beta2: float = 0.999

    bounds = {"one_minus_beta1": (1e-6, 1), "beta2": (0, 1 - 1e-6)}


def _matrices(params: PyTree) -> PyTree:
    """Tree like `params`: which axes of a linear layer's kernel are the rows, and which the columns, of its matrix.

    None for other parameters, and for kernels of embeddings or with a side that is too wide for a factor.
    """
    layers = (layer for layer in find_layers(params) if not any(layer.are_diagonal))
    split = {(*layer.path, "kernel"): layer for layer in layers}

    def dimensions(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        layer = split.get(tuple(getattr(key, "key", str(key)) for key in path))
        if layer is None:
            return None
        axes = tuple(range(0 if layer.index is None else 1, leaf.ndim))  # without the axis that a scan stacks layers on
        return optax.contrib.MuonDimensionNumbers(axes[: -layer.n_output_axes], axes[-layer.n_output_axes :])

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _optimizer(h: Any, params: PyTree) -> optax.GradientTransformation:
    require_optax(OLDEST_OPTAX)
    return optax.contrib.muon(
        h.learning_rate,
        beta=1 - h.one_minus_beta1,
        adam_b1=1 - h.one_minus_beta1,
        adam_b2=h.beta2,
        weight_decay=h.weight_decay,
        adam_weight_decay=h.weight_decay,
        muon_weight_dimension_numbers=_matrices(params),
        consistent_rms=_CONSISTENT_RMS,
    )


_submission = Submission(Averaged(FirstOrder(MuonHyperparameters, _optimizer, schedule.polynomial)))

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
