"""A matrix that multiplies data without being a layer is warned of, whatever its name; other parameters are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import CurvatureWarning, Fisher, batch_layout, describe, estimate, trace_layers

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, IMAGES, TOKENS, MASK = drawn(8, 5), drawn(8, 2, 6, 6), jnp.arange(32).reshape(8, 4) % 7, drawn(5, 4) > 0
FROZEN = drawn(5, 4)


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


def convolution(w):
    return jax.lax.conv_general_dilated(IMAGES, w, (1, 1), "SAME", feature_group_count=2).mean((2, 3))


# What the matrix `w` is used for: its shape, the use as a function of it, and the reason.
KERNELS = {
    "a grouped convolution": ((4, 1, 3, 3), convolution, "a grouped convolution"),
    "standardised": ((5, 4), lambda w: X @ ((w - w.mean(0)) / (w.std(0) + 1e-5)), "reduce_sum"),
    "split": ((5, 8), lambda w: (X @ w[:, :4]) * (X @ w[:, 4:]), "slice"),
    "masked": ((5, 4), lambda w: X @ jnp.where(MASK, w, 0), "jit|select_n"),
    "added to a frozen matrix": ((5, 4), lambda w: X @ (FROZEN + w), "add"),
    "with noise": ((5, 4), lambda w: X @ (w + 0.1 * jax.random.normal(jax.random.key(0), (5, 4))), "add"),
    "sliced, with noise": (
        (5, 8),
        lambda w: X @ (w[:, :4] + 0.1 * jax.random.normal(jax.random.key(0), (5, 4))),
        "slice",
    ),
    "rounded": ((5, 4), lambda w: X @ (w + jax.lax.stop_gradient(jnp.round(w) - w)), "add"),
    "with a mask of its rows": ((5, 4), lambda w: X @ (w * MASK[:, :1]), "mul"),
    "in part replaced": ((5, 4), lambda w: X @ w.at[0].set(X[0, :4]), "scatter"),
    "inverted": ((5, 5), lambda w: jnp.linalg.solve(w + 9 * jnp.eye(5), X.T).T[:, :4], "add"),
    "inside a rule of its own": ((5, 4), lambda w: product(X, w), "custom_vjp_call"),
    "split in a jitted function": ((5, 8), jax.jit(lambda w: X @ jax.jit(jnp.sin)(w)[:, 4:]), "sin"),
    "experts'": (
        (3, 5, 4),
        lambda w: jnp.tanh(jnp.einsum("nbd,ndh->nbh", jnp.stack([X, X, X]), w)).sum(0),
        "batch axes",
    ),
    "looked up one by one": (
        (7, 4),
        lambda w: jax.vmap(lambda t: jax.vmap(lambda i: w[i])(t).mean(0))(TOKENS),
        "gather",
    ),
}


def forward_with(use):
    return lambda params: (jnp.tanh(use(params["w"])) @ params["head"], None)


def estimated(params, forward, **options):
    layers = trace_layers(params, forward)
    layout = batch_layout(8)

    def loss(z):
        return 0.5 * jnp.square(z).sum(), jnp.float32(8)

    got = estimate(forward, loss, params, layers=layers, layout=layout, fisher=Fisher.EMPIRICAL, **options)
    return got, describe(params, layers, forward, layout)


def test_a_rule_of_its_own_hides_no_kernel_with_as_many_entries_as_its_output():
    square = drawn(5, 5)
    params = {"head": drawn(5, 3), "w": drawn(5, 5)}

    def forward(params):
        return jnp.tanh(product(square, params["w"])) @ params["head"], None

    layers = trace_layers(params, forward)
    assert "w (5, 5): fallback: it goes into `custom_vjp_call`" in describe(params, layers, forward, batch_layout(5))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_is_no_layer_is_warned_of(name):
    shape, use, reason = KERNELS[name]
    params = {"head": drawn(4, 3), "w": drawn(*shape)}
    with pytest.warns(CurvatureWarning, match=f"no curvature for 1 layers.*\n  w: it goes into .*({reason})"):
        got, text = estimated(params, forward_with(use))
    assert set(got.factors) == {"head"}
    assert "w (" in text and "fallback: it goes into" in text
    with pytest.raises(ValueError, match="no curvature for 1 layers"):
        estimated(params, forward_with(use), strict=True)


POSITIONS = drawn(8, 6, 5)
OTHERS = {
    "a table of positions": ((6, 5), lambda w: (POSITIONS + w).mean(1)),
    "the first rows of a table of positions": ((9, 5), lambda w: (POSITIONS + w[:6]).mean(1)),
    "tokens before the data": (
        (2, 5),
        lambda w: jnp.concatenate([jnp.broadcast_to(w, (8, 2, 5)), POSITIONS], 1).mean(1),
    ),
    "scales of each position": ((6, 5), lambda w: (POSITIONS * w).mean(1)),
    "a table for all examples, normalised and then multiplied": (
        (6, 5),
        lambda w: ((POSITIONS + jnp.broadcast_to(jnp.sin(w), (8, 6, 5))) @ jnp.swapaxes(POSITIONS, 1, 2)).mean(1)[
            :, :5
        ],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_parameters_that_multiply_no_data_are_not_called_kernels(name):
    shape, use = OTHERS[name]
    params = {"head": drawn(4, 3), "kernel": drawn(5, 4), "w": drawn(*shape)}

    def forward(params):
        return jnp.tanh(use(params["w"]) @ params["kernel"]) @ params["head"], None

    got, text = estimated(params, forward, strict=True)
    assert set(got.factors) == {"head", "kernel"} and "w (" in text
