"""Embeddings: looked up, used as a matrix, and both in one model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import (
    Fisher,
    Geometry,
    LossKind,
    Sharing,
    batch_layout,
    eigenbasis_adam,
    estimate,
    find_layers,
    kfac,
    kfac_muon,
    trace_layers,
)
from submissions.kfac.embedding import nearest_product

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 7, size=(4, 5)))
IS_TOKEN = jnp.asarray([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], jnp.float32)


class Words(nn.Module):
    """An embedding, looked up or multiplied with one-hot vectors, which `Dense` does as well."""

    is_lookup: bool

    @nn.compact
    def __call__(self, tokens):
        if self.is_lookup:
            x = nn.Embed(7, 3, name="words")(tokens)
        else:
            x = nn.Dense(3, use_bias=False, name="words")(jax.nn.one_hot(tokens, 7))
        x = (nn.tanh(x) * IS_TOKEN[..., None]).sum(1)
        return nn.Dense(2, name="head")(x)


@pytest.mark.parametrize("sharing", Sharing)
def test_a_lookup_is_a_product_with_one_hot_vectors(randomized, sharing):
    params = randomized(Words(True), TOKENS)
    dense = {**params, "words": {"kernel": params["words"]["embedding"]}}

    def run(is_lookup, p):
        return estimate(
            lambda q: (Words(is_lookup).apply({"params": q}, TOKENS), None),
            lambda z: (jnp.square(z).sum(), jnp.asarray(4.0)),
            p,
            layers=find_layers(p),
            layout=batch_layout(4, is_token=IS_TOKEN),
            sharing=sharing,
            fisher=Fisher.EXACT,
            geometry=Geometry(LossKind.SQUARE, 2.0),
            strict=True,
        )

    got = jax.jit(lambda p: run(True, p))(params)
    expected = jax.jit(lambda p: run(False, p))(dense)
    a, b = got.factors["words"]
    np.testing.assert_allclose(a[:, 0], jnp.diagonal(expected.factors["words"][0]), rtol=1e-5)
    if sharing is Sharing.EXPAND:
        counts = np.bincount(TOKENS[IS_TOKEN > 0], minlength=7)
        np.testing.assert_allclose(a[:, 0], counts / counts.sum(), rtol=1e-6)
    np.testing.assert_allclose(b, expected.factors["words"][1], rtol=1e-4, atol=1e-6)


def test_indices_that_a_lookup_clips_count_as_the_last():
    params = {"words": jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)}
    tokens = jnp.asarray([[-3, 0], [7, 4], [1, 6]])

    def forward(p):
        return jnp.take(p["words"], tokens, axis=0, mode="clip").mean(1), None

    def loss(z):
        return 0.5 * jnp.square(z).sum(), jnp.float32(3)

    layers = trace_layers(params, forward)
    options = {"layers": layers, "layout": batch_layout(3), "sharing": Sharing.EXPAND, "fisher": Fisher.EMPIRICAL}
    a, _ = estimate(forward, loss, params, **options).factors["words"]
    np.testing.assert_allclose(a[:, 0], np.array([2, 1, 0, 0, 3]) / 6, rtol=1e-6)


@pytest.mark.parametrize("optimizer", [kfac, kfac_muon, eigenbasis_adam])
def test_a_vector_that_is_added_to_a_lookup_is_no_bias_of_it(optimizer):
    params = {"table": jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32), "shift": jnp.ones(2)}
    tokens = jnp.asarray([[3, 0], [2, 4], [1, 0]])

    def forward(p):
        return (p["table"][tokens] + p["shift"]).mean(1), None

    layers = trace_layers(params, forward)
    assert [(layer.name, layer.has_bias) for layer in layers] == [("table", False)]
    batch = estimate(
        forward,
        lambda z: (0.5 * jnp.square(z).sum(), jnp.float32(3)),
        params,
        layers=layers,
        layout=batch_layout(3),
        fisher=Fisher.EMPIRICAL,
    )
    damping = {"damping": 0.1} if optimizer is kfac else {}
    transformation = optimizer(layers, learning_rate=0.1, **damping)
    updates, _ = transformation.update(batch.gradients, transformation.init(params), params, factors=batch.factors)
    assert all(jax.tree.leaves(jax.tree.map(lambda u: bool(jnp.isfinite(u).all() and u.any()), updates)))


def test_nearest_product_is_the_leading_singular_pair():
    def factor(n):
        rows = RNG.normal(size=(n + 2, n))
        return rows.T @ rows

    first, second = (
        (np.abs(RNG.normal(size=(5, 1))), factor(3)),
        (1e3 * np.abs(RNG.normal(size=(5, 1))), 1e-3 * factor(3)),
    )
    summed = sum(np.outer(a.ravel(), b.ravel()) for a, b in (first, second))
    u, s, vt = np.linalg.svd(summed)
    a, b = nearest_product(*(tuple(map(jnp.float32, pair)) for pair in (first, second)))
    np.testing.assert_allclose(np.outer(a.ravel(), b.ravel()), s[0] * np.outer(u[:, 0], vt[0]), rtol=1e-4, atol=1e-4)
    assert (np.asarray(a) >= 0).all() and (np.linalg.eigvalsh(b) > 0).all()
    nothing = jnp.zeros((5, 1)), jnp.zeros((3, 3))
    for pair in ((first, nothing), (nothing, first)):
        got = nearest_product(*(tuple(map(jnp.float32, own)) for own in pair))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, first)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        words = nn.Embed(7, 3, name="words")
        return words.attend(nn.Dense(3, name="dense")(nn.tanh(words(tokens))))


@pytest.mark.parametrize("sharing", Sharing)
def test_a_tied_embedding_has_the_sum_of_both_uses_and_trains(randomized, sharing):
    """The factors of each use are those of an untied model with the same values."""

    class Untied(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Dense(3, name="dense")(nn.tanh(nn.Embed(7, 3, name="words")(tokens)))
            return nn.Embed(7, 3, name="classes").attend(x)

    def run(model, p):
        return estimate(
            lambda q: (model.apply({"params": q}, TOKENS), None),
            lambda z: (jnp.square(z).sum(), jnp.asarray(20.0)),
            p,
            layers=find_layers(p),
            layout=batch_layout(4),
            sharing=sharing,
            geometry=Geometry(LossKind.SOFTMAX),
            key=jax.random.key(0),
            strict=True,
        )

    params = randomized(Tied(), TOKENS)
    batch = jax.jit(lambda p: run(Tied(), p))(params)
    untied = jax.jit(lambda p: run(Untied(), p))({**params, "classes": params["words"]}).factors
    expected = nearest_product(untied["words"], untied["classes"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), batch.factors["words"], expected)
    for optimizer in (
        kfac(find_layers(params), learning_rate=0.1, damping=1e-2),
        kfac_muon(find_layers(params), learning_rate=0.1),
        eigenbasis_adam(find_layers(params), learning_rate=0.1),
    ):
        state = optimizer.init(params)
        step = jax.jit(lambda b, s, o=optimizer: o.update(b.gradients, s, params, factors=b.factors, refresh=True))
        updates, state = step(batch, state)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
        assert sum(jnp.vdot(u, g) for u, g in zip(*map(jax.tree.leaves, (updates, batch.gradients)), strict=True)) < 0
