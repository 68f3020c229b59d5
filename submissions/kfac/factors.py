"""The Kronecker factors A of a layer's inputs and B of its output gradients.

Axes: inputs `[lead, *sites, d_in]` and output gradients `[lead, *sites, d_out]`, where a convolution's input is read as
patches. A is `[d_in (+1), d_in (+1)]`, one more for the bias, B is `[d_out, d_out]`. For example, a convolution with a
bias and a kernel `[3, 3, 4, 16]` on images `[8, 10, 10, 4]` has patches `[8, 10, 10, 36]`, A `[37, 37]` and B
`[16, 16]`.

With `a` an input (1 appended for the bias), `ĝ` the gradient of the summed loss for an output, M the number that the
summed loss is divided by, R_n the real positions of example n and N the examples with any:
    expand: A = Σ_{n,r} a aᵀ / Σ_n R_n           B = Σ_{n,r} ĝ ĝᵀ / M
    reduce: A = Σ_n (mean_r a)(mean_r a)ᵀ / N    B = Σ_n (Σ_r ĝ)(Σ_r ĝ)ᵀ / M

The diagonal alone, of a side too wide for the whole, is a column `[n, 1]`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .convolution import Convolution, patch_sums, patches
from .devices import on_all_devices
from .layers import at_least_float32
from .sharing import Rows, Sharing, combine_entries, example_sums, expand

# Above the rounding of bfloat16 gradients summed over positions (about 2e-5), below what real gradients leave.
# A choice.
_CANCELLED = 1e-4


class Use(NamedTuple):
    """One use of a layer in a forward pass; a layer called twice has two.

    Attributes:
        values: inputs or output gradients `[lead, *sites, d]`; the raw input `[batch, *spatial, channels]` of a
            convolution.
        rows: whose example each entry of the leading axis is.
        convolution: how to read `values` as patches, where the layer is a convolution.
    """

    values: Array
    rows: Rows
    convolution: Convolution | None = None


def input_factor(uses: Sequence[Use], sharing: Sharing, has_bias: bool) -> Array:
    """A `[d_in (+1), d_in (+1)]` of one batch, at least float32. Without a real row it is zero."""
    products, count = input_sums(uses, sharing, has_bias)
    return products / jnp.maximum(count, 1)


def input_sums(
    uses: Sequence[Use],
    sharing: Sharing,
    has_bias: bool,
    diagonal: bool = False,
    rows_per_width: int = 0,
    key: Array | None = None,
) -> tuple[Array, Array]:
    """A before its division `[d_in (+1), d_in (+1)]`, and the number of real rows to divide by `[]`.

    Args:
        diagonal: A's diagonal alone.
        rows_per_width: expand takes about this many rows for each of the factor's own, drawn by `spread_indices`;
            0 takes all.
        key: random key for the draws.
    """
    if sharing is Sharing.EXPAND:
        rows, is_real = _expanded(uses)
        if rows_per_width:
            n_drawn = len(rows) // max(1, len(rows) // (rows_per_width * (rows.shape[1] + has_bias)))
            if n_drawn < len(rows):
                if key is None:
                    raise ValueError("rows_per_width draws the rows at random: give a key")
                drawn = spread_indices(key, len(rows), n_drawn)
                rows, is_real = rows[drawn], is_real[drawn]
        count = is_real.sum()
    else:
        sums, counts = _reduced(uses)
        rows, count = sums / jnp.maximum(counts, 1)[:, None], (counts > 0).sum()
    count = count.astype(rows.dtype)
    factor = second_moment(rows, diagonal)
    if has_bias and diagonal:
        factor = jnp.concatenate([factor, count[None, None]])
    elif has_bias:
        # The bias entry is 1 in every real row, so its products are the column sums and the count.
        column = rows.sum(0)[:, None]
        factor = jnp.block([[factor, column], [column.T, count[None, None]]])
    return factor, count


def spread_indices(key: Array, n: int, n_drawn: int) -> Array:
    """`n_drawn` of n indices in ascending order: one uniform draw from each of as many equal intervals.

    Every example gets its share, and each index is as likely as another. Draws of different intervals are independent,
    so that they follow no period of the rows, such as that of the positions of an example.
    """
    # floor((i n + r) / n_drawn) with 0 <= r < n: in integers, as float32 cannot count beyond 2^24, nor int32 up to i n.
    whole, rest = np.divmod(np.arange(n_drawn, dtype=np.int64) * n, n_drawn)
    offset = jax.random.randint(key, (n_drawn,), 0, n)
    return jnp.asarray(whole, jnp.int32) + (jnp.asarray(rest, jnp.int32) + offset) // n_drawn


def output_factor(uses: Sequence[Use], sharing: Sharing, n_terms: Array, diagonal: bool = False) -> Array:
    """B `[d_out, d_out]`, or its diagonal, of one batch, at least float32; `n_terms` is M `[]`.

    With reduce it is zero, and so left out of the average, if the gradients of the positions cancel up to rounding. For
    example, the same vector added to all keys of an attention layer changes nothing, so reduce sees no curvature there.
    """
    rows, _ = _expanded(uses)
    if sharing is Sharing.REDUCE:
        size = jnp.square(rows).sum()
        rows, _ = _reduced(uses)
        cancels = jnp.isfinite(size) & (jnp.square(rows).sum() <= _CANCELLED * size)
        rows = jnp.where(cancels, 0, rows)
    return second_moment(rows, diagonal) / n_terms.astype(rows.dtype)


def second_moment(rows: Array, diagonal: bool = False) -> Array:
    """Σ x xᵀ over the rows x of `[rows, d]`, or its diagonal, without TF32."""
    if diagonal:
        return jnp.square(rows).sum(0)[:, None]
    return jnp.einsum("ri,rj->ij", rows, rows, precision=jax.lax.Precision.HIGHEST, **on_all_devices(rows))


def gradient_covariances(gradient: Array, diagonal: tuple[bool, bool] = (False, False)) -> tuple[Array, Array]:
    """Shampoo's factors G Gᵀ `[n_rows, n_rows]` and Gᵀ G `[d_out, d_out]` of a gradient `[n_rows, d_out]`.

    `diagonal` says for each of the two whether only its diagonal `[n, 1]` is computed.

    Source: Gupta, Koren and Singer, "Shampoo: Preconditioned Stochastic Tensor Optimization", 2018.
    """
    return second_moment(gradient.T, diagonal[0]), second_moment(gradient, diagonal[1])


def moving_average(average: Array, estimate: Array, decay: Array, n_estimates: Array) -> Array:
    """Exponential moving average that starts as a plain mean, so that it needs no bias correction.

    Args:
        average: the average of the `n_estimates` before, which broadcast over it.
        decay: weight of the past once there are more than `1 / (1 - decay)` estimates.
    """
    weight = jnp.maximum(1 - decay, 1 / (n_estimates + 1)).astype(average.dtype)
    return average + weight * (estimate - average)


def _expanded(uses: Sequence[Use]) -> tuple[Array, Array]:
    """All uses' rows `[rows, d]`, padding zeroed, and 1 for the real ones `[rows]`."""
    parts = []
    for use in uses:
        values = at_least_float32(use.values)
        parts.append(expand(patches(values, use.convolution) if use.convolution else values, use.rows))
    rows, is_real = zip(*parts, strict=True)
    return jnp.concatenate(rows), jnp.concatenate(is_real)


def _reduced(uses: Sequence[Use]) -> tuple[Array, Array]:
    """Sums over all uses' positions `[n_examples, d]` and the positions' number `[n_examples]`."""
    parts = []
    for use in uses:
        values = at_least_float32(use.values)
        if use.convolution:
            parts.append(combine_entries(*patch_sums(values, use.convolution), use.rows))
        else:
            parts.append(example_sums(values, use.rows))
    sums, counts = zip(*parts, strict=True)
    return sum(sums[1:], sums[0]), sum(counts[1:], counts[0])
