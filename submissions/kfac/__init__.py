"""K-FAC-expand and K-FAC-reduce for any Flax model, as an optax gradient transformation."""

from .adaptive import Scaling, bases_by_layer, eigenbasis_adam
from .eigenbasis import Refresh
from .estimate import Estimate, estimate
from .fisher import Fisher, Geometry, LossKind, probe
from .layers import Layer, describe, find_layers
from .sharing import Layout, Sharing, batch_layout, graph_layout
from .transform import Momentum, WeightDecay, kfac

__all__ = [
    "Estimate",
    "Fisher",
    "Geometry",
    "Layer",
    "Layout",
    "LossKind",
    "Momentum",
    "Refresh",
    "Scaling",
    "Sharing",
    "WeightDecay",
    "bases_by_layer",
    "batch_layout",
    "describe",
    "eigenbasis_adam",
    "estimate",
    "find_layers",
    "graph_layout",
    "kfac",
    "probe",
]
