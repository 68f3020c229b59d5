"""Models of Flax NNX, whose layers are named by their attributes."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from submissions.kfac import Sharing, batch_layout
from tests.submissions.kfac.models.case import Case, check, cross_entropy, drawn, normal, patch_rows, tap

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES, TOKENS = normal(3, 4, 4, 2), jnp.array([[1, 2, 3, 4], [4, 2, 1, 1], [3, 3, 2, 1]])
LABELS = jnp.array([0, 2, 1])


def nnx_case(model, x, loss, sharing, captured, **options) -> Case:
    graph, params, others = nnx.split(model, nnx.Param, ...)
    params = drawn(params)

    def forward(p):
        fresh = jax.tree.map(lambda leaf: leaf, others)  # of this trace, so that it may be updated
        return nnx.merge(graph, p, fresh)(x)

    return Case(params, forward, loss, batch_layout(3), sharing, captured, **options)


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(tap("first", self.first, x), use_running_average=False))
        x = nnx.relu(tap("second", self.second, x))
        return self.head(x.mean((1, 2)))


def test_cnn():
    captured, rows = {"first", "second", "head"}, {"first": patch_rows(3), "second": patch_rows(3)}
    loss = cross_entropy(LABELS)
    check(nnx_case(CNN(nnx.Rngs(0)), IMAGES, loss, Sharing.REDUCE, captured, rows=rows, has_bias={"second": False}))


class Transformer(nnx.Module):
    """Decoder-only, its head tied to the embedding."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.down = nnx.LinearGeneral(6, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(x, mask=nnx.make_causal_mask(tokens))
        x = x + tap("down", self.down, nnx.gelu(tap("up", self.up, self.norm(x))))
        return self.embed.attend(x)


def test_transformer():
    captured = {"embed", "up", "down"} | {f"attention.{name}" for name in ("query", "key", "value", "out")}
    loss = cross_entropy(jnp.roll(TOKENS, -1, 1))
    case = nnx_case(Transformer(nnx.Rngs(0)), TOKENS, loss, Sharing.EXPAND, captured)
    check(case._replace(layout=batch_layout(3, example_axis=0)))


def test_parameters_may_be_a_plain_dictionary():
    case = nnx_case(CNN(nnx.Rngs(0)), IMAGES, cross_entropy(LABELS), Sharing.REDUCE, {"first", "second", "head"})
    rows = {"first": patch_rows(3), "second": patch_rows(3)}
    params, forward = nnx.to_pure_dict(case.params), case.forward

    def of_dictionary(p):
        state = jax.tree.unflatten(jax.tree.structure(case.params), jax.tree.leaves(p))
        return forward(state)

    check(case._replace(params=params, forward=of_dictionary, rows=rows, has_bias={"second": False}))
