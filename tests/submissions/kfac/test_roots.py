"""Inverse roots and polar factors against float64 decompositions."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac.roots import (
    damped_inverse_roots,
    inverse_root,
    polar_by_products,
    polar_factor,
    root_by_eigenvectors,
    root_by_products,
)

RNG = np.random.default_rng(0)


def orthogonal(n: int) -> np.ndarray:
    return np.linalg.qr(RNG.normal(size=(n, n)))[0]


# Of condition number 1e4: falling eigenvalues, a factor of low rank with damping, one eigenvalue far above the others.
SPECTRA = {
    "falling": np.geomspace(1, 1e-4, 40),
    "low rank": np.r_[np.ones(10), np.full(30, 1e-4)],
    "one large": np.r_[1e4, np.linspace(1, 2, 39)],
}


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("power", [0.5, 0.25])
@pytest.mark.parametrize(("root", "tolerance"), [(root_by_eigenvectors, 0.01), (root_by_products, 0.03)])
def test_inverse_roots(spectrum, power, root, tolerance):
    """Z A^(2 power) Z is the identity, which the metric needs: an error in Z's large entries would hide others."""
    basis = orthogonal(40)
    matrix, metric = (basis * spectrum) @ basis.T, (basis * spectrum ** (2 * power)) @ basis.T
    z = np.asarray(root(jnp.asarray(matrix, jnp.float32), power), np.float64)
    eigenvalues = np.linalg.eigvalsh(z @ metric @ z)
    assert np.abs(eigenvalues - 1).max() < tolerance
    well = spectrum > 1e-2 * spectrum.max()  # where float32 knows Z's own entries
    np.testing.assert_allclose((basis.T @ z @ basis).diagonal()[well], spectrum[well] ** -power, rtol=0.02)


@pytest.mark.parametrize("power", [0.5, 0.25])
def test_a_stack_has_the_root_of_each(power):
    stack = jnp.asarray(np.stack([np.eye(3), 4 * np.eye(3)]), jnp.float32)
    np.testing.assert_allclose(inverse_root(stack, power), [np.eye(3), np.eye(3) / 4**power], atol=1e-6)


@pytest.mark.parametrize("power", [0.5, 0.25])
def test_damping_is_relative_to_the_mean_eigenvalue(power):
    values = np.array([8.0, 3.0, 1.0])
    factors = {"whole": jnp.asarray([np.diag(values)]), "diagonal": jnp.asarray(values[None, :, None])}
    got = damped_inverse_roots(factors, jnp.float32(0.5), power)
    expected = (values / 4 + 0.5) ** -power
    np.testing.assert_allclose(got["whole"][0], np.diag(expected), atol=1e-6)
    np.testing.assert_allclose(got["diagonal"][0, :, 0], expected, rtol=1e-5)
    zero = damped_inverse_roots(
        {"whole": jnp.zeros((1, 3, 3)), "diagonal": jnp.zeros((1, 3, 1))}, jnp.float32(0.5), power
    )
    assert not any(np.isfinite(root).any() for root in zero.values())


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12), (12, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_polar_factors(shape, dtype):
    """Right singular vectors and left ones stay, and the values come near one."""
    n = min(shape)
    left, right = orthogonal(shape[0])[:, :n], orthogonal(shape[1])[:, :n]
    values = np.geomspace(1, 2e-2, n)
    matrix = (left * values / np.linalg.norm(values)) @ right.T
    got = left.T @ np.asarray(polar_by_products(jnp.asarray(matrix, dtype)), np.float64) @ right
    tolerance = 1e-4 if dtype == jnp.float32 else 0.06
    assert np.abs(got - np.diag(np.diag(got))).max() < tolerance
    assert np.abs(np.diag(got) - 1).max() < 0.15 + tolerance


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_a_polar_factor_is_of_no_scale(scale):
    matrix = np.asarray(RNG.normal(size=(4, 3)), np.float32)
    np.testing.assert_allclose(polar_factor(jnp.asarray(scale * matrix)), polar_factor(jnp.asarray(matrix)), atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "precision", "has_bfloat16"),
    [("7.0", None, False), ("8.0", None, True), ("gfx90a", None, True), ("9.0", "float32", False)],
)
def test_bfloat16_is_for_gpus_that_have_it_and_no_float32_setting(capability, precision, has_bfloat16, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    with jax.default_matmul_precision(precision):
        program = jax.make_jaxpr(lambda x: polar_factor(x))(jnp.ones((1, 4, 3)))  # a function that no test traced
    assert ("bf16" in str(program)) == has_bfloat16


def test_of_zeros_it_is_zero():
    assert not polar_factor(jnp.zeros((2, 4, 3))).any()


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="in bfloat16 on accelerators alone")
def test_a_polar_factor_in_bfloat16_is_near_the_one_in_float32():
    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(2, 65, 40)), jnp.float32)
    with jax.default_matmul_precision("float32"):
        exact = polar_factor(matrices)
    with jax.default_matmul_precision(None):
        np.testing.assert_allclose(polar_factor(matrices), exact, atol=0.06)
