"""EK-FAC's eigenvalues against the diagonal, in the same basis, of the generalised Gauss-Newton matrix."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, batch_layout, estimate, find_layers
from submissions.kfac.eigenbasis import Bases

N_EXAMPLES, N_CLASSES = 6, 3


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(N_CLASSES, name="head")(nn.tanh(nn.Dense(4, name="first")(x)))


class Pooled(nn.Module):
    """Linear, so that reduce sees an example's whole gradient."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(N_CLASSES, name="head")(nn.Dense(4, name="first")(x).mean(1))


class NonlinearPooled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(N_CLASSES, name="head")(nn.tanh(nn.Dense(4, name="first")(x)).mean(1))


def errors(model, shape, sharing, randomized, gauss_newton) -> dict[str, float]:
    """Layer -> largest difference of the eigenvalues from the exact diagonal, over its largest entry."""
    inputs = jax.random.normal(jax.random.key(0), shape)
    params = randomized(model.init(jax.random.key(1), inputs)["params"])
    labels = jnp.arange(N_EXAMPLES) % N_CLASSES
    layers = find_layers(params)
    rng = np.random.default_rng(2)
    bases = {
        layer.name: Bases(*(jnp.asarray(np.linalg.qr(rng.normal(size=(n, n)))[0]) for n in (layer.n_rows, layer.d_out)))
        for layer in layers
    }

    def outputs(p):
        return model.apply({"params": p}, inputs)

    def loss(z):
        return optax.softmax_cross_entropy_with_integer_labels(z, labels).sum()

    batch = estimate(
        lambda p: (outputs(p), None),
        lambda z: (loss(z), jnp.asarray(N_EXAMPLES)),
        params,
        layers=layers,
        layout=batch_layout(N_EXAMPLES),
        sharing=sharing,
        fisher=Fisher.EXACT,
        geometry=Geometry(LossKind.SOFTMAX),
        bases=bases,
    )
    found = {}
    for layer in layers:
        block = gauss_newton(outputs, loss, params, layer.path) / N_EXAMPLES
        turn = jnp.kron(*bases[layer.name])
        exact = jnp.diagonal(turn.T @ block @ turn).reshape(layer.n_rows, layer.d_out)
        found[layer.name] = float(jnp.abs(batch.eigenvalues[layer.name] - exact).max() / exact.max())
    return found


@pytest.mark.parametrize("sharing", Sharing)
def test_exact_without_shared_positions(sharing, randomized, gauss_newton):
    assert max(errors(Plain(), (N_EXAMPLES, 5), sharing, randomized, gauss_newton).values()) < 1e-9


def test_reduce_is_exact_for_a_pooled_linear_model_and_expand_is_not(randomized, gauss_newton):
    assert max(errors(Pooled(), (N_EXAMPLES, 7, 5), Sharing.REDUCE, randomized, gauss_newton).values()) < 1e-9
    assert errors(Pooled(), (N_EXAMPLES, 7, 5), Sharing.EXPAND, randomized, gauss_newton)["first"] > 1e-2


def test_reduce_is_not_exact_behind_a_nonlinearity(randomized, gauss_newton):
    assert errors(NonlinearPooled(), (N_EXAMPLES, 7, 5), Sharing.REDUCE, randomized, gauss_newton)["first"] > 1e-2
