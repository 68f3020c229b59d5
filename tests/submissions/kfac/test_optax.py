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
    CurvatureWarning,
    Fisher,
    Geometry,
    Length,
    LossKind,
    batch_layout,
    eigenbasis_adam,
    estimate,
    find_layers,
    kfac,
    kfac_muon,
)
from submissions.kfac.adaptive import EigenbasisState
from submissions.kfac.muon import MuonState
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


# Each with numbers of which an update shows any change.
OPTIMIZERS = {
    "kfac": functools.partial(kfac, **SETTINGS),
    "eigenbasis_adam": functools.partial(eigenbasis_adam, learning_rate=0.3),
    "kfac_muon": functools.partial(kfac_muon, learning_rate=0.3, damping=0.01),
}
EACH = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def updated(optimizer, params=PARAMS, n_steps=1, **options):
    """The last updates and the state, of steps with new factors."""
    options = {"gradients": batch().gradients, "factors": batch().factors, "refresh": True} | options
    gradients, state = options.pop("gradients"), optimizer.init(params)
    update = jax.jit(lambda state: optimizer.update(gradients, state, params, **options))
    for _ in range(n_steps):
        updates, state = update(state)
    return updates, state


def assert_equal(got, expected, atol=1e-7):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=atol), got, expected)


# Of updates of about 0.3: eigenvectors are rounded otherwise in another program.
OTHER_PROGRAM = {"atol": 1e-5}


def label(kind):
    """Labels of the parameters: `kind` for those of path `(layer, leaf)`, else "own"."""
    return {layer: {leaf: kind.get((layer, leaf), "own") for leaf in leaves} for layer, leaves in PARAMS.items()}


@EACH
def test_multi_transform_with_a_layer_elsewhere(make):
    labels = label({("body", "kernel"): "sgd", ("body", "bias"): "sgd"})
    updates, state = updated(optax.multi_transform({"own": make(LAYERS), "sgd": optax.sgd(0.1)}, labels))
    assert_equal(updates["body"], jax.tree.map(lambda g: -0.1 * g, batch().gradients["body"]))
    head, gradients = ({"head": tree["head"]} for tree in (PARAMS, batch().gradients))
    factors = {"head": batch().factors["head"]}
    expected, _ = updated(make(find_layers(head)), head, gradients=gradients, factors=factors)
    assert_equal(updates["head"], expected["head"])
    (own,) = states_of(state, KFACState | EigenbasisState | MuonState)
    assert list(own.factors) == ["5x2"]


def routed_elsewhere(make, wrap, leaf):
    """An optimiser of all leaves but one, which has plain gradient descent."""
    labels = label({leaf: "sgd"})
    if wrap == "multi_transform":
        return optax.multi_transform({"own": make(LAYERS), "sgd": optax.sgd(0.1)}, labels)
    mask = jax.tree.map(lambda kind: kind == "own", labels)
    others = jax.tree.map(lambda is_own: not is_own, mask)
    return optax.chain(optax.masked(make(LAYERS), mask), optax.masked(optax.sgd(0.1), others))


def without_head_bias(tree):
    return {**tree, "head": {"kernel": tree["head"]["kernel"]}}


@EACH
@pytest.mark.parametrize("wrap", ["masked", "multi_transform"])
def test_a_bias_elsewhere_leaves_a_layer_without_a_bias(make, wrap):
    updates, _ = updated(routed_elsewhere(make, wrap, ("head", "bias")))
    assert_equal(updates["head"]["bias"], -0.1 * batch().gradients["head"]["bias"])
    factors = dict(batch().factors)
    factors["head"] = factors["head"][0][:-1, :-1], factors["head"][1]
    params, gradients = map(without_head_bias, (PARAMS, batch().gradients))
    expected, _ = updated(make(find_layers(params)), params, gradients=gradients, factors=factors)
    assert_equal(without_head_bias(updates), expected)


@EACH
def test_a_kernel_elsewhere_leaves_its_bias_to_the_fallback(make):
    updates, _ = updated(routed_elsewhere(make, "masked", ("head", "kernel")))
    assert_equal(updates["head"]["kernel"], -0.1 * batch().gradients["head"]["kernel"])
    bias, gradient = ({"bias": tree["head"]["bias"]} for tree in (PARAMS, batch().gradients))
    with pytest.warns(CurvatureWarning, match="the optimizer has no layers"):
        expected, _ = updated(make(()), bias, gradients=gradient, factors=None)
    assert_equal(updates["head"]["bias"], expected["bias"])


def test_layers_of_other_parameters_are_refused():
    with pytest.raises(ValueError, match="no head.kernel, head.bias: find the layers of these parameters"):
        kfac(LAYERS, **SETTINGS).init({"body": PARAMS["body"]})


@EACH
def test_multi_steps_uses_the_mean_gradient_and_the_last_factors(make):
    accumulated = optax.MultiSteps(make(LAYERS), every_k_schedule=2)
    gradients = [batch().gradients, jax.tree.map(lambda g: 3 * g, batch().gradients)]
    state = accumulated.init(PARAMS)
    none, state = jax.jit(functools.partial(accumulated.update, factors=None))(gradients[0], state, PARAMS)
    assert not any(map(np.any, jax.tree.leaves(none)))
    update = functools.partial(accumulated.update, factors=batch().factors, refresh=True)
    updates, state = jax.jit(update)(gradients[1], state, PARAMS)
    mean = jax.tree.map(lambda g: 2 * g, batch().gradients)
    assert_equal(updates, updated(make(LAYERS), gradients=mean)[0], **OTHER_PROGRAM)


@EACH
def test_inject_hyperparams(make):
    injected = optax.inject_hyperparams(make.func, static_args="mesh")(LAYERS, **make.keywords)
    state = injected.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.6)
    updates, _ = injected.update(batch().gradients, state, PARAMS, factors=batch().factors, refresh=True)
    assert_equal(updates, updated(make(LAYERS, learning_rate=0.6))[0], **OTHER_PROGRAM)


SCHEDULES = {
    "eigenbasis_adam": {
        "learning_rate": lambda count: 0.3 / (1 + count),
        "beta1": lambda count: 0.8 + 0.1 * count,
        "beta2": lambda count: 0.9 + 0.05 * count,
        "epsilon": lambda count: 1e-3 * (1 + count),
        "relative_epsilon": lambda count: 0.1 * (1 + count),
        "weight_decay": lambda count: 0.01 * count,
        "grad_clip": lambda count: 0.1 + count,
        "factor_decay": lambda count: 0.3 - 0.2 * count,
    },
    "kfac_muon": {
        "learning_rate": lambda count: 0.3 / (1 + count),
        "damping": lambda count: 0.1 * 0.5**count,
        "beta1": lambda count: 0.8 + 0.1 * count,
        "beta2": lambda count: 0.9 + 0.05 * count,
        "epsilon": lambda count: 1e-3 * (1 + count),
        "weight_decay": lambda count: 0.01 * count,
        "grad_clip": lambda count: 0.1 + count,
        "factor_decay": lambda count: 0.3 - 0.2 * count,
    },
}


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_number_may_be_a_schedule(name, is_masked):
    """Two steps with other gradients and factors, by schedules and by the numbers of each step."""
    make, schedules = OPTIMIZERS[name].func, SCHEDULES[name]

    def wrapped(**numbers):
        own = make(LAYERS, **numbers)
        return optax.masked(own, jax.tree.map(lambda _: True, PARAMS)) if is_masked else own

    def two_steps(optimizer_of):
        params, state = PARAMS, optimizer_of(0).init(PARAMS)
        for index in range(2):
            scale = 1 + index
            gradients, factors = jax.tree.map(lambda x, s=scale: s * x, (batch().gradients, batch().factors))
            update = jax.jit(functools.partial(optimizer_of(index).update, factors=factors, refresh=True))
            updates, state = update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = two_steps(lambda index: wrapped(**schedules))
    expected, _ = two_steps(lambda index: wrapped(**{key: of(index) for key, of in schedules.items()}))
    assert_equal(params, expected, **OTHER_PROGRAM)
    assert set((state.inner_state if is_masked else state).hyperparams) == set(schedules)


@EACH
def test_new_factors_are_used_unless_told_otherwise(make):
    default, _ = updated(make(LAYERS), refresh=None)
    assert_equal(default, updated(make(LAYERS), refresh=True)[0])
    unused, _ = updated(make(LAYERS), refresh=False)
    assert np.abs(unused["body"]["kernel"] - default["body"]["kernel"]).max() > 1e-3


@EACH
def test_arguments_for_other_transformations_are_passed_over(make):
    plateau = optax.chain(make(LAYERS), optax.contrib.reduce_on_plateau())
    assert_equal(updated(plateau, value=jnp.float32(1.0))[0], updated(make(LAYERS))[0], **OTHER_PROGRAM)


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


@pytest.mark.parametrize("optimizer", [kfac, kfac_muon, eigenbasis_adam])
def test_updates_of_the_wrong_form_are_told_what_is_due(optimizer):
    settings = SETTINGS if optimizer is not eigenbasis_adam else {"learning_rate": 0.3}
    tx = optimizer(LAYERS, **settings)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="the gradients are None: .*with_gradients=False"):
        tx.update(None, state, PARAMS, factors=None)
    with pytest.raises(ValueError, match=r"factors is a list: give `estimate\(...\).factors`, or None"):
        tx.update(PARAMS, state, PARAMS, factors=[])
    with pytest.raises(ValueError, match="refresh is a traced value; it must be a bool"):
        jax.jit(lambda refresh: tx.update(PARAMS, state, PARAMS, factors=None, refresh=refresh)[0])(True)
    with pytest.raises(ValueError, match="layers is the one layer body"):
        optimizer(LAYERS[0], **settings)
    if optimizer is not kfac_muon:
        with pytest.raises(ValueError, match="no output factors: call `estimate` with output_factors=True"):
            tx.update(PARAMS, state, PARAMS, factors={"body": (jnp.eye(4), None)})


@pytest.mark.parametrize(
    ("option", "kind"), [("length", "Length"), ("momentum_kind", "Momentum"), ("weight_decay_kind", "WeightDecay")]
)
def test_an_option_that_is_no_member_of_its_enum_is_refused(option, kind):
    with pytest.raises(ValueError, match=f"{option} is 'layerwise'; it must be one of {kind}"):
        kfac(LAYERS, **SETTINGS, **{option: "layerwise"})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("length", Length)
def test_updates_have_the_dtype_of_the_gradients(dtype, length):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    tx = optax.apply_if_finite(kfac(LAYERS, **SETTINGS, length=length), 3)
    state = tx.init(params)
    updates, _ = tx.update(params, state, params, factors={"body": (jnp.eye(4), jnp.eye(4))}, refresh=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("optimizer", [kfac, kfac_muon, eigenbasis_adam], ids=lambda optimizer: optimizer.__name__)
def test_a_step_under_strict_promotion_is_the_usual_step(optimizer):
    params = Net().init(jax.random.key(0), X)["params"]
    layers = find_layers(params)
    own = optimizer(layers, learning_rate=0.1, grad_clip=1.0, **({"damping": 1e-2} if optimizer is kfac else {}))

    def step():
        def forward(p):
            return Net().apply({"params": p}, X), None

        def loss(z):
            return 0.5 * jnp.square(z - Y).sum(), jnp.float32(6)

        batch = estimate(forward, loss, params, layers=layers, layout=batch_layout(6), fisher=Fisher.EMPIRICAL)
        return own.update(batch.gradients, own.init(params), params, factors=batch.factors, refresh=True)[0]

    expected = step()
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = step()
    jax.tree.map(np.testing.assert_array_equal, got, expected)
