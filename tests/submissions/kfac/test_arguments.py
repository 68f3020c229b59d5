"""Arguments of an estimate that have the wrong form are told what is due."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, batch_layout, estimate, find_layers, row_layout, trace_layers

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(RNG.normal(size=(6, n)), jnp.float32) for n in (3, 2))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(jnp.tanh(nn.Dense(4, name="body")(x)))


PARAMS = Net().init(jax.random.key(0), X)["params"]
LAYERS = find_layers(PARAMS)


def outputs(params):
    return Net().apply({"params": params}, X)


def squares(outputs):
    return 0.5 * jnp.square(outputs - Y).sum(), jnp.float32(len(Y))


def estimated(params, loss=squares, **options):
    options = {"geometry": Geometry(LossKind.SQUARE), "fisher": Fisher.EXACT, "layout": batch_layout(len(X))} | options
    layers = options.pop("layers", LAYERS)
    return estimate(lambda p: (outputs(p), None), loss, params, layers=layers, **options)


def assert_equal(got, expected):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-7), got, expected)


COUNT = jnp.float32(6)
WRONG_LOSSES = {
    "returned an array": lambda z: jnp.square(z - Y).mean(),
    "a tuple of 3": lambda z: (jnp.square(z - Y).sum(), COUNT, None),
    "its loss is an array": lambda z: (jnp.square(z - Y).sum(1), COUNT),
    "its loss is a mean": lambda z: (jnp.square(z - Y).mean(), COUNT),
    "its number of terms is the int 6": lambda z: (jnp.square(z - Y).sum(), 6),
    "its number of terms is an array": lambda z: (jnp.square(z - Y).sum(), jnp.ones(6)),
}


@pytest.mark.parametrize("message", WRONG_LOSSES)
@pytest.mark.parametrize("layers", [LAYERS, ()], ids=["factors", "gradients alone"])
def test_a_loss_of_the_wrong_form_is_told_what_is_due(message, layers):
    with pytest.raises(ValueError, match=f"summed loss, number of terms.*{message}"):
        estimated(PARAMS, WRONG_LOSSES[message], layers=layers)


def squares_of(z):
    return jnp.square(z - Y)


MEANS = {
    "a negative one": lambda z: (-(-squares_of(z)).mean(), COUNT),
    "half of one": lambda z: (0.5 * squares_of(z).mean(), COUNT),
    "a sum over the number of terms": lambda z: (squares_of(z).sum() / COUNT, COUNT),
    "a sum over the number of rows": lambda z: (squares_of(z).sum() / len(z), COUNT),
    "of sums of rows": lambda z: (squares_of(z).sum(1).mean(), COUNT),
    "of a jitted function": jax.jit(lambda z: (squares_of(z).mean(), COUNT)),
    "of a jitted function inside": lambda z: (jax.jit(lambda z: squares_of(z).mean())(z), COUNT),
    "two of them": lambda z: (squares_of(z).mean() + 0.1 * jnp.abs(z).mean(), COUNT),
}


@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
def test_a_mean_is_known_as_one(loss):
    with pytest.raises(ValueError, match="its loss is a mean"):
        estimated(PARAMS, loss, layers=())


def test_a_mean_over_real_examples_is_a_mean():
    weights = jnp.array([1.0, 1, 1, 1, 0, 0])

    def loss(z):
        return (jnp.square(z - Y).sum(1) * weights).sum() / jnp.maximum(weights.sum(), 1), COUNT

    with pytest.raises(ValueError, match="its loss is a mean"):
        jax.jit(lambda p: estimated(p, loss).loss)(PARAMS)


SUMS = {
    "half of one": lambda z: 0.5 * jnp.square(z).sum(),
    "one over two": lambda z: jnp.square(z).sum() / 2,
    "of means of rows": lambda z: jnp.square(z).mean(-1).sum(),
    "and a mean": lambda z: jnp.square(z).sum() + jnp.abs(z).mean(),
}
MASK = jnp.array([1.0, 1, 1, 1, 0, 0])
MULTIPLIED = {
    "the number, in Python": lambda z: (squares_of(z).mean() * 6, COUNT),
    "the number, before": lambda z: (len(z) * squares_of(z).mean(), jnp.asarray(float(len(z)))),
    "a traced number": lambda z: (squares_of(z).mean() * (n := jnp.square(z[0, 0])), n),
    "the sum of weights": lambda z: (jnp.average(squares_of(z).sum(1), weights=MASK) * MASK.sum(), MASK.sum()),
    "a traced sum of weights": jax.jit(
        lambda z: (jnp.average(squares_of(z).sum(1), weights=z[:, 0]) * z[:, 0].sum(), z[:, 0].sum())
    ),
}


@pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)
def test_a_sum_is_no_mean(loss):
    assert estimated(PARAMS, lambda z: (loss(z), COUNT), layers=()).loss > 0


@pytest.mark.parametrize("loss", MULTIPLIED.values(), ids=MULTIPLIED)
def test_a_mean_times_the_number_of_terms_is_a_sum(loss):
    assert estimated(PARAMS, loss, layers=()).loss is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": LossKind.SQUARE}, "give Geometry"),
        ({"geometry": Geometry("square")}, "the geometry's kind is 'square'; it must be one of LossKind.SOFTMAX"),
        ({"layers": LAYERS[0]}, "layers is the one layer body: give a sequence"),
        ({"weights": 0.5}, "weights is 0.5; it must be an array"),
        ({"weights": jnp.ones(5)}, r"weights have the shape .5.; it must be the shape of the logits, .6, 2."),
        ({"geometry": "square"}, "give a Geometry"),
        ({"fisher": "exact"}, "fisher is 'exact'; it must be one of Fisher.SAMPLED"),
        ({"sharing": "reduce"}, "sharing is 'reduce'; it must be one of Sharing.EXPAND"),
        ({"fisher": Fisher.SAMPLED}, "give a key"),
        ({"layout": None}, "need the batch's layout"),
        ({"layout": 6}, "give that of `batch_layout`"),
        ({"layers": None}, "give layers, or `layers=\\(\\)`"),
        ({"layers": ["head"]}, "a layer is 'head': give those that"),
        ({"geometry": [Geometry(LossKind.SQUARE)] * 2}, "1 heads of logits, 2 geometries"),
        ({"logits": lambda z: z[:, 0], "geometry": Geometry(LossKind.SOFTMAX)}, "must be .examples, ..., classes"),
    ],
)
def test_options_of_the_wrong_form_are_told_what_is_due(options, message):
    with pytest.raises(ValueError, match=message):
        estimated(PARAMS, **options)


@pytest.mark.parametrize("layers", [LAYERS, ()], ids=["factors", "gradients alone"])
def test_a_forward_pass_without_auxiliary_values_is_told_what_is_due(layers):
    with pytest.raises(ValueError, match=r"returned an array \[6, 2\]: return \(outputs, None\)"):
        estimate(outputs, squares, PARAMS, layers=layers, layout=batch_layout(len(X)), fisher=Fisher.EMPIRICAL)
    with pytest.raises(ValueError, match="must return"):
        trace_layers(PARAMS, outputs)


@pytest.mark.parametrize("reshape", [lambda z: z.swapaxes(0, 1), lambda z: z.reshape(12, 2)], ids=["swapped", "flat"])
def test_the_exact_fisher_needs_the_examples_first(reshape):
    """It has all positions of an example at once, so that it must know them."""

    def twice(params):
        return jnp.stack([outputs(params)] * 2, 1), None

    options = {"layers": LAYERS, "layout": batch_layout(6), "geometry": Geometry(LossKind.SQUARE)}
    run = functools.partial(estimate, twice, lambda z: (0.5 * jnp.square(z).sum(), COUNT), PARAMS, **options)
    with pytest.raises(ValueError, match="needs logits .6 examples"):
        run(logits=reshape, fisher=Fisher.EXACT)
    assert set(run(logits=reshape, key=jax.random.key(0)).factors) == {"body", "head"}


class Heads(NamedTuple):
    left: jax.Array
    right: jax.Array


def test_heads_may_be_a_named_tuple():
    def both(pick):
        geometry = (Geometry(LossKind.SQUARE), Geometry(LossKind.SQUARE, 2.0))
        return estimated(PARAMS, logits=pick, geometry=geometry).factors

    assert_equal(both(lambda z: Heads(z[:, :1], z[:, 1:])), both(lambda z: (z[:, :1], z[:, 1:])))


def test_several_outputs_are_not_all_heads_by_themselves():
    def forward(params):
        return (outputs(params), X), None

    def run(**options):
        given = {"layers": LAYERS, "layout": batch_layout(len(X)), "key": jax.random.key(0)} | options
        return estimate(forward, lambda z: squares(z[0]), PARAMS, **given)

    with pytest.raises(ValueError, match="outputs are 2 arrays, and the geometry is that of one: give `logits`"):
        run(geometry=Geometry(LossKind.SQUARE))
    assert set(run(geometry=Geometry(LossKind.SQUARE), logits=lambda z: z[0]).factors) == {"body", "head"}
    assert set(run(geometry=[Geometry(LossKind.SQUARE)] * 2).factors) == {"body", "head"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: batch_layout(X), "n_examples is a .*Array.*; it must be an int"),
        (lambda: batch_layout(6, jnp.ones(5)), r"is_example must be .6.; its shape is .5."),
        (lambda: batch_layout(6, is_token=[[True]]), r"is_token must be .6, positions.; its shape is"),
        (lambda: row_layout(6, jnp.arange(12)), "examples is one array: give a sequence"),
    ],
)
def test_layouts_of_the_wrong_form_are_told_what_is_due(make, message):
    with pytest.raises(ValueError, match=message):
        make()
