"""For one example with one shared position A ⊗ B is the Gauss-Newton block of a layer, whatever its kind or library."""

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, batch_layout, estimate, trace_layers
from submissions.kfac.layers import replace_layers

N_CLASSES = 3
WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
TOKENS = jnp.asarray([[1]])
VECTOR = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 4)))
IMAGE = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 2, 2)))


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((2, 3), use_bias=False, name="split")(x)
        x = nn.DenseGeneral((2, 2), axis=(-2, -1), name="merged")(nn.tanh(x))
        x = nn.Dense(1, name="single")(nn.tanh(x).reshape(1, 4))
        return nn.Dense(N_CLASSES, name="head")(nn.tanh(x))


class Attention(nn.Module):
    """The query is one token, the context three."""

    @nn.compact
    def __call__(self, x):
        context = jnp.concatenate([x, 2 * x**2, 1 - x], axis=1)
        x = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False, name="attention")(x, context)
        return nn.Dense(N_CLASSES, name="head")(x[:, 0])


class Convolutions(nn.Module):
    """Of one output position each."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 2), padding="VALID", name="conv")(x)
        x = nn.ConvTranspose(3, (1, 1), name="transposed")(nn.tanh(x))
        return nn.Dense(N_CLASSES, name="head")(nn.tanh(x).reshape(1, -1))


class Words(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.tanh(nn.Embed(5, 4, name="words")(tokens))
        return nn.Embed(N_CLASSES, 4, name="classes").attend(nn.Dense(4, name="dense")(x)[:, 0])


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(4, name="dense")(x)), None


class Depth(nn.Module):
    @nn.compact
    def __call__(self, x):
        block = nn.remat(Step, prevent_cse=False)
        stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(N_CLASSES, name="head")(stack(name="stack")(x, None)[0][:, 0])


class Recurrent(nn.Module):
    """One step of time."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(4, **WIDE), name="lstm")(x)
        return nn.Dense(N_CLASSES, name="head")(x[:, 0])


class LowRank(nn.Module):
    """A frozen kernel with a trained low-rank addition; no leaf is called kernel."""

    @nn.compact
    def __call__(self, x):
        a = self.param("a", nn.initializers.normal(), (4, 2))
        b = self.param("b", nn.initializers.normal(), (2, N_CLASSES))
        return (x @ jnp.ones((4, N_CLASSES)) + jnp.einsum("btd,dr,rc->btc", x, a, b, optimize="optimal"))[:, 0]


class NnxDense(nnx.Module):
    def __init__(self, rngs):
        self.split = nnx.LinearGeneral(4, (2, 3), use_bias=False, rngs=rngs)
        self.merged = nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=rngs)
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.merged(nnx.tanh(self.split(x)))))[:, 0]


def in_float64(query, key, value, **options) -> jax.Array:
    """Attention without NNX's softmax in float32."""
    weights = nnx.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, attention_fn=in_float64, **WIDE, rngs=rngs)
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(x, jnp.concatenate([x, 2 * x**2, 1 - x], axis=1))[:, 0])


class NnxConvolutions(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 2), padding="VALID", rngs=rngs)
        self.transposed = nnx.ConvTranspose(4, 3, (1, 1), rngs=rngs)
        self.head = nnx.Linear(3, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.transposed(nnx.tanh(self.conv(x)))).reshape(1, -1))


class NnxWords(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(5, 4, **WIDE, rngs=rngs)
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.classes = nnx.Embed(N_CLASSES, 4, **WIDE, rngs=rngs)

    def __call__(self, tokens):
        return self.classes.attend(self.dense(nnx.tanh(self.words(tokens)))[:, 0])


class NnxRecurrent(nnx.Module):
    def __init__(self, rngs):
        self.lstm = nnx.RNN(nnx.LSTMCell(4, 4, **WIDE, rngs=rngs))
        self.gru = nnx.RNN(nnx.GRUCell(4, 4, **WIDE, rngs=rngs))
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        start = jnp.zeros((1, 4))
        return self.head(self.gru(self.lstm(x, initial_carry=(start, start)), initial_carry=start)[:, 0])


def linen(module: nn.Module, x) -> tuple[dict, Callable]:
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return params, lambda p: module.apply({"params": p}, x)


def of_nnx(kind: type, x) -> tuple[nnx.State, Callable]:
    graph, params, rest = nnx.split(kind(nnx.Rngs(0)), nnx.Param, ...)
    return params, lambda p: nnx.merge(graph, p, rest)(x)


# Model, input, layers expected; attention's keys and values have three positions and are left out of the comparison.
GATES = [f"{side}{gate}" for side in "ih" for gate in "ifgo"]
KINDS = {
    "dense": (linen, Dense(), VECTOR, {"split", "merged", "single", "head"}),
    "attention without biases": (linen, Attention(), VECTOR, {f"attention.{k}" for k in ("query", "out")} | {"head"}),
    "convolutions": (linen, Convolutions(), IMAGE, {"conv", "transposed", "head"}),
    "embeddings": (linen, Words(), TOKENS, {"words", "dense", "classes"}),
    "scan over depth": (linen, Depth(), VECTOR, {"head", *(f"stack.dense[{i}]" for i in range(3))}),
    "recurrent": (
        linen,
        Recurrent(),
        VECTOR,
        {"head", *(f"LSTMCell_0.{gate}" for gate in GATES)},
    ),
    "low rank": (linen, LowRank(), VECTOR, {"a", "b"}),
    "NNX dense": (of_nnx, NnxDense, VECTOR, {"split", "merged", "head"}),
    "NNX attention": (of_nnx, NnxAttention, VECTOR, {"attention.query", "attention.out", "head"}),
    "NNX convolutions": (of_nnx, NnxConvolutions, IMAGE, {"conv", "transposed", "head"}),
    "NNX embeddings": (of_nnx, NnxWords, TOKENS, {"words", "dense", "classes"}),
    "NNX recurrent": (of_nnx, NnxRecurrent, VECTOR, {"head", "lstm.cell.ii", "lstm.cell.hi", "gru.cell.dense_i"}),
}


def gauss_newton(outputs: Callable, layer, params) -> jax.Array:
    """Jᵀ H J for the layer's matrix, of one example's softmax loss."""
    logits = outputs(params)
    j = jax.jacrev(lambda matrix: outputs(replace_layers(params, [layer], {layer.name: matrix})))(layer.read(params))
    j = j.reshape(logits.size, -1)
    h = jax.hessian(lambda z: optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(0)))(logits.reshape(-1))
    return j.T @ h @ j


# The flavours are the same where there is one position, so that each kind has one of them.
@pytest.mark.parametrize(("kind", "sharing"), zip(KINDS, itertools.cycle(Sharing)))
def test_one_position_is_exact(randomized, kind, sharing):
    make, module, x, names = KINDS[kind]
    shapes, outputs = make(module, x)
    params = randomized(shapes)

    def forward(p):
        return outputs(p), None

    layers = {layer.name: layer for layer in trace_layers(params, forward)}
    assert names <= set(layers), sorted(layers)

    @jax.jit
    def compare(params):
        batch = estimate(
            forward,
            lambda z: (optax.softmax_cross_entropy_with_integer_labels(z, jnp.zeros(1, int)).sum(), jnp.ones([])),
            params,
            layers=list(layers.values()),
            layout=batch_layout(1, example_axis=0),
            sharing=sharing,
            fisher=Fisher.EXACT,
            geometry=Geometry(LossKind.SOFTMAX),
            strict=True,
        )
        errors = {}
        for name in names:
            block = gauss_newton(outputs, layers[name], params)
            sides = [side if m == n else jnp.diag(side[:, 0]) for side in batch.factors[name] for n, m in [side.shape]]
            errors[name] = jnp.abs(jnp.kron(*sides) - block).max(), jnp.abs(block).max()
        return errors

    for name, (error, size) in compare(params).items():
        assert error < 1e-9 * max(float(size), 1e-3), name
