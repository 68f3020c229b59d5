"""The output side of the Fisher: the loss's geometry, pseudo-targets drawn from the model, the root of its Hessian.

Axes: outputs `[examples, *positions, n_outputs]`, and the Hessian H of each position `[n_outputs, n_outputs]`. For
example, a language model's logits are `[8, 128, 1000]`: 1,024 positions with one pseudo-target each, and a root of H
with 128 · 1,000 columns for each of the 8 examples.

For softmax, sigmoid and square losses the Fisher equals the generalised Gauss-Newton matrix, whose output part H is the
Hessian of the loss with respect to the model's outputs (logits). An absolute loss has no Hessian; its Fisher is that of
a Laplace distribution around the output. Functions here return *cotangents*: gradients of a summed pseudo-loss with
respect to the outputs, of the outputs' shape `[examples, *positions, n_outputs]`.
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

_N_DIRECTIONS = 4  # random vectors that Hessians are compared by. A choice.
_N_HALVINGS = 26  # of an interval of 2e4 around the target, down to 3e-4. A choice.


class Fisher(enum.Enum):
    """Where the output gradients of the factors come from."""

    SAMPLED = "sampled"  # pseudo-targets drawn from the model's own output, one per position
    # The output Hessian's root, one backward pass per column: for tests and small outputs. All examples share a pass,
    # so it is exact only if no example's outputs depend on another example, as they do with BatchNorm.
    EXACT = "exact"
    EMPIRICAL = "empirical"  # the gradients of the training loss itself; not an estimate of the Fisher


class LossKind(enum.Enum):
    SOFTMAX = "softmax"  # H = diag(p) - p pᵀ
    SIGMOID = "sigmoid"  # H = diag(σ (1 - σ))
    SQUARE = "square"  # H = scale · I
    ABSOLUTE = "absolute"  # Fisher of a Laplace distribution: scale · I; the Hessian itself is zero


class Geometry(NamedTuple):
    """The Fisher of one position's loss for its outputs.

    Attributes:
        scale: for SQUARE the second derivative (1 for ½‖·‖², 2 for ‖·‖²); for ABSOLUTE the square of the slope (1 for
            ‖·‖₁).
    """

    kind: LossKind
    scale: float = 1.0


def probe(position_loss: Callable[[Array], Array], n_outputs: int) -> Geometry:
    """Find a loss's geometry from its derivatives at fixed points, rather than trust a label.

    The Hessian is compared with the known forms by its products with random vectors, at two points. It is never built,
    so that a vocabulary's 50,000 outputs cost a few vectors of that length.

    Args:
        position_loss: outputs of one position `[n_outputs]` -> its loss `[]`, for any one valid target.
        n_outputs: number of outputs.

    Raises:
        ValueError: the loss does not return one number, or its derivatives are those of none of the known losses.
    """
    # Of different size: a sigmoid loss is even in one output, and near zero its Hessian is nearly constant.
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2, n_outputs)).astype(np.float32) * np.array([[1], [10]], np.float32)
    directions = rng.normal(size=(_N_DIRECTIONS, n_outputs)).astype(np.float32)
    shape = jax.eval_shape(position_loss, jax.ShapeDtypeStruct((n_outputs,), jnp.float32)).shape
    if shape:
        raise ValueError(f"the loss of one position must be one number; it has the shape {shape}")
    gradient = jax.grad(position_loss)
    at_points = _hessian_products(gradient, points, directions)
    with jax.ensure_compile_time_eval():
        slope = None if at_points.any() else _slope(jax.jit(gradient), points)

    scale = float(at_points[0, 0, 0] / directions[0, 0])
    if scale > 0 and _matches(at_points, directions, np.full_like(points, scale)):
        return Geometry(LossKind.SQUARE, scale)
    if slope is not None:
        return Geometry(LossKind.ABSOLUTE, slope**2)
    p = 1 / (1 + np.exp(-points.astype(np.float64)))
    if _matches(at_points, directions, p * (1 - p)):
        return Geometry(LossKind.SIGMOID)
    p = np.exp(points - points.max(1, keepdims=True), dtype=np.float64)
    p /= p.sum(1, keepdims=True)
    if n_outputs > 1 and _matches(at_points, directions, p, means=directions @ p.T):
        return Geometry(LossKind.SOFTMAX)
    raise ValueError(
        "the loss's Hessian with respect to the outputs is not that of a softmax, sigmoid, square or absolute loss; "
        "use the empirical Fisher (fisher=Fisher.EMPIRICAL) for this loss"
    )


def _hessian_products(gradient: Callable[[Array], Array], points: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """H v at every point for every direction `[n_points, n_directions, n_outputs]` float64."""

    def product(point: Array, direction: Array) -> Array:
        result: Array = jax.jvp(gradient, (point,), (direction,))[1]
        return result

    over_directions = jax.vmap(product, in_axes=(None, 0))
    over_points = jax.vmap(over_directions, in_axes=(0, None))
    compiled = jax.jit(over_points).lower(points, directions).compile()  # even while another function is traced
    return np.asarray(compiled(points, directions), np.float64)


def _matches(
    products: np.ndarray, directions: np.ndarray, diagonals: np.ndarray, means: np.ndarray | None = None
) -> bool:
    """Whether the products are those of H = diag(d), or with means m = dᵀv of H = diag(d) - d dᵀ.

    Args:
        products: `[n_points, n_directions, n_outputs]`.
        directions: v `[n_directions, n_outputs]`.
        diagonals: d `[n_points, n_outputs]`.
        means: m `[n_directions, n_points]`.
    """
    d, m = diagonals[:, None], 0 if means is None else means.T[:, :, None]
    expected = d * (directions - m)
    # Rounding is relative to the terms of a difference; where a sigmoid is near 1, its loss may subtract it from 1.
    floor = 1e-5 * d.max() if means is None else 1e-6 * d.max(2, keepdims=True)
    tolerance = 1e-3 * d * (np.abs(directions) + np.abs(m)) + floor
    return bool((np.abs(products - expected) <= tolerance).all())


def _slope(gradient: Callable[[Array], Array], points: np.ndarray) -> float | None:
    """The slope c of a loss c ‖z - t‖₁; None for another loss.

    A search by halves for t, all outputs at once: the gradient must be ±c everywhere on the way, which ends close
    enough to t to tell a kink from the bend of a Huber loss.
    """
    low, high = -1e4 - np.abs(points[0]), 1e4 + np.abs(points[1])
    slope = float(gradient(high)[0])
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        at_ends, at_middle = np.stack([-gradient(low), gradient(high)]), np.asarray(gradient(middle))
        if slope <= 0 or not np.allclose([*at_ends, np.abs(at_middle)], slope, rtol=1e-3, atol=0):
            return None
        low, high = np.where(at_middle < 0, middle, low), np.where(at_middle < 0, high, middle)
    return slope


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
    elif geometry.kind is LossKind.ABSOLUTE:  # the sign of a Laplace variable around the output
        gradient = math.sqrt(geometry.scale) * jax.random.rademacher(key, outputs.shape, outputs.dtype)
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
