"""The output side of the Fisher: the loss's geometry, pseudo-targets drawn from the model, the root of its Hessian.

For the losses here the Fisher equals the generalised Gauss-Newton matrix, whose output part is the Hessian of the loss
for the model's outputs (logits). Everything is a *cotangent*: the gradient of a summed pseudo-loss for the outputs,
of the outputs' shape `[examples, *positions, n_outputs]`.
"""

import enum
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .layers import at_least_float32


class Fisher(enum.Enum):
    """Where the output gradients of the factors come from."""

    SAMPLED = "sampled"  # pseudo-targets drawn from the model's own output, one a position
    EXACT = "exact"  # the output Hessian's root, one backward pass a column: for tests and small outputs
    EMPIRICAL = "empirical"  # the gradients of the training loss itself; not an estimate of the Fisher


class LossKind(enum.Enum):
    SOFTMAX = "softmax"  # H = diag(p) - p pᵀ
    SIGMOID = "sigmoid"  # H = diag(σ (1 - σ))
    SQUARE = "square"  # H = scale · I


class Geometry(NamedTuple):
    """The Hessian of one position's loss for its outputs; `scale` is for SQUARE (1 for ½‖·‖², 2 for ‖·‖²)."""

    kind: LossKind
    scale: float = 1.0


def probe(position_loss: Callable[[Array], Array], n_outputs: int) -> Geometry:
    """Find a loss's geometry from its Hessian at two fixed points, rather than trust a label.

    Args:
        position_loss: outputs of one position `[n_outputs]` -> its loss `[]`, for any one valid target.
        n_outputs: number of outputs.

    Raises:
        ValueError: the Hessian is that of none of the known losses.
    """
    # Of different size: a sigmoid loss is even in one output, and near zero its Hessian is nearly constant.
    points = np.random.default_rng(0).normal(size=(2, n_outputs)).astype(np.float32) * np.float32([[1], [10]])
    with jax.ensure_compile_time_eval():
        hessian = jax.jit(jax.hessian(position_loss))
        found = [np.asarray(hessian(jnp.asarray(point)), np.float64) for point in points]

    def matches(expected: list[np.ndarray]) -> bool:
        return all(np.allclose(h, e, rtol=1e-3, atol=1e-5) for h, e in zip(found, expected, strict=True))

    scale = float(found[0][0, 0])
    sigmoid = 1 / (1 + np.exp(-points.astype(np.float64)))
    softmax = np.exp(points) / np.exp(points).sum(1, keepdims=True)
    if scale > 0 and matches([scale * np.eye(n_outputs)] * 2):
        return Geometry(LossKind.SQUARE, scale)
    if matches([np.diag(p * (1 - p)) for p in sigmoid]):
        return Geometry(LossKind.SIGMOID)
    if n_outputs > 1 and matches([np.diag(p) - np.outer(p, p) for p in softmax]):
        return Geometry(LossKind.SOFTMAX)
    raise ValueError(
        "the loss's Hessian for the outputs is not that of a softmax, sigmoid or square loss; "
        "use the empirical Fisher (fisher='empirical') for this loss"
    )


def sample_cotangent(geometry: Geometry, outputs: Array, weights: Array | None, key: Array) -> Array:
    """Gradient of the summed loss against pseudo-targets drawn from the model's own output.

    Its covariance over draws is the output Hessian, position by position.

    Args:
        outputs: `[examples, *positions, n_outputs]`.
        weights: loss weights, of the shape of `outputs` or of its leading axes; None for 1 everywhere.
        key: random key.
    """
    outputs = at_least_float32(outputs)
    if geometry.kind is LossKind.SOFTMAX:
        drawn = jax.random.categorical(key, outputs)
        gradient = jax.nn.softmax(outputs) - jax.nn.one_hot(drawn, outputs.shape[-1], dtype=outputs.dtype)
    elif geometry.kind is LossKind.SIGMOID:
        p = jax.nn.sigmoid(outputs)
        gradient = p - jax.random.bernoulli(key, p).astype(outputs.dtype)
    else:
        gradient = math.sqrt(geometry.scale) * jax.random.normal(key, outputs.shape, outputs.dtype)
    return _weighted(gradient, weights)


def n_root_columns(outputs: Array) -> int:
    """Columns of the root of one example's output Hessian: one for each position and output."""
    return math.prod(outputs.shape[1:])


def root_column(geometry: Geometry, outputs: Array, weights: Array | None, column: Array) -> Array:
    """One column of the root S of every example's output Hessian (S Sᵀ = H), as a cotangent.

    Args:
        outputs, weights: as for `sample_cotangent`.
        column: index `[]` below `n_root_columns(outputs)`; may be traced.
    """
    outputs = at_least_float32(outputs)
    n_outputs = outputs.shape[-1]
    unit = jax.nn.one_hot(column, n_root_columns(outputs), dtype=outputs.dtype).reshape(1, *outputs.shape[1:])
    at_position = unit.sum(-1, keepdims=True)
    if geometry.kind is LossKind.SOFTMAX:
        p = jax.nn.softmax(outputs)
        root_p = jnp.sqrt(p[..., column % n_outputs])[..., None]
        gradient = root_p * (unit - p * at_position)
    elif geometry.kind is LossKind.SIGMOID:
        p = jax.nn.sigmoid(outputs)
        gradient = jnp.sqrt(p * (1 - p)) * unit
    else:
        gradient = math.sqrt(geometry.scale) * jnp.broadcast_to(unit, outputs.shape)
    return _weighted(gradient, weights)


def _weighted(gradient: Array, weights: Array | None) -> Array:
    """A weight w multiplies the Hessian, so its square root multiplies the gradient."""
    if weights is None:
        return gradient
    root = jnp.sqrt(weights.astype(gradient.dtype))
    return gradient * root.reshape(*root.shape, *[1] * (gradient.ndim - root.ndim))
