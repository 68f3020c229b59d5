"""Inverse roots and polar factors of stacks of matrices, by matrix products where the device is quick at them.

Odd polynomials p(x) = a x + b x³ + c x⁵, applied one after another, bring the singular values of a matrix X to one.
They take matrix products alone: p(X) = (a I + b X Xᵀ + c (X Xᵀ)²) X.

Axes: layers of one shape are stacked, `[n_layers, n, m]`. For example, the gradients of two layers of 64 inputs, a bias
and 10 outputs are `[2, 65, 10]`, as are their polar factors, and their input factors' inverse roots are `[2, 65, 65]`.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from .layers import is_diagonal
from .stacks import in_turn, map_by_size, matmul_float32

# (a, b, c) of the best polynomials one after another, for singular values in [1e-3, 1].
# Source: Amsel et al., "The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon Algorithm",
# 2025.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)

# The first ones only lift values near 1e-3. Those of A^½ are about 1e-3^½ at least, so its root needs the others alone.
_N_FOR_SMALLEST = 2

# Polynomials of a polar factor. Five leave singular values in [0.85, 1.13], as near to one as a direction needs.
# A choice; Muon's published version takes five steps, too.
_N_POLAR = 5

# The polynomials are fitted to singular values up to one, and diverge above. Rounding can make slightly larger ones, so
# each is rescaled to hold up to this. Source: Amsel et al., as above.
_ROOM = 1.01


def polar_factor(matrices: Array) -> Array:
    """P Qᵀ of the singular value decompositions P S Qᵀ of matrices `[..., n, m]`, approximately.

    Of float32 matrices in bfloat16 on accelerators that multiply it faster, unless JAX is set to float32 products.
    Singular values above 1e-3 of the Frobenius norm come to within 0.15 of one, smaller ones to less. Zeros give zeros.
    No square of an entry may overflow.
    """

    def in_bfloat16(x: Array) -> Array:
        return polar_by_products(x.astype(jnp.bfloat16)).astype(x.dtype)

    size = jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True)
    x = matrices / jnp.where(size > 0, size, 1)
    elsewhere = in_bfloat16 if x.dtype == jnp.float32 and _is_bfloat16_faster() else polar_by_products
    factors: Array = jax.lax.platform_dependent(x, cpu=polar_by_products, default=elsewhere)
    return factors


def _is_bfloat16_faster() -> bool:
    """Whether polar factors may be in bfloat16.

    Not where JAX is set to float32 products, nor on NVIDIA GPUs before compute capability 8: they have no units for it.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX adds it at run time
    if precision in ("float32", "highest"):
        return False
    capabilities = [getattr(device, "compute_capability", "") for device in jax.devices()]
    return all(float(number) >= 8 for number in capabilities if number[:1].isdigit())  # of other GPUs a name


def polar_by_products(x: Array) -> Array:
    """`polar_factor` of matrices whose singular values are at most one, in their own precision."""
    is_wide = x.shape[-2] <= x.shape[-1]
    eye = jnp.eye(min(x.shape[-2:]), dtype=x.dtype)
    for a, b, c in _polynomials(_N_POLAR):
        gram = jnp.einsum("...im,...jm->...ij" if is_wide else "...mi,...mj->...ij", x, x)
        polynomial = a * eye + b * gram + c * (gram @ gram)  # a I joins the other terms in one kernel
        x = polynomial @ x if is_wide else x @ polynomial
    return x


def _polynomials(n: int) -> list[tuple[float, float, float]]:
    """The first `n`, all but the last with room for rounding."""
    first = [(a / _ROOM, b / _ROOM**3, c / _ROOM**5) for a, b, c in _POLAR_EXPRESS[: n - 1]]
    return [*first, _POLAR_EXPRESS[n - 1]]


def damped_inverse_roots(
    factors: Mapping[str, Array], damping: Array, power: float, mesh: Mesh | None = None
) -> dict[str, Array]:
    """(A / ā + λ I)^-power for every factor A, ā its mean eigenvalue; not finite where A is zero or not finite.

    Args:
        factors: group name -> A `[n_layers, n, n]`, or diagonals `[n_layers, n, 1]`.
        damping: λ `[]`, above zero.
        power: ½ or ¼.
        mesh: one-dimensional, of the devices that share the work; None leaves that to the compiler.
    """
    roots, damped = {}, {}
    for name, factor in factors.items():
        if is_diagonal(factor.shape):
            roots[name] = (factor / factor.mean(1, keepdims=True) + damping) ** -power
        else:
            mean = jnp.trace(factor, axis1=1, axis2=2)[:, None, None] / factor.shape[-1]
            damped[name] = (factor / mean + damping * jnp.eye(factor.shape[-1], dtype=factor.dtype),)
    return roots | map_by_size(functools.partial(inverse_root, power=power), damped, mesh)


def inverse_root(matrices: Array, power: float) -> Array:
    """A^-power, of power ½ or ¼, of symmetric positive definite matrices `[k, n, n]`; by the device's quickest way.

    On an H100 a refresh by products takes less than a third of the time that is estimated for the eigendecompositions
    alone: see docs/kfac_muon.md.
    """
    roots: Array = jax.lax.platform_dependent(
        matrices,
        cpu=functools.partial(in_turn, lambda matrix: root_by_eigenvectors(matrix, power)),
        default=lambda stack: root_by_products(stack, power),
    )
    return roots


def root_by_eigenvectors(matrix: Array, power: float) -> Array:
    """A^-power of one matrix `[n, n]`. Eigenvalues below eps times the largest are replaced by that bound."""
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    least = jnp.finfo(matrix.dtype).eps * eigenvalues[-1]
    return matmul_float32(vectors * jnp.maximum(eigenvalues, least) ** -power, vectors.T)


def root_by_products(matrices: Array, power: float) -> Array:
    """A^-½ or A^-¼ of matrices `[..., n, n]`; the latter as the inverse square root of A^½.

    In float32 the eigenvalues of Z A^(2 power) Z, of the result Z, are within 0.03 of one for condition numbers up to
    1e4.
    """
    polynomials = _polynomials(len(_POLAR_EXPRESS))
    square_root, inverse = _square_roots(matrices, polynomials)
    return inverse if power == 0.5 else _square_roots(square_root, polynomials[_N_FOR_SMALLEST:])[1]


def _square_roots(matrices: Array, polynomials: Sequence[tuple[float, float, float]]) -> tuple[Array, Array]:
    """A^½ and A^-½ by the iteration Y <- Y p(Z Y), Z <- p(Z Y) Z with polynomials p: the eigenvalues of Z Y go to one.

    Source: Higham, "Functions of Matrices", 2008, chapter 6, for the coupled iteration.
    """
    size = jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True)
    eye = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)

    def polynomial(coefficients: Array | tuple[float, float, float], t: Array) -> Array:
        a, b, c = coefficients
        t = (t + t.mT) / 2
        return a * eye + b * t + c * matmul_float32(t, t)

    def both(pair: tuple[Array, Array], coefficients: Array) -> tuple[tuple[Array, Array], None]:
        y, z = pair
        step = polynomial(coefficients, matmul_float32(z, y))
        return (matmul_float32(y, step), matmul_float32(step, z)), None

    y = matrices / size
    step = polynomial(polynomials[0], y)  # the first one: Z = I
    rest = jnp.asarray(polynomials[1:], matrices.dtype)
    (y, z), _ = jax.lax.scan(both, (matmul_float32(y, step), step), rest)  # a loop compiles them once
    return y * jnp.sqrt(size), z / jnp.sqrt(size)
