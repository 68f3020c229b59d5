import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac.factors import moving_average
from submissions.kfac.precondition import (
    MAX_PI,
    Inverses,
    damped_inverses,
    damping_ratio,
    has_inverse,
    init_inverses,
    precondition,
)
from submissions.kfac.trust_region import kl_clip


def covariance(size: int, seed: int, rank: int | None = None) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(rank or 3 * size, size))
    return rows.T @ rows / len(rows)


YES = jnp.array([True])


def stacked(*pairs):
    """The factors of several layers, as those of one group."""
    return tuple(jnp.asarray(np.stack(side), jnp.float32) for side in zip(*pairs, strict=True))


def test_damped_inverses_equal_float64_inverses():
    sizes = {"first": (4, 3), "second": (3, 4), "third": (5, 1)}  # sides of equal size are inverted together
    damping = 0.02
    layers = {
        name: [(covariance(a, seed), 0.1 * covariance(b, seed + 1, rank=2)) for seed in (1, 5)]
        for name, (a, b) in sizes.items()
    }
    factors = {name: stacked(*pairs) for name, pairs in layers.items()}
    before = {name: init_inverses((2, a, a), (2, b, b)) for name, (a, b) in sizes.items()}
    informed = dict.fromkeys(sizes, jnp.array([True, True]))
    got, n_failed = damped_inverses(factors, jnp.float32(damping), before, informed)
    assert n_failed == 0
    for name, pairs in layers.items():
        for i, (a, b) in enumerate(pairs):
            pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(b) / len(b)))
            assert damping_ratio(*factors[name])[i] == pytest.approx(pi, rel=1e-5)
            expected_a = np.linalg.inv(a + pi * np.sqrt(damping) * np.eye(len(a)))
            expected_b = np.linalg.inv(b + np.sqrt(damping) / pi * np.eye(len(b)))
            np.testing.assert_allclose(got[name].inputs[i], expected_a, rtol=1e-4, atol=1e-4)
            atol = 1e-4 * np.abs(expected_b).max()
            np.testing.assert_allclose(got[name].outputs[i], expected_b, rtol=1e-4, atol=atol)


def test_precondition_is_the_inverse_kronecker_product():
    a, b = covariance(4, 1).astype(np.float32), covariance(3, 2).astype(np.float32)
    gradient = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    got = precondition(jnp.asarray(gradient), Inverses(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_allclose(np.reshape(got, -1), np.kron(a, b) @ gradient.reshape(-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "pi"), [(1.0, 0.0, MAX_PI), (0.0, 1.0, 1 / MAX_PI), (4.0, 1.0, 2.0), (0.0, 0.0, 1.0)]
)
def test_pi_is_bounded_when_a_factor_is_zero(a, b, pi):
    assert damping_ratio(a * jnp.eye(3), b * jnp.eye(2)) == pytest.approx(pi, rel=1e-5)


def test_zero_output_factor_leaves_one_over_damping():
    """With B = 0 and π at its bound, A is negligible beside its damping, and A⁻¹ ⊗ B⁻¹ near 1/λ."""
    factors = {"l": stacked((np.eye(3), np.zeros((2, 2))))}
    before = {"l": init_inverses((1, 3, 3), (1, 2, 2))}
    inverses = damped_inverses(factors, jnp.float32(1e-2), before, {"l": YES})[0]["l"]
    np.testing.assert_allclose(np.kron(inverses.inputs[0], inverses.outputs[0]), np.eye(6) * 1e2 * 100 / 101, rtol=1e-4)


def test_a_failed_inverse_keeps_both_previous_ones_of_its_layer_alone():
    """Of a layer in its group, and of a group among others."""
    good, bad = (np.eye(2), np.eye(2)), (np.eye(2), np.full((2, 2), np.nan))
    factors = {"x": stacked(bad, good), "y": stacked(good)}
    previous = {
        name: Inverses(*(value * jnp.ones_like(side) for value, side in zip((7, 8), pair, strict=True)))
        for name, pair in factors.items()
    }
    informed = {"x": jnp.array([True, True]), "y": YES}
    got, n_failed = damped_inverses(factors, jnp.float32(1.0), previous, informed)
    np.testing.assert_array_equal(got["x"].inputs[0], previous["x"].inputs[0])
    np.testing.assert_array_equal(got["x"].outputs[0], previous["x"].outputs[0])
    assert n_failed == 1
    for inverses in (got["x"].inputs[1], got["x"].outputs[1], got["y"].inputs[0]):
        np.testing.assert_allclose(inverses, np.eye(2) / 2, rtol=1e-6)


def test_a_layer_without_an_estimate_gets_no_inverse():
    factors = {"group": stacked(*[(np.eye(2), np.eye(3))] * 2)}
    informed = {"group": jnp.array([True, False])}
    got, n_failed = damped_inverses(factors, jnp.float32(1.0), {"group": init_inverses((2, 2, 2), (2, 3, 3))}, informed)
    assert has_inverse(got["group"]).tolist() == [True, False] and n_failed == 0


@pytest.mark.parametrize(
    ("inner_product", "bound", "factor"),
    [(4.0, 1.0, 0.5), (4.0, 4.0, 1.0), (4.0, 8.0, 1.0), (0.0, 1e-2, 1.0), (-1.0, 1e-2, 1.0)],
)
def test_kl_clip_by_hand(inner_product, bound, factor):
    got = kl_clip(jnp.float32(inner_product), jnp.float32(bound))
    assert got == pytest.approx(factor, rel=1e-6)


def test_moving_average_starts_as_a_mean_and_then_decays():
    average, seen = jnp.zeros((1, 1)), []
    for n, value in enumerate([2.0, 4.0, 9.0, 8.0]):
        average = jax.jit(moving_average)(average, jnp.full((1, 1), value), jnp.float32(0.6), jnp.int32(n))
        seen.append(float(average[0, 0]))
    # 2; (2 + 4) / 2; then weight 0.4, above 1/3: 3 + 0.4 · 6; 5.4 + 0.4 · 2.6.
    assert seen == pytest.approx([2.0, 3.0, 5.4, 6.44], rel=1e-5)
