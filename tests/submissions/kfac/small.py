"""A small model on one batch, what its estimate gives, and what plain automatic differentiation gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from submissions.kfac import Geometry, LossKind, Sharing, batch_layout, estimate, find_layers

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 5, 3)), jnp.float32)
TARGETS = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
SQUARE = Geometry(LossKind.SQUARE, 1.0)


def square_loss(outputs):
    return 0.5 * ((outputs - TARGETS) ** 2).sum(), jnp.asarray(4.0)


def run(model, params, *, x=X, layers=None, loss=square_loss, sharing=Sharing.REDUCE, forward=None, **options):
    """`estimate`, compiled, of a model without state; by default of all layers."""
    forward = forward or (lambda p: model.apply({"params": p}, x))
    options = {"layout": batch_layout(len(x), example_axis=0), "geometry": SQUARE, "key": jax.random.key(0), **options}
    layers = find_layers(params) if layers is None else layers
    step = jax.jit(lambda p: estimate(lambda q: (forward(q), None), loss, p, layers=layers, sharing=sharing, **options))
    return step(params)


def plain(model, params, x=X, loss=square_loss):
    return jax.jit(jax.value_and_grad(lambda p: loss(model.apply({"params": p}, x))[0] / 4.0))(params)


def assert_same_gradients(got, loss, gradients):
    np.testing.assert_allclose(got.loss, loss, rtol=1e-6)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), got.gradients, gradients)


def assert_same_factors(got, expected):
    assert set(got) == set(expected)
    for name, pair in got.items():
        for factor, reference in zip(pair, expected[name], strict=True):
            np.testing.assert_allclose(factor, reference, rtol=1e-4, atol=1e-6, err_msg=name)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sin(nn.Dense(3)(x))


class Nested(nn.Module):
    """Plain layers around one inside a Flax transformation."""

    transform: str | None = None

    @nn.compact
    def __call__(self, x):
        x = jnp.sin(nn.Dense(3, name="before")(x))
        if self.transform == "vmap":
            shared = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
            x = nn.vmap(Block, in_axes=1, out_axes=1, **shared)(name="inner")(x)
        else:
            wrap = {"remat": nn.remat, "jit": nn.jit, "remat of jit": lambda m: nn.remat(nn.jit(m))}
            x = wrap.get(self.transform, lambda module: module)(Block)(name="inner")(x)
        return nn.Dense(2, name="after")(x.mean(1))
