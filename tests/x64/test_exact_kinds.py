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

pytestmark = pytest.mark.usefixtures("quick_compilation")

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
        x = nn.Einsum((2, 2, 3, 2), "...ab,abcd->...cd", name="einsum")(nn.tanh(x))
        x = nn.Einsum((3, 2, 4), "...ab,abc->...c", use_bias=False, name="plain_einsum")(nn.tanh(x))
        x = nn.Dense(1, name="single")(nn.tanh(x).reshape(1, 4))
        return nn.Dense(N_CLASSES, name="head")(nn.tanh(x))


class Attention(nn.Module):
    """The query is one token, the context three."""

    @nn.compact
    def __call__(self, x):
        context = jnp.concatenate([x, 2 * x**2, 1 - x], axis=1)
        x = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False, name="bare")(x, context)
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.tanh(x), context)
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="to_one")(nn.tanh(x), nn.tanh(x**2))
        return nn.Dense(N_CLASSES, name="head")(x[:, 0])


class Convolutions(nn.Module):
    """Of one output position each; of the padded and the dilated ones not every part of the kernel meets the input."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 2), padding="VALID", name="conv")(x)
        x = nn.ConvTranspose(3, (3, 3), name="transposed")(nn.tanh(x))
        x = nn.Conv(2, 3, use_bias=False, name="of_int_size")(nn.tanh(x).reshape(1, 1, 3))
        x = nn.Conv(4, (3, 3), strides=2, kernel_dilation=2, name="dilated")(nn.tanh(x).reshape(1, 2, 1, 1))
        return nn.Dense(N_CLASSES, name="head")(nn.tanh(x).reshape(1, -1))


class TransposedStride(nn.Module):
    """Two by two positions of the input, which the convolution before it has too, and one of the output."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(2, (2, 1), padding="VALID", name="conv")(x))
        x = nn.ConvTranspose(3, (3, 3), strides=(2, 2), padding=((0, 0), (0, 0)), use_bias=False, name="transposed")(x)
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
        x = nn.RNN(nn.LSTMCell(4, name="lstm", **WIDE))(x)
        x = nn.RNN(nn.GRUCell(4, name="gru", **WIDE))(x)
        x = nn.RNN(nn.SimpleCell(4, name="simple", **WIDE))(x)
        return nn.Dense(N_CLASSES, name="head")(x[:, 0])


class SideBySide(nn.Module):
    """Kernels concatenated before one product: those of a cell's gates, over one step of time, and two others."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(4, name="lstm", **WIDE))(x)
        a = self.param("a", nn.initializers.normal(), (4, 2))
        b = self.param("b", nn.initializers.normal(), (4, 3))
        return nn.Dense(N_CLASSES, name="head")(nn.tanh(x @ jnp.concatenate([a, b], axis=1))[:, 0])


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
        self.einsum = nnx.Einsum("...a,abc->...bc", (4, 2, 3), (2, 3), rngs=rngs)
        self.plain_einsum = nnx.Einsum("...ab,abc->...c", (2, 3, 4), rngs=rngs)
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.merged(nnx.tanh(self.split(x)))
        return self.head(nnx.tanh(self.plain_einsum(nnx.tanh(self.einsum(nnx.tanh(x))))))[:, 0]


def in_float64(query, key, value, **options) -> jax.Array:
    """Attention without NNX's softmax in float32."""
    weights = nnx.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        options = {"decode": False, "attention_fn": in_float64, **WIDE, "rngs": rngs}
        self.bare = nnx.MultiHeadAttention(2, 4, use_bias=False, **options)
        self.attention = nnx.MultiHeadAttention(2, 4, **options)
        self.to_one = nnx.MultiHeadAttention(2, 4, **options)
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        context = jnp.concatenate([x, 2 * x**2, 1 - x], axis=1)
        x = self.attention(nnx.tanh(self.bare(x, context)), context)
        return self.head(self.to_one(nnx.tanh(x), nnx.tanh(x**2))[:, 0])


class NnxConvolutions(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 2), padding="VALID", rngs=rngs)
        self.transposed = nnx.ConvTranspose(4, 3, (3, 3), rngs=rngs)
        self.of_int_size = nnx.Conv(3, 2, 3, use_bias=False, rngs=rngs)
        self.dilated = nnx.Conv(1, 4, (3, 3), strides=2, kernel_dilation=2, rngs=rngs)
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.transposed(nnx.tanh(self.conv(x))))
        x = nnx.tanh(self.of_int_size(x.reshape(1, 1, 3)))
        return self.head(nnx.tanh(self.dilated(x.reshape(1, 2, 1, 1))).reshape(1, -1))


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
        self.simple = nnx.RNN(nnx.SimpleCell(4, 4, **WIDE, rngs=rngs))
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        start = jnp.zeros((1, 4))
        x = self.gru(self.lstm(x, initial_carry=(start, start)), initial_carry=start)
        return self.head(self.simple(x, initial_carry=start)[:, 0])


class NnxDepth(nnx.Module):
    """Layers that a scan over depth stacks."""

    def __init__(self, rngs):
        make = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs))
        self.stack = nnx.split_rngs(splits=3)(make)(rngs)
        self.head = nnx.Linear(4, N_CLASSES, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(lambda x, layer: nnx.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(scan(x, self.stack)[:, 0])


def transposed_kernels(p):
    """Kernels `[outputs, inputs]`, as models of one example have them."""

    def of_example(x):
        return p["head"] @ jnp.tanh(p["body"] @ x)

    return jax.vmap(of_example)(VECTOR[:, 0])


def linen(module: nn.Module, x) -> tuple[dict, Callable]:
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return params, lambda p: module.apply({"params": p}, x)


def of_nnx(kind: type, x) -> tuple[nnx.State, Callable]:
    graph, params, rest = nnx.split(kind(nnx.Rngs(0)), nnx.Param, ...)
    return params, lambda p: nnx.merge(graph, p, rest)(x)


def of_leaves(outputs: Callable, shapes: dict) -> tuple[dict, Callable]:
    return {name: jax.ShapeDtypeStruct(shape, jnp.float64) for name, shape in shapes.items()}, outputs


# Model, input, layers expected. The keys of attention, which have a gradient only where they are several positions, are
# left out, and so are the values of attention to several.
GATES = {
    *(f"lstm.{side}{gate}" for side in "ih" for gate in "ifgo"),
    *(f"gru.{side}{gate}" for side in "ih" for gate in "rzn"),
    *("simple.i", "simple.h"),
}
NNX_GATES = {
    *(f"lstm.cell.{side}{gate}" for side in "ih" for gate in "ifgo" if (side, gate) != ("i", "f")),
    "lstm.cell.if_",
    *(f"{cell}.cell.dense_{side}" for cell in ("gru", "simple") for side in "ih"),
}
ATTENTION = {f"{name}.{k}" for name in ("bare", "attention") for k in ("query", "out")} | {"to_one.value", "to_one.out"}
CONVOLUTIONS = {"conv", "transposed", "of_int_size", "dilated", "head"}
EINSUMS = {"einsum", "plain_einsum"}
KINDS = {
    "dense": (linen, Dense(), VECTOR, {"split", "merged", "single", "head"} | EINSUMS),
    "attention": (linen, Attention(), VECTOR, ATTENTION | {"head"}),
    "convolutions": (linen, Convolutions(), IMAGE, CONVOLUTIONS),
    "transposed stride": (linen, TransposedStride(), IMAGE, {"transposed", "head"}),
    "embeddings": (linen, Words(), TOKENS, {"words", "dense", "classes"}),
    "scan over depth": (linen, Depth(), VECTOR, {"head", *(f"stack.dense[{i}]" for i in range(3))}),
    "recurrent": (linen, Recurrent(), VECTOR, GATES | {"head"}),
    "side by side": (
        linen,
        SideBySide(),
        VECTOR,
        {*(f"lstm.{side}{gate}" for side in "ih" for gate in "ifgo"), "a", "b", "head"},
    ),
    "low rank": (linen, LowRank(), VECTOR, {"a", "b"}),
    "NNX dense": (of_nnx, NnxDense, VECTOR, {"split", "merged", "head"} | EINSUMS),
    "NNX attention": (of_nnx, NnxAttention, VECTOR, ATTENTION | {"head"}),
    "NNX convolutions": (of_nnx, NnxConvolutions, IMAGE, CONVOLUTIONS),
    "NNX embeddings": (of_nnx, NnxWords, TOKENS, {"words", "dense", "classes"}),
    "NNX recurrent": (of_nnx, NnxRecurrent, VECTOR, NNX_GATES | {"head"}),
    "NNX scan over depth": (of_nnx, NnxDepth, VECTOR, {"head", *(f"stack[{i}]" for i in range(3))}),
    "transposed kernels": (of_leaves, transposed_kernels, {"body": (5, 4), "head": (N_CLASSES, 5)}, {"body", "head"}),
}


def gauss_newton(outputs: Callable, layers: list, params) -> dict[str, jax.Array]:
    """Layer name -> Jᵀ H J for its matrix, of one example's softmax loss."""
    logits = outputs(params).reshape(-1)
    h = jax.hessian(lambda z: optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(0)))(logits)
    of_leaves = jax.jacrev(lambda p: outputs(p).reshape(-1))(params)
    jacobians = {layer.name: jax.vmap(layer.read)(of_leaves).reshape(logits.size, -1) for layer in layers}
    return {name: j.T @ h @ j for name, j in jacobians.items()}


# The flavours are the same where there is one position, so that each kind has one of them.
@pytest.mark.parametrize(("kind", "sharing"), list(zip(KINDS, itertools.cycle(Sharing), strict=False)))
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
        for name, block in gauss_newton(outputs, [layers[name] for name in sorted(names)], params).items():
            sides = [side if m == n else jnp.diag(side[:, 0]) for side in batch.factors[name] for n, m in [side.shape]]
            errors[name] = jnp.abs(jnp.kron(*sides) - block).max(), jnp.abs(block).max()
        return errors

    for name, (error, size) in compare(params).items():
        assert error < 1e-9 * max(float(size), 1e-3), name
