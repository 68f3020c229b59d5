"""Interception of a Flax forward pass: what is captured, what is left out and why, and what it costs."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, batch_layout, estimate, find_layers
from submissions.kfac.capture import capture

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 5, 3)), jnp.float32)
TARGETS = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
SQUARE = Geometry(LossKind.SQUARE, 1.0)


def square_loss(outputs):
    return 0.5 * ((outputs - TARGETS) ** 2).sum(), jnp.asarray(4.0)


def run(model, params, *, x=X, layers=None, loss=square_loss, sharing=Sharing.REDUCE):
    """`estimate`, compiled, of a model without state; by default of all layers."""
    layers = find_layers(params) if layers is None else layers
    reasons = {}

    @jax.jit
    def step(params):
        got = estimate(
            lambda p: (model.apply({"params": p}, x), None),
            loss,
            params,
            layers=layers,
            layout=batch_layout(len(x)),
            sharing=sharing,
            geometry=SQUARE,
            key=jax.random.key(0),
        )
        reasons.update(got.uncaptured)
        return got._replace(uncaptured={})

    return step(params)._replace(uncaptured=reasons)


def plain(model, params, x=X, loss=square_loss):
    return jax.jit(jax.value_and_grad(lambda p: loss(model.apply({"params": p}, x))[0] / 4.0))(params)


def assert_same_gradients(got, loss, gradients):
    np.testing.assert_allclose(got.loss, loss, rtol=1e-6)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), got.gradients, gradients)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sin(nn.Dense(3)(x))


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.sin(nn.Dense(3, use_bias=False)(x)), None


class Nested(nn.Module):
    """Plain layers around one inside a Flax transformation."""

    transform: str | None = None

    @nn.compact
    def __call__(self, x):
        x = jnp.sin(nn.Dense(3, name="before")(x))
        if self.transform == "scan":
            stack = nn.scan(ScanBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            x, _ = stack(name="inner")(x, None)
        elif self.transform == "vmap":
            shared = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
            x = nn.vmap(Block, in_axes=1, out_axes=1, **shared)(name="inner")(x)
        elif self.transform:
            x = {"remat": nn.remat, "jit": nn.jit}[self.transform](Block)(name="inner")(x)
        return nn.Dense(2, name="after")(x.mean(1))


@pytest.mark.parametrize("transform", ["remat", "jit", "vmap"])
def test_layers_inside_a_transformation_are_named_and_left_out(randomized, transform):
    model = Nested(transform)
    params = randomized(model, X)
    got = run(model, params)
    assert list(got.uncaptured) == ["inner.Dense_0"]
    assert "nn.remat, nn.scan or nn.jit" in got.uncaptured["inner.Dense_0"]
    assert set(got.factors) == {"before", "after"}
    assert_same_gradients(got, *plain(model, params))
    mean_input = X.mean(1)
    np.testing.assert_allclose(got.factors["before"][0][:3, :3], mean_input.T @ mean_input / 4, rtol=1e-5)
    eager = capture(lambda p: (model.apply({"params": p}, X), None), params, find_layers(params))
    assert eager.uncaptured == got.uncaptured


def test_scanned_layers_are_left_out(randomized):
    """The scanned kernel `[length, 3, 3]` has no known split; handed in all the same, it is refused by its place."""
    model = Nested("scan")
    params = randomized(model, X)
    assert {layer.name for layer in find_layers(params)} == {"before", "after"}
    unstacked = {**params, "inner": {"Dense_0": {"kernel": jnp.zeros((3, 3))}}}
    got = run(model, params, layers=find_layers(unstacked))
    assert "nn.scan" in got.uncaptured["inner.Dense_0"] and set(got.factors) == {"before", "after"}
    assert_same_gradients(got, *plain(model, params))


class OddCalls(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,), feature_group_count=2, name="grouped")(nn.Dense(4, name="fine")(x))
        x = nn.Conv(4, (3,), padding="CIRCULAR", name="circular")(x)
        x = nn.DenseGeneral(5, axis=1, name="over positions")(x)
        x = nn.Dense(2, name="by keyword")(inputs=x)
        if self.is_initializing():
            nn.Dense(2, name="unused")(x)
        return x.mean(1)


def test_unsupported_calls_are_named_with_their_reason(randomized):
    params = randomized(OddCalls(), X)
    got = run(OddCalls(), params)
    assert set(got.factors) == {"fine"}
    expected = {
        "grouped": "grouped",
        "circular": "CIRCULAR",
        "over positions": "trailing axes",
        "by keyword": "positional argument",
        "unused": "not called",
    }
    assert set(got.uncaptured) == set(expected)
    assert all(expected[name] in reason for name, reason in got.uncaptured.items())
    assert_same_gradients(got, *plain(OddCalls(), params))


class Folded(nn.Module):
    """Folds positions into the batch axis, so that rows no longer tell their example."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2, name="folded")(x.reshape(-1, 3))
        return x.reshape(4, 5, 2).mean(1)


def test_unlisted_layout_raises_naming_the_layer(randomized):
    with pytest.raises(ValueError, match="layer folded: .*length 20"):
        run(Folded(), randomized(Folded(), X))


def test_gradients_are_those_of_plain_autodiff_without_layers_too(randomized):
    params = randomized(Nested(), X)
    expected = plain(Nested(), params)
    assert_same_gradients(run(Nested(), params, layers=()), *expected)
    got = run(Nested(), params)
    assert got.uncaptured == {} and set(got.factors) == {"before", "after"}
    assert_same_gradients(got, *expected)


class Counted(nn.Module):
    on_call: Callable

    @nn.compact
    def __call__(self, x):
        jax.debug.callback(self.on_call, x[0, 0, 0])
        return nn.Dense(2)(Block()(x).mean(1))


def test_forward_pass_runs_once(randomized):
    calls = []
    model = Counted(calls.append)
    params = randomized(model, X)
    jax.block_until_ready(run(model, params).factors)
    jax.effects_barrier()
    assert len(calls) == 1
    programs = [jax.make_jaxpr(lambda p, f=f: f(model, p)[:2])(params) for f in (run, plain)]
    assert [len(re.findall(r"= sin\b", str(program))) for program in programs] == [1, 1]


def test_products_of_factors_alone_ask_for_highest_precision(randomized):
    params = randomized(Nested(), X)
    for sharing in Sharing:
        step = jax.jit(lambda p, sharing=sharing: run(Nested(), p, sharing=sharing).factors)
        products = [line for line in step.lower(params).as_text().splitlines() if "stablehlo.dot_general" in line]
        square = {f"tensor<{n}x{n}xf32>" for n in (3, 2)}
        highest = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
        assert len(highest) == 4 < len(products)  # A and B of two layers
        assert all(line.rsplit("-> ")[-1].split(" ")[0] in square for line in highest)


class HalfPrecision(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,), dtype=self.dtype, name="conv")(x)
        return nn.Dense(2, dtype=self.dtype, name="head")(jnp.tanh(x).mean(1))


@pytest.mark.parametrize("sharing", Sharing)
def test_factors_of_a_bfloat16_model_are_float32(randomized, sharing):
    x = jnp.asarray(RNG.normal(size=(4, 301, 3)), jnp.bfloat16)  # 1,204 rows: a count that bfloat16 does not hold
    params = randomized(HalfPrecision(jnp.bfloat16), x)

    def loss(outputs):
        return 0.5 * (outputs.astype(jnp.float32) ** 2).sum(), jnp.asarray(4.0)

    got, expected = (
        run(HalfPrecision(dtype), params, x=x.astype(dtype), loss=loss, sharing=sharing).factors
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    # The first layer's input is the same in both, so that its A must agree to float32's precision.
    np.testing.assert_allclose(got["conv"][0], expected["conv"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["head"][0], expected["head"][0], rtol=0.05, atol=0.05)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, perturbation=0.0):
        x = nn.Dense(4, name="inner")(x) + perturbation
        x = nn.BatchNorm(use_running_average=False, name="norm")(x)
        return nn.Dense(2, name="head")(jnp.tanh(x).mean(1))


@pytest.mark.parametrize("sharing", Sharing)
def test_batch_statistics_and_masked_rows(randomized, sharing):
    """Batch statistics come back as auxiliary values; they give padding an output gradient, which is masked."""
    model, is_example = Normalised(), jnp.asarray([1.0, 0.0, 1.0, 1.0])
    params = randomized(model, X)
    state = {"batch_stats": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}}

    def loss(outputs):
        return (is_example[:, None] * outputs**2).sum(), jnp.asarray(3.0)

    def forward(p, perturbation=0.0):
        return model.apply({"params": p, **state}, X, perturbation, mutable=["batch_stats"])

    layers = find_layers(params)
    options = {"layout": batch_layout(4, is_example), "sharing": sharing, "fisher": Fisher.EMPIRICAL}
    got = jax.jit(lambda p: estimate(forward, loss, p, layers=layers, **options)._replace(uncaptured={}))(params)
    cotangents = jax.jit(jax.grad(lambda e: loss(forward(params, e)[0])[0]))(jnp.zeros((4, 5, 4)))
    assert jnp.abs(cotangents[1]).max() > 1e-3
    kept = cotangents[jnp.asarray([0, 2, 3])]
    rows = kept.reshape(-1, 4) if sharing is Sharing.EXPAND else kept.sum(1)
    np.testing.assert_allclose(got.factors["inner"][1], rows.T @ rows / 3, rtol=1e-4, atol=1e-5)
    gradients, aux = jax.jit(jax.grad(lambda p: (loss(forward(p)[0])[0] / 3, forward(p)[1]), has_aux=True))(params)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-6), got.aux, aux)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), got.gradients, gradients)
