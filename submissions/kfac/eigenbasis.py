"""The eigenbases of a layer's Kronecker factors, and their cheap refresh.

Axes: layers of one shape are stacked, gradients G `[n_layers, n_rows, d_out]`, bases Q_A `[n_layers, n_rows, n_rows]`
and Q_B `[n_layers, d_out, d_out]`, one vector a column. For example, two layers of 64 inputs, a bias and 10 outputs
have G `[2, 65, 10]`, Q_A `[2, 65, 65]` and Q_B `[2, 10, 10]`.

In the eigenbases Q_A, Q_B of its factors a layer's gradient G is Q_Aᵀ G Q_B, and the curvature nearly diagonal. A basis
is refreshed by a rotation R, Q <- Q R, found from M = Qᵀ A Q, which is nearly diagonal. There are two ways:
    eigendecomposition: R holds M's eigenvectors.
    power iteration: R is the orthogonal factor of M's QR decomposition. As A Q = Q M, this is one step of power
        iteration on all eigenvectors at once. It takes half to two thirds of the time on a CPU and two fifths on an
        H100 (n = 1,537). The off-diagonal part that it leaves has about 1e-2 of the factor's norm (2e-2 before),
        after an eigendecomposition a few 1e-6. SOAP is published with it.
Both keep the basis of a factor that did not change, up to the order of its vectors, and also the null space of a
rank-deficient factor. A side that is too wide for a whole factor has a diagonal one and keeps its own axes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from .groups import per_layer
from .layers import is_diagonal
from .stacks import map_by_size, matmul_float32, one_by_one

PyTree = Any


# Off-diagonal entries below this multiple of float32's epsilon times M's largest diagonal entry are rounding errors.
# They are set to zero, as they would rotate the directions of zero eigenvalue at random. A choice.
_NOISE = 8.0

# Added to M, in units of its largest diagonal entry: power iteration leaves eigenvalues below this as they lie.
# A choice.
_FLOOR = 1e-5

# The largest squared norm of a row of E = QᵀQ - I that is accepted. A Newton-Schulz step leaves about 3/4 E² of the
# error E. A choice: after the step the basis is orthogonal to 1e-5.
_NEARLY_ORTHOGONAL = 1e-5


class Bases(NamedTuple):
    """Orthogonal bases of the factors of one layer, or with a leading axis of several, one vector a column.

    Attributes:
        inputs: Q_A `[..., n_rows, n_rows]`; None for the side's own axes.
        outputs: Q_B `[..., d_out, d_out]`; None for the side's own axes.
    """

    inputs: Array | None
    outputs: Array | None


def identity(input_shape: Sequence[int], output_shape: Sequence[int], dtype: Any = jnp.float32) -> Bases:
    """Before a first refresh of factors of these shapes: the parameters' own axes."""

    def own_axes(shape: Sequence[int]) -> Array | None:
        return None if is_diagonal(shape) else jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)

    return Bases(own_axes(input_shape), own_axes(output_shape))


def refresh(
    factors: Mapping[str, tuple[Array, Array]],
    bases: Mapping[str, Bases],
    is_full: Array | None = None,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Bases], dict[str, Bases], dict[str, Array]]:
    """New bases for every layer, orthogonal to 1e-5.

    If a factor is not finite, its basis stays. If it is zero, the basis stays up to the order of its columns.

    Args:
        factors: group name -> (A `[n_layers, n_rows, n_rows]`, B `[n_layers, d_out, d_out]`), or diagonals.
        bases: group name -> the bases so far.
        is_full: `[]` bool, True for eigendecompositions, False for one step of power iteration; None means True.
        mesh: one-dimensional, of the devices that share the work.

    Returns:
        Three dicts by group name: the new bases; the squared overlaps (Q_oldᵀ Q_new)², elementwise, of both sides; and
        `[n_layers]` whether both factors of a layer gave an orthogonal basis. A factor that gave none keeps its basis.
    """
    sides = {
        (name, i): (factors[name][i], basis)
        for name in factors
        for i, basis in enumerate(bases[name])
        if basis is not None
    }

    def refreshed(rotation: Callable[[Array], Array]) -> PyTree:
        return map_by_size(functools.partial(_refreshed, one_by_one(rotation)), sides, mesh)

    if is_full is None:
        done = refreshed(eigenvectors)
    else:
        done = jax.lax.cond(is_full, lambda: refreshed(eigenvectors), lambda: refreshed(power_iteration))
    pairs = {name: [done.get((name, i), (None, None, True)) for i in (0, 1)] for name in factors}
    return (
        {name: Bases(*(side[0] for side in pair)) for name, pair in pairs.items()},
        {name: Bases(*(side[1] for side in pair)) for name, pair in pairs.items()},
        {name: pair[0][2] & pair[1][2] for name, pair in pairs.items()},
    )


def rotate(matrix: Array, bases: Bases) -> Array:
    """Q_Aᵀ G Q_B of matrices `[..., n_rows, d_out]`."""
    if bases.outputs is not None:
        matrix = matmul_float32(matrix, bases.outputs)
    return matrix if bases.inputs is None else matmul_float32(bases.inputs.mT, matrix)


def rotate_back(matrix: Array, bases: Bases) -> Array:
    """Q_A U Q_Bᵀ of matrices in the eigenbasis `[..., n_rows, d_out]`."""
    return rotate(matrix, Bases(*(None if basis is None else basis.mT for basis in bases)))


def in_basis(factor: Array, basis: Array) -> Array:
    """M = Qᵀ A Q `[..., n, n]`, positive definite, without its rounding noise."""
    m = matmul_float32(basis.mT, matmul_float32(factor, basis))
    on_diagonal = jnp.eye(m.shape[-1], dtype=bool)
    diagonal = jnp.where(on_diagonal, m, 0)
    scale = diagonal.max((-2, -1), keepdims=True)
    m = (m + m.mT) / 2
    m = jnp.where(jnp.abs(m) > _NOISE * jnp.finfo(m.dtype).eps * scale, m, 0)
    floor = jnp.where(scale > 0, _FLOOR * scale, 1)  # a zero factor becomes the identity, and keeps its basis
    return jnp.where(on_diagonal, jnp.maximum(diagonal, 0) + floor, m)


def eigenvectors(m: Array) -> Array:
    vectors: Array = jnp.linalg.eigh(m)[1]
    return vectors[..., ::-1]


def power_iteration(m: Array) -> Array:
    """The orthogonal factor of M's QR decomposition, columns by falling eigenvalue."""
    columns = m[:, jnp.argsort(-jnp.diagonal(m))]
    return jnp.linalg.qr(columns / jnp.linalg.norm(columns, axis=0))[0]


def _refreshed(rotation: Callable[[Array], Array], factors: Array, bases: Array) -> tuple[Array, Array, Array]:
    """New bases, squared overlaps with the old, and whether each is good `[k]`, of stacks `[k, n, n]`."""
    rotated = in_basis(factors, bases)
    turns = rotation(rotated)
    new, are_orthogonal = _orthogonalise(matmul_float32(bases, turns))
    # A factor may overflow when it is rotated, and a device's eigenvectors of that need not be NaN.
    are_good = are_orthogonal & jnp.isfinite(factors).all((1, 2)) & jnp.isfinite(rotated).all((1, 2))
    overlaps = jnp.where(per_layer(are_good), jnp.square(turns), jnp.eye(turns.shape[-1], dtype=turns.dtype))
    return jnp.where(per_layer(are_good), new, bases), overlaps, are_good


def _orthogonalise(basis: Array) -> tuple[Array, Array]:
    """One Newton-Schulz step, so that no error builds up over refreshes; whether the result is orthogonal `[...]`."""
    gram = matmul_float32(basis.mT, basis)
    # Sums, not the largest entry: compiled for a CPU, the maximum of NaNs is no NaN.
    errors = jnp.square(gram - jnp.eye(gram.shape[-1], dtype=gram.dtype)).sum(-1)
    return 1.5 * basis - 0.5 * matmul_float32(basis, gram), (errors < _NEARLY_ORTHOGONAL).all(-1)
