"""Models of several heads, and of layers that are sums of others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, batch_layout, estimate, trace_layers
from tests.submissions.kfac.models.case import Case, check, cross_entropy, initialised, normal, tap

pytestmark = pytest.mark.usefixtures("quick_compilation")

X, LABELS = normal(3, 5), jnp.array([0, 2, 1])


class VAE(nn.Module):
    """The encoder's two heads are the mean and the logarithm of the variance of a latent variable."""

    @nn.compact
    def __call__(self, x, key):
        h = jnp.tanh(tap("encoder", nn.Dense(6, name="encoder"), x))
        mean, log_variance = nn.Dense(2, name="mean")(h), nn.Dense(2, name="log_variance")(h)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        h = jnp.tanh(tap("decoder", nn.Dense(6, name="decoder"), z))
        return {"pixels": nn.Dense(5, name="pixels")(h), "mean": mean, "log_variance": log_variance}


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(tap("trunk", nn.Dense(6, name="trunk"), x))
        return tap("actor", nn.Dense(3, name="actor"), h), nn.Dense(1, name="critic")(h)


def evidence(outputs):
    mean, log_variance = outputs["mean"], outputs["log_variance"]
    divergence = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum()
    return 0.5 * ((outputs["pixels"] - X) ** 2).sum() + divergence, jnp.float32(3)


def policy_and_value(outputs):
    policy, n_terms = cross_entropy(LABELS)(outputs[0])
    return policy + 0.5 * ((outputs[1] - 1) ** 2).sum(), n_terms


def test_vae():
    model, key = VAE(), jax.random.key(4)
    params = initialised(model, X, key)["params"]
    captured = {"encoder", "mean", "log_variance", "decoder", "pixels"}

    def forward(p):
        return model.apply({"params": p}, X, key)

    check(Case(params, forward, evidence, batch_layout(3), Sharing.EXPAND, captured))


def test_actor_critic():
    model = ActorCritic()
    params = initialised(model, X)["params"]

    def forward(p):
        return model.apply({"params": p}, X)

    captured = {"trunk", "actor", "critic"}
    check(Case(params, forward, policy_and_value, batch_layout(3), Sharing.EXPAND, captured))


def test_the_fisher_of_two_heads_is_the_sum_of_theirs():
    model = ActorCritic()
    params = initialised(model, X)["params"]

    def outputs(p):
        return model.apply({"params": p}, X)

    def trunk_factor(logits, geometry):
        return estimate(
            lambda p: (outputs(p), None),
            policy_and_value,
            params,
            layers=trace_layers(params, lambda p: (outputs(p), None)),
            layout=batch_layout(3),
            fisher=Fisher.EXACT,
            logits=logits,
            geometry=geometry,
        ).factors["trunk"][1]

    softmax, square = Geometry(LossKind.SOFTMAX), Geometry(LossKind.SQUARE)
    both = trunk_factor(lambda heads: heads, [softmax, square])
    alone = trunk_factor(lambda heads: heads[0], softmax), trunk_factor(lambda heads: heads[1], square)
    assert jnp.allclose(both, alone[0] + alone[1], rtol=1e-4, atol=1e-6)


class LoRA(nn.Module):
    """A layer plus a product of two narrow matrices."""

    @nn.compact
    def __call__(self, x):
        down = nn.Dense(2, use_bias=False, name="down")
        up = nn.Dense(6, use_bias=False, name="up")
        h = tap("base", nn.Dense(6, name="base"), x) + tap("up", up, tap("down", down, x))
        return nn.Dense(3, name="head")(jnp.tanh(h))


def test_lora():
    model = LoRA()
    params = initialised(model, X)["params"]

    def forward(p):
        return model.apply({"params": p}, X)

    captured, no_bias = {"base", "down", "up", "head"}, {"down": False, "up": False}
    case = Case(params, forward, cross_entropy(LABELS), batch_layout(3), Sharing.EXPAND, captured, has_bias=no_bias)
    check(case)
    frozen = {name: params[name] for name in ("base", "head")}
    adapters = {name: params[name] for name in ("down", "up")}
    check(case._replace(params=adapters, forward=lambda p: forward(frozen | p), captured={"down", "up"}))
