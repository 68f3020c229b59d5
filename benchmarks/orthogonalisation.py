"""Methods to refresh an eigenbasis: their time, the basis's orthogonality, and how well it diagonalises the factor."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import in_turn, markdown
from submissions.kfac import eigenbasis


def table(widths: Sequence[int], *, n_rounds: int, seed: int) -> str:
    """A row for each width and method, on a factor in the eigenbasis of an earlier, rank-deficient one.

    "orthogonality" is the largest entry of |QᵀQ - I|; "off-diagonal" is the Frobenius norm of Qᵀ A Q off its diagonal,
    relative to the norm of the whole matrix ("before": the same in the earlier basis).
    """
    rows = []
    for width in widths:
        m, before = _rotated_factor(width, seed)
        methods = {name: jax.jit(method) for name, method in _METHODS.items()}
        seconds = in_turn({name: partial(method, m) for name, method in methods.items()}, n_rounds=n_rounds)
        for name, method in methods.items():
            basis = np.asarray(method(m), np.float64)
            error = float(np.abs(basis.T @ basis - np.eye(width)).max())
            after = _off_diagonal(basis.T @ np.asarray(m, np.float64) @ basis)
            rows.append([width, name, 1e3 * seconds[name], f"{error:.0e}", f"{after:.0e}", f"{before:.0e}"])
    return markdown(["width", "way", "ms", "orthogonality", "off-diagonal", "before"], rows)


def _rotated_factor(width: int, seed: int) -> tuple[jax.Array, float]:
    """M = Qᵀ A Q `[width, width]` in float32, and the norm of its off-diagonal part relative to the whole.

    Q holds the eigenvectors of a factor B of rank width / 2. A is 0.95 B plus 0.05 times the mean of five other such
    factors, so that A has full rank.
    """
    generator = np.random.default_rng(seed)
    decay = np.geomspace(1, 1e-3, width)
    rows = generator.normal(size=(6, width // 2, width)) * decay
    factors = np.einsum("kri,krj->kij", rows, rows) / (width // 2)
    old = factors[0]
    new = old + 0.05 * (factors[1:].mean(0) - old)
    basis = np.linalg.eigh(old)[1][:, ::-1]
    m = eigenbasis.in_basis(jnp.asarray(new, jnp.float32), jnp.asarray(basis, jnp.float32))
    return m, _off_diagonal(np.asarray(m, np.float64))


def _off_diagonal(m: np.ndarray) -> float:
    return float(np.linalg.norm(m - np.diag(np.diag(m))) / np.linalg.norm(m))


_METHODS = {"power iteration": eigenbasis.power_iteration, "eigendecomposition": eigenbasis.eigenvectors}
