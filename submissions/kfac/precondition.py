"""The damped inverse of a layer's Kronecker-factored curvature, and the updates it gives.

Axes: layers of one shape are stacked, gradients `[n_layers, n_rows, d_out]`, A `[n_layers, n_rows, n_rows]` and B
`[n_layers, d_out, d_out]`; a diagonal factor is `[n_layers, n, 1]`. For example, the four projections of an attention
layer of width 64, with biases, have gradients `[4, 65, 64]`, A `[4, 65, 65]` and B `[4, 64, 64]`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from . import trust_region
from .groups import Parts, per_layer
from .layers import is_diagonal
from .stacks import map_by_size, matmul_float32, one_by_one

# π, the root of the ratio of the factors' mean eigenvalues, divides the damping between A and B. If B is nearly zero,
# as before a head that is initialised to zero, π would be huge and B would have no damping; so π is clipped. A choice.
MAX_PI = 1e3


class Inverses(NamedTuple):
    """Damped inverses of the factors of one layer, or with a leading axis of several.

    Attributes:
        inputs: `[..., n_rows, n_rows]`; of a diagonal factor `[..., n_rows, 1]`.
        outputs: `[..., d_out, d_out]`; of a diagonal factor `[..., d_out, 1]`.
    """

    inputs: Array
    outputs: Array


def damping_ratio(inputs: Array, outputs: Array) -> Array:
    """π `[...]` = sqrt(mean eigenvalue of A / mean eigenvalue of B), within [1 / MAX_PI, MAX_PI].

    Source: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", 2015, §6.3.
    """
    tiny = jnp.finfo(inputs.dtype).tiny
    mean_a, mean_b = (_trace(f) / f.shape[-2] for f in (inputs, outputs))
    pi = jnp.sqrt(jnp.maximum(mean_a, tiny)) / jnp.sqrt(jnp.maximum(mean_b, tiny))
    return jnp.clip(pi, 1 / MAX_PI, MAX_PI)


def damped_inverses(
    factors: Mapping[str, tuple[Array, Array]],
    damping: Array,
    previous: Mapping[str, Inverses],
    has_estimates: Mapping[str, Array],
    mesh: Mesh | None = None,
) -> tuple[dict[str, Inverses], Array]:
    """Inverses of A + π√λ I and B + √λ/π I for every layer, by Cholesky; and how many are not finite `[]`.

    Layers without estimates do not count.

    Args:
        factors: group name -> (A `[n_layers, n_rows, n_rows]`, B `[n_layers, d_out, d_out]`), or diagonals.
        damping: λ `[]`, above zero.
        previous: group name -> the inverses that a layer keeps if it has no estimate yet, or if its new inverses are
            not finite.
        has_estimates: group name -> whether a layer's factors hold an estimate `[n_layers]`.
        mesh: one-dimensional, of the devices that share the inversions; None leaves that to the compiler.
    """
    damped: dict[tuple[str, int], tuple[Array]] = {}
    inverse: dict[tuple[str, int], Array] = {}
    for name, pair in factors.items():
        pi, root = per_layer(damping_ratio(*pair)), jnp.sqrt(damping)
        for side, (factor, amount) in enumerate(zip(pair, (pi * root, root / pi), strict=True)):
            if is_diagonal(factor.shape):
                inverse[name, side] = 1 / (factor + amount)
            else:
                damped[name, side] = (factor + amount * jnp.eye(factor.shape[-1], dtype=factor.dtype),)
    inverse |= map_by_size(one_by_one(_inverse), damped, mesh)
    result, n_failed = {}, jnp.zeros([], jnp.int32)
    for name in factors:
        pair = Inverses(inverse[name, 0], inverse[name, 1])
        is_finite = jnp.stack([jnp.isfinite(side).all((1, 2)) for side in pair]).all(0)
        is_good = per_layer(has_estimates[name] & is_finite)
        result[name] = Inverses(*(jnp.where(is_good, new, old) for new, old in zip(pair, previous[name], strict=True)))
        n_failed += (has_estimates[name] & ~is_finite).sum(dtype=jnp.int32)
    return result, n_failed


def scale_to_unit_mean_eigenvalue(factors: Mapping[str, tuple[Array, Array]]) -> dict[str, tuple[Array, Array]]:
    """The factors divided by their mean eigenvalues; zeros stay zeros."""

    def scaled(factor: Array) -> Array:
        mean = per_layer(_trace(factor) / factor.shape[-2])
        return factor / jnp.maximum(mean, jnp.finfo(factor.dtype).tiny)

    return {name: (scaled(a), scaled(b)) for name, (a, b) in factors.items()}


def precondition(gradient: Array, inverses: Inverses) -> Array:
    """A⁻¹ G B⁻¹ for gradients `[..., n_rows, d_out]`."""
    a, b = inverses
    right = gradient * b.mT if is_diagonal(b.shape) else matmul_float32(gradient, b)
    return a * right if is_diagonal(a.shape) else matmul_float32(a, right)


def bounded_or_fallback(
    steps: Mapping[str, Array],
    gradients: Parts,
    has_curvature: Mapping[str, Array],
    fallback: Parts,
    kl_clip: Array | None,
) -> Parts:
    """The preconditioned steps, bounded together; the fallback for all other parameters and layers.

    Args:
        steps: group name -> preconditioned gradients `[n_layers, n_rows, d_out]`; a layer whose step is not finite,
            or with layerwise lengths is zero, has the fallback.
        gradients: what they were made of.
        has_curvature: group name -> whether a layer was preconditioned `[n_layers]`.
        kl_clip: bound on uᵀFu, see `trust_region.kl_clip`; None scales each step to one root mean square instead.
    """
    if kl_clip is None:
        scaled = {n: trust_region.scale_to_rms(trust_region.scale_to_unit_max(step)) for n, step in steps.items()}
        steps = {name: step for name, (step, _) in scaled.items()}
        is_ready = {name: per_layer(has_curvature[name] & has_length) for name, (_, has_length) in scaled.items()}
    else:
        is_finite = {name: jnp.isfinite(step).all((1, 2)) for name, step in steps.items()}
        is_ready = {name: per_layer(has_curvature[name] & is_finite[name]) for name in steps}
        steps = {name: jnp.where(is_ready[name], step, 0) for name, step in steps.items()}
        exact = functools.partial(jnp.vdot, precision=jax.lax.Precision.HIGHEST)
        inner_product = sum((exact(step, gradients.matrices[n]) for n, step in steps.items()), jnp.zeros([]))
        clip = trust_region.kl_clip(inner_product, kl_clip)
        steps = {name: clip * step for name, step in steps.items()}
    return fallback._replace(
        matrices={name: jnp.where(is_ready[name], step, fallback.matrices[name]) for name, step in steps.items()}
    )


def _trace(factor: Array) -> Array:
    return factor.sum((-2, -1)) if is_diagonal(factor.shape) else jnp.trace(factor, axis1=-2, axis2=-1)


def _inverse(matrix: Array) -> Array:
    """Inverse of a symmetric positive definite matrix `[n, n]` by Cholesky; non-finite where it is none."""
    root = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    root_inverse = jax.lax.linalg.triangular_solve(root, eye, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(root, root_inverse, left_side=True, lower=True, transpose_a=True)


def init_inverses(input_shape: Sequence[int], output_shape: Sequence[int], dtype: Any = jnp.float32) -> Inverses:
    """Zeros in the factors' shapes, until a first inversion."""
    return Inverses(*(jnp.zeros(shape, dtype) for shape in (input_shape, output_shape)))


def has_inverse(inverses: Inverses) -> Array:
    """Whether there has been an inversion `[...]`: the diagonal of a positive definite matrix is above zero."""
    return inverses.inputs[..., 0, 0] > 0
