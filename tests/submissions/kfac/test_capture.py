"""What capture gives of a step: gradients, factors and their precision, and what it costs."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Fisher, Sharing, batch_layout, estimate, find_layers
from tests.submissions.kfac.small import (
    RNG,
    SQUARE,
    Block,
    Nested,
    X,
    assert_same_gradients,
    plain,
    run,
    square_loss,
)


def test_gradients_are_those_of_plain_autodiff_without_layers_too(randomized):
    params = randomized(Nested(), X)
    expected = plain(Nested(), params)
    assert_same_gradients(run(Nested(), params, layers=()), *expected)
    got = run(Nested(), params)
    assert got.uncaptured == {} and set(got.factors) == {"before", "inner.Dense_0", "after"}
    assert_same_gradients(got, *expected)


def test_a_forward_pass_sees_the_values_outside_it_anew(randomized):
    params, batch = randomized(Nested(), X), {"x": X}

    def forward(p):
        return Nested().apply({"params": p}, batch["x"]), None

    def factor():
        options = {
            "layers": find_layers(params),
            "layout": batch_layout(4),
            "geometry": SQUARE,
            "key": jax.random.key(0),
        }
        return estimate(forward, square_loss, params, **options).factors["before"][0]

    first, batch["x"] = factor(), 2 * X
    np.testing.assert_allclose(factor()[:3, :3], 4 * first[:3, :3], rtol=1e-5)


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
        with jax.default_matmul_precision(None):  # whatever is set for these tests
            text = step.lower(params).as_text()
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        square = {f"tensor<{n}x{n}xf32>" for n in (3, 4, 2)}
        highest = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
        assert len(highest) == 6 < len(products)  # A and B of three layers
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
    got = jax.jit(lambda p: estimate(forward, loss, p, layers=layers, **options))(params)
    cotangents = jax.jit(jax.grad(lambda e: loss(forward(params, e)[0])[0]))(jnp.zeros((4, 5, 4)))
    assert jnp.abs(cotangents[1]).max() > 1e-3
    kept = cotangents[jnp.asarray([0, 2, 3])]
    rows = kept.reshape(-1, 4) if sharing is Sharing.EXPAND else kept.sum(1)
    np.testing.assert_allclose(got.factors["inner"][1], rows.T @ rows / 3, rtol=1e-4, atol=1e-5)
    gradients, aux = jax.jit(jax.grad(lambda p: (loss(forward(p)[0])[0] / 3, forward(p)[1]), has_aux=True))(params)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-8), got.aux, aux)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), got.gradients, gradients)
