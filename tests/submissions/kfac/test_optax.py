"""Optimisers of layers with what optax and Flax put around an optimiser."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from submissions.kfac import (
    Fisher,
    Geometry,
    LossKind,
    batch_layout,
    estimate,
    find_layers,
    kfac,
)
from submissions.kfac.routing import states_of
from submissions.kfac.transform import KFACState

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(RNG.normal(size=(6, n)), jnp.float32) for n in (3, 2))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(jnp.tanh(nn.Dense(4, name="body")(x)))


PARAMS = Net().init(jax.random.key(0), X)["params"]
LAYERS = find_layers(PARAMS)
SETTINGS = {"learning_rate": 0.3, "damping": 0.01}


def squares(outputs):
    return 0.5 * jnp.square(outputs - Y).sum(), jnp.float32(len(Y))


def estimated(params, loss=squares, **options):
    options = {"geometry": Geometry(LossKind.SQUARE), "fisher": Fisher.EXACT, "layout": batch_layout(len(X))} | options
    layers = options.pop("layers", LAYERS)
    return estimate(lambda p: (Net().apply({"params": p}, X), None), loss, params, layers=layers, **options)


@functools.cache
def batch():
    return jax.jit(estimated)(PARAMS)


def updated(optimizer, params=PARAMS, n_steps=1, **options):
    """The last updates and the state, of steps with new factors."""
    options = {"factors": batch().factors, "refresh": True} | options
    state = optimizer.init(params)
    update = jax.jit(lambda state: optimizer.update(batch().gradients, state, params, **options))
    for _ in range(n_steps):
        updates, state = update(state)
    return updates, state


def assert_equal(got, expected):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-7), got, expected)


def label(kind):
    """Labels of the parameters: `kind` for those of path `(layer, leaf)`, else "kfac"."""
    return {layer: {leaf: kind.get((layer, leaf), "kfac") for leaf in leaves} for layer, leaves in PARAMS.items()}


def test_multi_transform_with_a_layer_elsewhere():
    labels = label({("body", "kernel"): "sgd", ("body", "bias"): "sgd"})
    routed = optax.multi_transform({"kfac": kfac(LAYERS, **SETTINGS), "sgd": optax.sgd(0.1)}, labels)
    updates, state = updated(routed)
    assert_equal(updates["body"], jax.tree.map(lambda g: -0.1 * g, batch().gradients["body"]))
    head = {"head": PARAMS["head"]}
    alone = kfac(find_layers(head), **SETTINGS)
    factors = {"head": batch().factors["head"]}
    expected, _ = alone.update(
        {"head": batch().gradients["head"]}, alone.init(head), head, factors=factors, refresh=True
    )
    assert_equal(updates["head"], expected["head"])
    assert list(states_of(state, KFACState)[0].factors) == ["5x2"]


@pytest.mark.parametrize("wrap", ["masked", "multi_transform"])
def test_a_bias_elsewhere_leaves_a_layer_without_a_bias(wrap):
    own = kfac(LAYERS, **SETTINGS)
    if wrap == "masked":
        mask = jax.tree.map(lambda kind: kind == "kfac", label({("head", "bias"): "other"}))
        routed = optax.chain(optax.masked(own, mask), optax.masked(optax.sgd(0.1), jax.tree.map(lambda m: not m, mask)))
    else:
        labels = label({("head", "bias"): "sgd"})
        routed = optax.multi_transform({"kfac": own, "sgd": optax.sgd(0.1)}, labels)
    updates, _ = updated(routed)
    assert_equal(updates["head"]["bias"], -0.1 * batch().gradients["head"]["bias"])
    factors = dict(batch().factors)
    factors["head"] = factors["head"][0][:-1, :-1], factors["head"][1]
    params, gradients = ({**tree, "head": {"kernel": tree["head"]["kernel"]}} for tree in (PARAMS, batch().gradients))
    alone = kfac(find_layers(params), **SETTINGS)
    expected, _ = alone.update(gradients, alone.init(params), params, factors=factors, refresh=True)
    assert_equal(updates["head"]["kernel"], expected["head"]["kernel"])
    assert_equal(updates["body"], expected["body"])


def test_a_kernel_elsewhere_leaves_its_bias_to_the_fallback():
    routed = optax.masked(kfac(LAYERS, **SETTINGS), label({("head", "kernel"): False}))
    updates, _ = updated(routed)
    assert_equal(updates["head"]["kernel"], batch().gradients["head"]["kernel"])
    # the first step of the fallback, 0.1 sign(g), looked ahead by Nesterov's momentum of 0.9
    assert_equal(updates["head"]["bias"], -0.3 * 1.9 * 0.1 * jnp.sign(batch().gradients["head"]["bias"]))


def test_layers_of_other_parameters_are_refused():
    with pytest.raises(ValueError, match="no head.kernel, head.bias: find the layers of these parameters"):
        kfac(LAYERS, **SETTINGS).init({"body": PARAMS["body"]})


def test_multi_steps_uses_the_mean_gradient_and_the_last_factors():
    accumulated = optax.MultiSteps(kfac(LAYERS, **SETTINGS), every_k_schedule=2)
    gradients = [batch().gradients, jax.tree.map(lambda g: 3 * g, batch().gradients)]
    state = accumulated.init(PARAMS)
    none, state = jax.jit(functools.partial(accumulated.update, factors=None))(gradients[0], state, PARAMS)
    assert not any(map(np.any, jax.tree.leaves(none)))
    update = functools.partial(accumulated.update, factors=batch().factors, refresh=True)
    updates, state = jax.jit(update)(gradients[1], state, PARAMS)
    plain = kfac(LAYERS, **SETTINGS)
    mean = jax.tree.map(lambda g: 2 * g, batch().gradients)
    expected, _ = plain.update(mean, plain.init(PARAMS), PARAMS, factors=batch().factors, refresh=True)
    assert_equal(updates, expected)


def test_inject_hyperparams():
    injected = optax.inject_hyperparams(kfac, static_args="mesh")(LAYERS, **SETTINGS)
    state = injected.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.6)
    updates, _ = injected.update(batch().gradients, state, PARAMS, factors=batch().factors, refresh=True)
    assert_equal(updates, updated(kfac(LAYERS, **SETTINGS | {"learning_rate": 0.6}))[0])


def test_train_state_by_its_transformation():
    state = TrainState.create(apply_fn=Net().apply, params=PARAMS, tx=kfac(LAYERS, **SETTINGS))
    with pytest.warns(UserWarning, match="without `factors`"):
        state.apply_gradients(grads=batch().gradients)
    updates, opt_state = state.tx.update(
        batch().gradients, state.opt_state, state.params, factors=batch().factors, refresh=True
    )
    params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    assert_equal(state.params, optax.apply_updates(PARAMS, updated(kfac(LAYERS, **SETTINGS))[0]))
    assert int(states_of(state.opt_state, KFACState)[0].factors["4x4"][0].n_estimates[0]) == 1


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.body(x)))


def test_nnx_optimizer():
    model = NNXNet(nnx.Rngs(0))
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(nnx.state(model)), jax.tree.leaves(PARAMS)))
    graph, params = nnx.split(model, nnx.Param)
    layers = find_layers(params)
    optimizer = nnx.Optimizer(model, kfac(layers, **SETTINGS), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        graph, params = nnx.split(model, nnx.Param)
        found = estimate(
            lambda p: (nnx.merge(graph, p)(X), None),
            squares,
            params,
            layers=layers,
            layout=batch_layout(len(X)),
            fisher=Fisher.EXACT,
            geometry=Geometry(LossKind.SQUARE),
        )
        optimizer.update(model, found.gradients, factors=found.factors, refresh=True)

    step(model, optimizer)
    expected = optax.apply_updates(PARAMS, updated(kfac(LAYERS, **SETTINGS))[0])
    for got, value in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)


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


def test_a_mean_over_real_examples_is_a_mean():
    weights = jnp.array([1.0, 1, 1, 1, 0, 0])

    def loss(z):
        return (jnp.square(z - Y).sum(1) * weights).sum() / jnp.maximum(weights.sum(), 1), COUNT

    with pytest.raises(ValueError, match="its loss is a mean"):
        jax.jit(lambda p: estimated(p, loss).loss)(PARAMS)


@pytest.mark.parametrize("loss", [lambda z: 0.5 * jnp.square(z).sum(), lambda z: jnp.square(z).sum() / 2])
def test_other_factors_of_a_sum_are_no_means(loss):
    assert estimated(PARAMS, lambda z: (loss(z), COUNT), layers=()).loss > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": LossKind.SQUARE}, "give Geometry"),
        ({"geometry": "square"}, "give a Geometry"),
        ({"fisher": "exact"}, "fisher is 'exact'; it must be one of Fisher.SAMPLED"),
        ({"sharing": "reduce"}, "sharing is 'reduce'; it must be one of Sharing.EXPAND"),
        ({"fisher": Fisher.SAMPLED}, "give a key"),
        ({"layout": None}, "need the batch's layout"),
    ],
)
def test_options_of_the_wrong_form_are_told_what_is_due(options, message):
    with pytest.raises(ValueError, match=message):
        estimated(PARAMS, **options)
