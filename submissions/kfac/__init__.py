"""Kronecker factors of Flax Linen, NNX and plain JAX models, and optimisers that use them.

The optimisers are `kfac`, `kfac_muon` and `eigenbasis_adam`, all optax transformations.
"""

from .adaptive import eigenbasis_adam
from .coverage import CurvatureWarning, describe
from .discovery import trace_layers
from .estimate import Estimate, estimate
from .fisher import Fisher, Geometry, LossKind, probe
from .layers import Layer, find_layers
from .muon import kfac_muon, layers_with_metric
from .refreshing import refresh_curvature
from .sharing import Layout, Sharing, batch_layout, graph_layout, row_layout
from .transform import Length, Momentum, WeightDecay, kfac

__all__ = [
    "CurvatureWarning",
    "Estimate",
    "Fisher",
    "Geometry",
    "Layer",
    "Layout",
    "Length",
    "LossKind",
    "Momentum",
    "Sharing",
    "WeightDecay",
    "batch_layout",
    "describe",
    "eigenbasis_adam",
    "estimate",
    "find_layers",
    "graph_layout",
    "kfac",
    "kfac_muon",
    "layers_with_metric",
    "probe",
    "refresh_curvature",
    "row_layout",
    "trace_layers",
]
