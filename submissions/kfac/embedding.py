"""Factors of an embedding: its input is one-hot, so that A is a diagonal of the indices' frequencies.

Axes: indices `[lead, *sites]`, output gradients `[lead, *sites, d]`, A `[n_indices, 1]` and B `[d, d]`. For example,
tokens `[8, 128]` of a vocabulary of 1,000 with embeddings of width 64 have A `[1000, 1]` and B `[64, 64]`.

An embedding `[n_indices, d]` may also be used the other way round, as by `attend`, whose outputs are `h Eᵀ`; often one
model does both. With expand, A is exactly diagonal. With reduce, the mean over an example has several non-zero entries,
so that A is not diagonal; only its diagonal is kept.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from .factors import Use
from .sharing import Rows, Sharing, combine_entries, real_entries

Factors = tuple[Array, Array]


def lookup_sums(uses: Sequence[Use], sharing: Sharing, n_indices: int) -> tuple[Array, Array]:
    """A's diagonal before its division `[n_indices, 1]`, and the number of real rows to divide by `[]`.

    Args:
        uses: their values are indices `[lead, *sites]`.
    """
    if sharing is Sharing.REDUCE:
        means, counts = _one_hot_means(uses, n_indices)
        return jnp.square(means).sum(0)[:, None], (counts > 0).sum().astype(means.dtype)
    frequencies, count = jnp.zeros(n_indices), jnp.zeros([])
    for use in uses:
        weights = _weights(use.values, use.rows)
        frequencies, count = frequencies.at[use.values.reshape(-1)].add(weights), count + weights.sum()
    return frequencies[:, None], count


def nearest_product(first: Factors, second: Factors) -> Factors:
    """The A ⊗ B nearest to A₁ ⊗ B₁ + A₂ ⊗ B₂ in the Frobenius norm, with A and B in the units of the larger term.

    A = x₁ A₁ + x₂ A₂ and B = y₁ B₁ + y₂ B₂ are singular vectors of a sum of two outer products, so that x is an
    eigenvector of a matrix 2 × 2. No weight is negative, as the inner products of positive semidefinite matrices are
    not, so A and B are positive semidefinite too.

    Source: Van Loan and Pitsianis, "Approximation with Kronecker Products", 1993.
    """
    terms = first, second
    scales = jnp.array([[_largest(side) for side in term] for term in terms])  # [term, side]
    a, b = (jnp.stack([term[side].ravel() / scales[i, side] for i, term in enumerate(terms)]) for side in (0, 1))
    weights = scales.prod(1)
    share = weights / weights.max()
    gram_a, gram_b = (jnp.matmul(rows, rows.T, precision="highest") for rows in (a, share[:, None] * b))
    x = _leading_vector(jnp.matmul(gram_b, gram_a, precision="highest"))
    projected = jnp.matmul(gram_a, x, precision="highest")
    y = share * projected / jnp.vdot(x, projected, precision="highest")
    unit = x[0] * scales[0, 0] + x[1] * scales[1, 0]
    left = unit * (x[0] * a[0] + x[1] * a[1])
    right = weights.max() / unit * (y[0] * b[0] + y[1] * b[1])
    return left.reshape(first[0].shape), right.reshape(first[1].shape)


def _largest(x: Array) -> Array:
    """The largest entry, or 1 where all are zero."""
    size = jnp.abs(x).max()
    return jnp.where(size == 0, 1, size)


def _leading_vector(m: Array) -> Array:
    """Of a matrix 2 × 2 without negative entries, the eigenvector of the largest eigenvalue, of sum 1."""
    (a, b), (c, d) = m
    gap = (a - d) / 2
    root = jnp.sqrt(gap**2 + b * c)
    vector = jnp.where(gap >= 0, jnp.array([gap + root, c]), jnp.array([b, root - gap]))
    total = vector.sum()
    return jnp.where(total == 0, jnp.array([1.0, 0.0]), vector / jnp.where(total == 0, 1, total))


def _one_hot_means(uses: Sequence[Use], n_indices: int) -> tuple[Array, Array]:
    """The share of each index among an example's positions `[n_examples, n_indices]`, and their number."""
    n_examples = uses[0].rows.n_examples
    sums, counts = jnp.zeros((n_examples, n_indices)), jnp.zeros(n_examples)
    for use in uses:
        n_lead = len(use.values)
        example_of = jnp.arange(n_lead) if use.rows.example_of is None else use.rows.example_of
        weights = _weights(use.values, use.rows).reshape(n_lead, -1)
        sums = sums.at[example_of[:, None], use.values.reshape(n_lead, -1)].add(weights)
        counts += combine_entries(jnp.zeros((n_lead, 1)), weights.shape[1], use.rows)[1]
    return sums / jnp.maximum(counts, 1)[:, None], counts


def _weights(indices: Array, rows: Rows) -> Array:
    """1 for the real positions of `[lead, *sites]` and 0 for padding, `[lead·sites]`."""
    is_real = real_entries(rows)
    n_lead = len(indices)
    weights = jnp.ones(n_lead) if is_real is None else is_real.astype(jnp.float32)
    return jnp.repeat(weights, indices.size // n_lead)
