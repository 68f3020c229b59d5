"""The damped inverse of a layer's Kronecker-factored curvature, and the update it gives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from .stacks import map_by_size

_HIGHEST = jax.lax.Precision.HIGHEST

# The ratio of the factors' mean eigenvalues sets how the damping is shared out; a factor near zero, as behind a
# zero-initialised head, would otherwise leave the other without any.
MAX_PI = 1e3


class Inverses(NamedTuple):
    """Damped inverses of one layer's factors.

    Attributes:
        inputs: `[n_rows, n_rows]`.
        outputs: `[d_out, d_out]`.
    """

    inputs: Array
    outputs: Array


def damping_ratio(inputs: Array, outputs: Array, max_pi: float = MAX_PI) -> Array:
    """π `[]` = sqrt(mean eigenvalue of A / mean eigenvalue of B), within [1 / max_pi, max_pi].

    Source: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", 2015, §6.3.
    """
    tiny = jnp.finfo(inputs.dtype).tiny
    mean_a, mean_b = (jnp.trace(factor) / factor.shape[0] for factor in (inputs, outputs))
    pi = jnp.sqrt(jnp.maximum(mean_a, tiny)) / jnp.sqrt(jnp.maximum(mean_b, tiny))
    return jnp.clip(pi, 1 / max_pi, max_pi)


def damped_inverses(
    factors: dict[str, tuple[Array, Array]],
    damping: Array,
    previous: dict[str, Inverses],
    is_informed: dict[str, Array],
    mesh: Mesh | None = None,
) -> tuple[dict[str, Inverses], Array]:
    """Inverses of A + π√λ I and B + √λ/π I for every layer, by Cholesky; and how many informed layers got none `[]`.

    Args:
        factors: layer name -> (A, B).
        damping: λ `[]`, above zero.
        previous: what a layer keeps where an inverse comes out non-finite, or the layer is not informed.
        is_informed: layer name -> whether its factors hold an estimate `[]`.
        mesh: devices, on one axis, to spread the inversions over; None leaves that to the compiler.
    """
    damped = {}
    for name, (inputs, outputs) in factors.items():
        pi, root = damping_ratio(inputs, outputs), jnp.sqrt(damping)
        damped[name, 0] = (inputs + pi * root * jnp.eye(len(inputs), dtype=inputs.dtype),)
        damped[name, 1] = (outputs + root / pi * jnp.eye(len(outputs), dtype=outputs.dtype),)
    inverse = map_by_size(_inverse, damped, mesh)
    result, n_failed = {}, jnp.zeros([], jnp.int32)
    for name in factors:
        pair = Inverses(inverse[name, 0], inverse[name, 1])
        is_finite = jnp.isfinite(pair.inputs).all() & jnp.isfinite(pair.outputs).all()
        is_good = is_informed[name] & is_finite
        result[name] = Inverses(*(jnp.where(is_good, new, old) for new, old in zip(pair, previous[name], strict=True)))
        n_failed += is_informed[name] & ~is_finite
    return result, n_failed


def precondition(gradient: Array, inverses: Inverses) -> Array:
    """A⁻¹ G B⁻¹ for a gradient `[n_rows, d_out]`."""
    return jnp.linalg.multi_dot([inverses.inputs, gradient, inverses.outputs], precision=_HIGHEST)


def _inverse(matrix: Array) -> Array:
    """Inverse of a symmetric positive definite matrix `[n, n]` by Cholesky; non-finite where it is none."""
    root = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    root_inverse = jax.lax.linalg.triangular_solve(root, eye, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(root, root_inverse, left_side=True, lower=True, transpose_a=True)


def no_inverses(n_rows: int, d_out: int, dtype: jnp.dtype = jnp.float32) -> Inverses:
    """Zeros, until a first inversion."""
    return Inverses(jnp.zeros((n_rows, n_rows), dtype), jnp.zeros((d_out, d_out), dtype))


def exists(inverses: Inverses) -> Array:
    """Whether there has been an inversion `[]`: the diagonal of a positive definite matrix is above zero."""
    return inverses.inputs[0, 0] > 0
