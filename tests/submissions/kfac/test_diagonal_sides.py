"""Sides too wide for a whole factor: their diagonals, and training by these, against the same by whole matrices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import (
    Fisher,
    Geometry,
    LossKind,
    Sharing,
    batch_layout,
    describe,
    eigenbasis_adam,
    estimate,
    find_layers,
    kfac,
    kfac_muon,
)
from submissions.kfac.eigenbasis import Bases, rotate
from submissions.kfac.factors import gradient_covariances

RNG = np.random.default_rng(0)
MAX_WIDTH = 11
N_STEPS = 4


class Net(nn.Module):
    """A is too wide in `conv` (1 · 3 · 4 + 1), B in `wide` (12), neither in `head`, both in `mixer` (12 + 1 and 12)."""

    @nn.compact
    def __call__(self, x):  # [batch, 6, 4]
        x = nn.tanh(nn.Conv(5, (3,), name="conv")(x))
        x = nn.tanh(nn.Dense(12, name="wide")(x))
        x = nn.tanh(nn.Dense(12, name="mixer")(x))
        return nn.Dense(3, name="head")(nn.Dense(6, use_bias=False, name="narrow")(x).mean(1))


def found(params, max_width=MAX_WIDTH):
    return {layer.name: layer.factor_shapes for layer in find_layers(params, max_width)}


def test_a_wide_side_is_diagonal_and_two_are_the_fallbacks(randomized):
    params = randomized(Net(), jnp.zeros((2, 6, 4)))
    assert found(params) == {
        "conv": ((13, 1), (5, 5)),
        "wide": ((6, 6), (12, 1)),
        "narrow": ((12, 1), (6, 6)),
        "head": ((7, 7), (3, 3)),
    }
    lines = {line.split()[0]: line.split(": ")[1] for line in describe(params, find_layers(params, 11)).split("\n")[1:]}
    assert lines["conv.kernel"] == "factors 13 (diagonal) and 5" and lines["mixer.bias"] == "fallback"


@pytest.mark.parametrize(("width", "shape"), [(8192, (8192, 8192)), (8193, (8193, 1))])
def test_the_limit_is_8192(width, shape):
    params = {"words": {"kernel": jax.ShapeDtypeStruct((3, width), jnp.float32)}}
    assert [layer.factor_shapes for layer in find_layers(params)] == [((3, 3), shape)]


def test_a_bias_does_not_count_for_the_limit():
    """So that a layer whose bias has another optimizer keeps its kind of factors."""
    shapes = {"kernel": (8192, 3), "bias": (3,)}
    params = {"dense": {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}}
    assert [layer.factor_shapes for layer in find_layers(params)] == [((8193, 8193), (3, 3))]


def orthogonal(size: int) -> jax.Array:
    return jnp.asarray(np.linalg.qr(RNG.normal(size=(size, size)))[0], jnp.float32)


@pytest.mark.parametrize("sharing", Sharing)
def test_diagonals_are_those_of_the_whole_factors(randomized, sharing):
    x = jnp.asarray(RNG.normal(size=(5, 6, 4)), jnp.float32)
    params, is_example = randomized(Net(), x), jnp.asarray([1.0, 1.0, 0.0, 1.0, 1.0])

    def estimated(layers):
        return estimate(
            lambda p: (Net().apply({"params": p}, x), None),
            lambda z: (jnp.where(is_example[:, None] > 0, z, 0).sum(), is_example.sum()),
            params,
            layers=layers,
            layout=batch_layout(5, is_example),
            sharing=sharing,
            fisher=Fisher.EXACT,
            geometry=Geometry(LossKind.SOFTMAX),
            weights=is_example,
        )

    got, whole = estimated(find_layers(params, MAX_WIDTH)), estimated(find_layers(params))
    assert set(got.factors) == {"conv", "wide", "narrow", "head"}
    for name, pair in got.factors.items():
        for factor, matrix in zip(pair, whole.factors[name], strict=True):
            expected = matrix if len(matrix) <= MAX_WIDTH else jnp.diagonal(matrix)[:, None]
            np.testing.assert_allclose(factor, expected, rtol=1e-4, atol=1e-6)


def test_diagonals_of_gradient_covariances():
    gradient = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    whole = gradient_covariances(gradient)
    for side in (0, 1):
        got = gradient_covariances(gradient, tuple(side == i for i in (0, 1)))
        np.testing.assert_allclose(got[side][:, 0], jnp.diagonal(whole[side]), rtol=1e-6)
        np.testing.assert_array_equal(got[1 - side], whole[1 - side])


def test_a_side_without_a_basis_is_not_turned():
    g, turn = jnp.asarray(RNG.normal(size=(2, 4, 4)), jnp.float32), orthogonal(4)
    np.testing.assert_allclose(rotate(g, Bases(turn, None)), rotate(g, Bases(turn, jnp.eye(4))), atol=1e-6)
    np.testing.assert_allclose(rotate(g, Bases(None, turn)), rotate(g, Bases(jnp.eye(4), turn)), atol=1e-6)


PARAMS = {
    name: {"kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32)}
    for name, shape in {"one": (5, 12), "two": (5, 12), "other": (12, 3)}.items()
}
GRADIENTS = [jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS) for _ in range(N_STEPS)]


def factor(size: int) -> jax.Array:
    """Of a side too wide a diagonal matrix, with falling entries, as eigenvectors are sorted."""
    if size > MAX_WIDTH:
        return jnp.diag(jnp.asarray(np.sort(RNG.uniform(0.1, 2, size))[::-1].copy(), jnp.float32))
    rows = RNG.normal(size=(2 * size, size))
    return jnp.asarray(rows.T @ rows / len(rows), jnp.float32)


FACTORS = [{name: tuple(map(factor, leaf["kernel"].shape)) for name, leaf in PARAMS.items()} for _ in range(N_STEPS)]


def fallbacks(state):
    return [part.fallbacks for part in state if hasattr(part, "fallbacks")]


def trained(max_width, factors, make):
    optimizer = make(find_layers(PARAMS, max_width))
    params, state = PARAMS, optimizer.init(PARAMS)
    at_start = jax.tree.map(jnp.shape, state)
    for step in range(N_STEPS):
        updates, state = optimizer.update(GRADIENTS[step], state, params, factors=factors[step], refresh=True)
        params = optax.apply_updates(params, updates)
    assert jax.tree.map(jnp.shape, state) == at_start
    assert fallbacks(state) == [(0, 0)]
    return params


MAKERS = {
    "kfac": functools.partial(kfac, learning_rate=0.1, damping=0.05),
    "muon": functools.partial(kfac_muon, learning_rate=0.1, damping=0.05),
    "power": functools.partial(eigenbasis_adam, learning_rate=0.1, full_refreshes=1),
    "adam": functools.partial(eigenbasis_adam, learning_rate=0.1),
}


@pytest.mark.parametrize("way", MAKERS)
def test_training_is_as_by_whole_matrices_that_are_diagonal(way):
    def column(matrix):
        return matrix if len(matrix) <= MAX_WIDTH else jnp.diagonal(matrix)[:, None]

    columns = [{name: tuple(map(column, pair)) for name, pair in step.items()} for step in FACTORS]
    got, whole = (trained(width, factors, MAKERS[way]) for width, factors in ((MAX_WIDTH, columns), (12, FACTORS)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, whole)


@pytest.mark.parametrize("way", ["kfac", "adam"])
def test_a_diagonal_that_is_not_a_number_is_left_out_and_counted(way):
    optimizer = MAKERS[way](find_layers(PARAMS, MAX_WIDTH))
    state = optimizer.init(PARAMS)
    broken = {
        name: tuple(jnp.full((n, n if n <= MAX_WIDTH else 1), 1.0) for n in leaf["kernel"].shape)
        for name, leaf in PARAMS.items()
    }
    broken["one"] = (FACTORS[0]["one"][0], jnp.full((12, 1), jnp.nan))
    updates, state = optimizer.update(GRADIENTS[0], state, PARAMS, factors=broken, refresh=True)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))
    assert fallbacks(state) == [(0, 1)]
