"""Layer inputs and output gradients of a Flax model, without a change to the model: the only file that knows Flax.

`flax.linen.intercept_methods` reaches every Dense, DenseGeneral and Conv that a forward pass calls. Its input is read,
and a zero *perturbation* is added to its output, whose gradient is the layer's output gradient. One forward pass serves
any number of backward passes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers
from jax import Array

from .convolution import Convolution
from .devices import vary
from .layers import Layer

PyTree = Any
Forward = Callable[[PyTree], tuple[PyTree, PyTree]]  # params -> (outputs, auxiliary values)

_LINEAR = (nn.Dense, nn.DenseGeneral, nn.Conv)


class Captured(NamedTuple):
    """What one forward pass gave.

    Attributes:
        outputs: the model's outputs, an array or a tree of such.
        aux: the forward pass's auxiliary values.
        inputs: layer name -> its input at each use: `[lead, *sites, d_in]`, raw for a convolution.
        convolutions: layer name -> its geometry, for convolutions alone.
        pullback: cotangent of `outputs` -> (gradient like params, layer name -> output gradients at each use
            `[lead, *sites, d_out]`); may be called more than once.
        uncaptured: layer name -> why it was not captured.
    """

    outputs: Array
    aux: PyTree
    inputs: dict[str, list[Array]]
    convolutions: dict[str, Convolution]
    pullback: Callable[[PyTree], tuple[PyTree, dict[str, list[Array]]]]
    uncaptured: dict[str, str]


def capture(forward: Forward, params: PyTree, layers: Sequence[Layer], output_gradients: bool = True) -> Captured:
    """Run `forward(params)` once, capturing the inputs of `layers`, and prepare its backward passes.

    Without `output_gradients` the outputs are not perturbed, and the pullback gives the gradient like params alone.

    A layer is left out, with the reason, where it is not called, is called inside another transformation (`nn.remat`,
    `nn.scan`, `nn.jit`), whose values may not leave it, or is not of a form that K-FAC knows.
    """
    by_path = {layer.path: layer for layer in layers}
    plan = _Plan(by_path)
    if layers:  # a first pass, of shapes alone
        jax.eval_shape(lambda p: plan.run(forward, p, None)[0], params)
    names = {layer.name for layer in layers if plan.shapes.get(layer.name) and layer.name not in plan.uncaptured}
    uncaptured = {layer.name: "not called" for layer in layers if layer.name not in names} | plan.uncaptured
    plan = plan.restricted(names)
    perturbed_names = sorted(names) if output_gradients else []
    zeros = {name: [jnp.zeros(s.shape, s.dtype) for s in plan.shapes[name]] for name in perturbed_names}

    def perturbed(p: PyTree, perturbations: dict[str, list[Array]]) -> tuple[Array, tuple[PyTree, dict]]:
        (outputs, aux), inputs = plan.run(forward, p, perturbations)
        return outputs, (aux, inputs)

    outputs, vjp, (aux, inputs) = jax.vjp(perturbed, params, vary(zeros), has_aux=True)

    def pullback(cotangent: PyTree) -> tuple[PyTree, dict[str, list[Array]]]:
        gradient, at_outputs = vjp(jax.tree.map(_cast_like, cotangent, outputs))
        flat = {name: [_flatten(g, plan.n_output_axes[name]) for g in uses] for name, uses in at_outputs.items()}
        return gradient, flat

    return Captured(outputs, aux, inputs, plan.convolutions, pullback, uncaptured)


class _Plan:
    """What the interception found, and runs of it: a first one to learn shapes and reasons, a second to capture."""

    def __init__(self, by_path: Mapping[tuple[str, ...], Layer]):
        self.by_path = by_path
        self.shapes: dict[str, list[jax.ShapeDtypeStruct]] = {}
        self.convolutions: dict[str, Convolution] = {}
        self.n_output_axes = {layer.name: layer.n_output_axes for layer in by_path.values()}
        self.uncaptured: dict[str, str] = {}

    def restricted(self, names: set[str]) -> "_Plan":
        plan = _Plan({path: layer for path, layer in self.by_path.items() if layer.name in names})
        plan.shapes = {name: self.shapes[name] for name in names}
        return plan

    def run(self, forward: Forward, params: PyTree, perturbations: Mapping[str, list[Array]] | None):
        """`forward(params)` and the captured inputs; without perturbations it only learns."""
        inputs: dict[str, list[Array]] = {}
        here = tracers.current_trace()

        def interceptor(call, args, kwargs, context):
            module = context.module
            layer = self.by_path.get(tuple(module.path))
            if layer is None or context.method_name != "__call__" or not isinstance(module, _LINEAR):
                return call(*args, **kwargs)
            y = call(*args, **kwargs)
            if perturbations is None:
                self._learn(module, layer, args, y, tracers.current_trace() == here)
                return y
            uses = inputs.setdefault(layer.name, [])
            x = args[0]
            if isinstance(module, nn.Conv):
                self.convolutions[layer.name] = _geometry(module, x)
            else:
                x = _flatten(x, len(layer.kernel_shape) - layer.n_output_axes)
            uses.append(x)
            return y + perturbations[layer.name][len(uses) - 1] if layer.name in perturbations else y

        with nn.intercept_methods(interceptor):
            return forward(params), inputs

    def _learn(self, module: nn.Module, layer: Layer, args: Sequence[Array], y: Array, outermost: bool) -> None:
        reason = None if outermost else "called inside nn.remat, nn.scan or nn.jit"
        reason = reason or _unsupported(module, layer, args, y)
        if reason:
            self.uncaptured[layer.name] = reason
        self.shapes.setdefault(layer.name, []).append(jax.ShapeDtypeStruct(y.shape, y.dtype))


def _unsupported(module: nn.Module, layer: Layer, args: Sequence[Array], y: Array) -> str | None:
    """Why a call's form is not one that K-FAC knows; None if it is."""
    if len(args) != 1:
        return "not called with its input as the one positional argument"
    x = args[0]
    if isinstance(module, nn.Conv):
        if x.ndim != len(module.kernel_size) + 2:
            return "its input has not exactly one batch axis"
        if module.feature_group_count != 1 or module.mask is not None:
            return "a grouped or masked convolution"
        if _pair(module.input_dilation, x.ndim - 2) != (1,) * (x.ndim - 2):
            return "a convolution with input dilation"
        if isinstance(module.padding, str) and module.padding not in ("SAME", "VALID"):
            return f"a convolution with {module.padding} padding"
        return None
    if isinstance(module, nn.DenseGeneral):
        axes = _pair(module.axis, None)
        trailing = tuple(range(x.ndim - len(axes), x.ndim))
        if tuple(axis % x.ndim for axis in axes) != trailing or _pair(module.batch_dims, None):
            return "a DenseGeneral over other than its input's trailing axes"
    n_input_axes = len(layer.kernel_shape) - layer.n_output_axes
    if x.ndim <= n_input_axes or tuple(x.shape[-n_input_axes:]) != layer.kernel_shape[:n_input_axes]:
        return "its input does not fit its kernel, or has no batch axis"
    if tuple(y.shape[-layer.n_output_axes :]) != layer.kernel_shape[n_input_axes:]:
        return "its output does not fit its kernel"
    return None


def _geometry(module: nn.Conv, x: Array) -> Convolution:
    n = x.ndim - 2
    window, strides, dilation = tuple(module.kernel_size), _pair(module.strides, n), _pair(module.kernel_dilation, n)
    padding = module.padding
    if isinstance(padding, str):
        reach = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    elif isinstance(padding, int):
        padding = [(padding, padding)] * n
    padding = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)
    return Convolution(window, strides, padding, dilation)


def _cast_like(cotangent: Array, output: Array) -> Array:
    """Outputs that are whole numbers have cotangents of a type of their own."""
    return cotangent.astype(output.dtype) if jnp.issubdtype(output.dtype, jnp.inexact) else cotangent


def _pair(value: int | Sequence[int] | None, n: int | None) -> tuple[int, ...]:
    """A Flax argument that may be one number, several or None, as a tuple (of `n` where one number stands for all)."""
    if value is None:
        value = 1
    if isinstance(value, int):
        return (value,) * (1 if n is None else n)
    return tuple(value)


def _flatten(x: Array, n_axes: int) -> Array:
    """Merge the last `n_axes` axes."""
    return x.reshape(*x.shape[: x.ndim - n_axes], math.prod(x.shape[x.ndim - n_axes :]))
