"""Shapes and types of a Flax parameter tree, as AlgoPerf passes them to submissions."""

from typing import Any

import jax

from workloads.spec import ParameterType, ShapeTuple

_ATTENTION = {
    "query": ParameterType.ATTENTION_Q,
    "key": ParameterType.ATTENTION_K,
    "value": ParameterType.ATTENTION_V,
    "out": ParameterType.ATTENTION_OUT,
}
_LAYER_NORM = {"scale": ParameterType.LAYER_NORM_SCALE, "bias": ParameterType.LAYER_NORM_BIAS}
_BATCH_NORM = {"scale": ParameterType.BATCH_NORM_SCALE, "bias": ParameterType.BATCH_NORM_BIAS}


def param_shapes(params: Any) -> Any:
    """Tree of arrays -> tree of `ShapeTuple`."""
    return jax.tree.map(lambda leaf: ShapeTuple(tuple(leaf.shape)), params)


def param_types(params: Any) -> Any:
    """Tree of arrays -> tree of `ParameterType`, by the names Flax gives modules and parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _type(*(key.key.lower() for key in path)), params)


def _type(*path: str) -> ParameterType:
    *modules, name = path
    module = modules[-1] if modules else ""
    if "batchnorm" in module:
        return _BATCH_NORM[name]
    if "layernorm" in module or "layer_norm" in module:
        return _LAYER_NORM[name]
    if any("attention" in parent for parent in modules):
        return ParameterType.ATTENTION_BIAS if name == "bias" else _ATTENTION.get(module, ParameterType.WEIGHT)
    if "bias" in name:
        return ParameterType.BIAS
    if "conv" in module:
        return ParameterType.CONV_WEIGHT
    if "embedding" in module:
        return ParameterType.EMBEDDING
    return ParameterType.WEIGHT
