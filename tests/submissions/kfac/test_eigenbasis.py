"""The refresh of eigenbases: orthogonal, convergent, and quiet where nothing changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import eigenbasis
from submissions.kfac.eigenbasis import Bases, identity, refresh, rotate, rotate_back

ORTHOGONAL = 1e-5
FULL, POWER = True, False
JITTED = jax.jit(refresh)


def factor(size: int, rank: int, seed: int = 0, decades: float = 3.0) -> np.ndarray:
    """A covariance of `rank` directions whose spread falls by the given decades, beside a large mean."""
    rng = np.random.default_rng(seed)
    scales = np.where(np.arange(size) < rank, 10 ** (-decades * np.arange(size) / size), 0)
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
    rows = (rng.normal(size=(4 * size, size)) * scales + 0.5 * (np.arange(size) == 0)) @ turn.T
    return rows.T @ rows / len(rows)


def refreshed(matrix: np.ndarray, basis: jax.Array, is_full: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """New basis and overlap of one factor, which stands on both sides."""
    pair = {"layer": (jnp.asarray(matrix, jnp.float32)[None],) * 2}
    bases, overlaps, is_good = JITTED(pair, {"layer": Bases(basis[None], basis[None])}, is_full)
    np.testing.assert_array_equal(bases["layer"].inputs, bases["layer"].outputs)
    return (
        np.asarray(bases["layer"].inputs[0], np.float64),
        np.asarray(overlaps["layer"].inputs[0], np.float64),
        bool(is_good["layer"][0]),
    )


def off_diagonal(matrix: np.ndarray, basis: np.ndarray) -> float:
    m = basis.T @ matrix @ basis
    return np.linalg.norm(m - np.diag(np.diag(m))) / np.linalg.norm(m)


def orthogonality(basis: np.ndarray) -> float:
    return np.abs(basis.T @ basis - np.eye(len(basis))).max()


@pytest.mark.parametrize("is_full", [FULL, POWER])
@pytest.mark.parametrize(("size", "rank"), [(1, 1), (33, 33), (65, 20), (129, 5), (257, 128)])
def test_a_basis_stays_orthogonal_whatever_it_starts_from(is_full, size, rank):
    """Rank-deficient factors, from the parameters' own axes and through changes of the factor."""
    basis = jnp.eye(size)
    for seed in range(20 if size < 100 else 3):
        new, _, is_good = refreshed(factor(size, rank, seed), basis, is_full)
        assert is_good and orthogonality(new) < ORTHOGONAL
        basis = jnp.asarray(new, jnp.float32)


def test_a_full_refresh_diagonalises():
    matrix = factor(65, 40)
    basis, overlap, _ = refreshed(matrix, jnp.eye(65), FULL)
    assert off_diagonal(matrix, basis) < 1e-5
    values = np.diag(basis.T @ matrix @ basis)
    assert (np.diff(values) < 1e-6 * values[0]).all()
    np.testing.assert_allclose(overlap, basis**2, atol=1e-5)


def test_power_iteration_follows_a_factor():
    """From the old factor's eigenvectors to the new one's, each refresh nearer, as in float64 by Householder's QR."""
    before = factor(33, 33, 1, decades=2)
    after = 0.8 * before + 0.2 * factor(33, 33, 2, decades=2)
    basis = np.linalg.eigh(before)[1][:, ::-1]
    reference, distances = basis, [off_diagonal(after, basis)]
    for _ in range(6):
        basis, _, _ = refreshed(after, jnp.asarray(basis, jnp.float32), POWER)
        order = np.argsort(-np.diag(reference.T @ after @ reference))
        reference = np.linalg.qr(after @ reference[:, order])[0]
        distances.append(off_diagonal(after, basis))
        assert distances[-1] == pytest.approx(off_diagonal(after, reference), rel=0.02)
    assert distances[1] < 0.5 * distances[0] and distances[-1] < 0.5 * distances[1]


def test_an_accelerator_gets_a_program_of_its_own():
    """Compiled up to the device's own part: batched there, matrix by matrix on a CPU."""
    pair = {"layer": (jax.ShapeDtypeStruct((3, 5, 5), jnp.float32),) * 2}

    def lines(platform, word):
        exported = jax.export.export(JITTED, platforms=[platform])(pair, {"layer": Bases(*pair["layer"])})
        return [line for line in exported.mlir_module().splitlines() if word in line]

    assert any("tensor<6x5x5xf32>" in line for line in lines("cuda", "syevd")) and not lines("cuda", "lapack")
    assert not any("tensor<6x5x5xf32>" in line for line in lines("cpu", "syevd")) and lines("cpu", "lapack")


@pytest.mark.parametrize("size", [33, 257])
@pytest.mark.parametrize("error", [1e-4, 9e-4, 3e-3])
def test_a_basis_called_orthogonal_is(size, error):
    """Whether its error is one entry's or spread over all."""
    spread = np.full((size, size), error)
    single = np.zeros((size, size))
    single[0, 1] = single[1, 0] = error
    for gram in (np.eye(size) + single, np.eye(size) + spread):
        new, is_good = eigenbasis._orthogonalise(jnp.asarray(np.linalg.cholesky(gram).T, jnp.float32))
        assert is_good == (np.square(gram - np.eye(size)).sum(1).max() < 1e-5)
        assert not is_good or orthogonality(np.asarray(new, np.float64)) < ORTHOGONAL


def test_a_turn_that_is_not_a_number_keeps_the_basis(monkeypatch):
    monkeypatch.setattr(eigenbasis, "power_iteration", lambda m: jnp.full_like(m, jnp.nan))
    pair = {"layer": (jnp.asarray(factor(33, 33), jnp.float32)[None],) * 2}
    bases, overlaps, is_good = refresh(pair, {"layer": identity((1, 33, 33), (1, 33, 33))}, jnp.asarray(POWER))
    assert not is_good["layer"].any()
    for side in (*bases["layer"], *overlaps["layer"]):
        np.testing.assert_array_equal(side[0], np.eye(33))


@pytest.mark.parametrize("is_full", [FULL, POWER])
@pytest.mark.parametrize("rank", [33, 12])
def test_an_unchanged_factor_leaves_its_basis_but_for_order_and_signs(is_full, rank):
    matrix, rng = factor(33, rank), np.random.default_rng(3)
    basis = np.linalg.eigh(matrix)[1][:, rng.permutation(33)] * rng.choice([-1.0, 1.0], 33)
    new, overlap, _ = refreshed(matrix, jnp.asarray(basis, jnp.float32), is_full)
    np.testing.assert_allclose(overlap, np.round(overlap), atol=1e-4)
    np.testing.assert_array_equal(np.sort(np.round(overlap), axis=None)[-33:], 1)
    np.testing.assert_allclose(np.abs(basis.T @ new), np.round(overlap), atol=2e-3)


@pytest.mark.parametrize("is_full", [FULL, POWER])
@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e38])
def test_a_broken_factor_keeps_its_basis(is_full, broken):
    """A NaN, an infinity, and finite entries whose products are not."""
    bad = factor(8, 8)
    bad[2, 3] = bad[3, 2] = broken
    bad[2, 2] = broken
    start = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0], jnp.float32)
    assert refreshed(factor(8, 8), start, is_full)[2]
    new, overlap, is_good = refreshed(bad * 3, start, is_full)
    assert not is_good
    np.testing.assert_array_equal(new, start)
    np.testing.assert_array_equal(overlap, np.eye(8))


@pytest.mark.parametrize("is_full", [FULL, POWER])
def test_a_zero_factor_keeps_its_basis_but_for_order(is_full):
    start = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    new, overlap, is_good = refreshed(np.zeros((5, 5)), jnp.asarray(start, jnp.float32), is_full)
    assert is_good and set(np.unique(overlap)) == {0.0, 1.0}
    np.testing.assert_allclose(np.abs(start.T @ new), overlap, atol=1e-6)


def test_layers_of_different_sizes_are_refreshed_each_by_its_own():
    shapes = {"one": (2, 5, 3), "two": (1, 3, 5), "three": (3, 4, 3)}
    factors = {
        name: tuple(jnp.asarray([factor(size, size, seed) for seed in range(n)], jnp.float32) for size in sizes)
        for name, (n, *sizes) in shapes.items()
    }
    new_bases, _, is_good = refresh(
        factors, {name: identity(*(f.shape for f in pair)) for name, pair in factors.items()}
    )
    for name, pair in factors.items():
        assert is_good[name].tolist() == [True] * shapes[name][0]
        for stack, bases in zip(pair, new_bases[name], strict=True):
            assert bases.shape == stack.shape
            for matrix, basis in zip(np.asarray(stack, np.float64), np.asarray(bases, np.float64), strict=True):
                assert off_diagonal(matrix, basis) < 1e-5


def test_rotations_by_hand():
    rng = np.random.default_rng(0)
    qa, qb = (np.linalg.qr(rng.normal(size=(n, n)))[0].astype(np.float32) for n in (4, 3))
    g = rng.normal(size=(2, 4, 3)).astype(np.float32)
    bases = Bases(jnp.asarray(qa), jnp.asarray(qb))
    np.testing.assert_allclose(rotate(g, bases), [qa.T @ one @ qb for one in g], atol=1e-5)
    np.testing.assert_allclose(rotate_back(rotate(g[0], bases), bases), g[0], atol=1e-5)
    # Uncorrelated coordinates of variance v have variance Σ_kl qa[k, i]² v[k, l] qb[l, j]² in the new axes.
    v = rng.uniform(size=(4, 3)).astype(np.float32)
    expected = np.einsum("ki,kl,lj->ij", qa**2, v, qb**2)
    np.testing.assert_allclose(rotate(v, Bases(jnp.square(qa), jnp.square(qb))), expected, rtol=1e-5)
