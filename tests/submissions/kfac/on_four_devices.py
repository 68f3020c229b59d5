"""Estimates and steps under JAX's transformations, on 2 and 4 devices; `test_devices.py` runs this with four."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from submissions.kfac import (
    Fisher,
    Geometry,
    LossKind,
    Sharing,
    batch_layout,
    eigenbasis_adam,
    estimate,
    find_layers,
    kfac,
    kfac_muon,
)

jax.config.update("jax_disable_most_optimizations", True)  # every program here runs a few times only

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 3, 4)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 3, 8))
IS_EXAMPLE = jnp.asarray([1, 1, 1, 0, 1, 0, 0, 1.0])  # a different number on each device
BATCH = X, LABELS, IS_EXAMPLE
DEVICES = pytest.mark.parametrize("n_devices", [2, 4])


class Net(nn.Module):
    """Tokens, a learned query that no input reaches, and a head."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(5, name="tokens")(x)).mean(1)
        query = nn.Dense(5, name="query")(self.param("token", nn.initializers.normal(), (4,)))
        return nn.Dense(3, name="head")(x * query)


PARAMS = Net().init(jax.random.key(0), X)["params"]
LAYERS = tuple(layer for layer in find_layers(PARAMS) if layer.name != "query")


def estimated(params, batch, key=None, layers=LAYERS, **options):
    x, labels, is_example = batch

    def loss(logits):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (losses * is_example).sum(), is_example.sum()

    options = {"fisher": Fisher.EXACT, "sharing": Sharing.EXPAND} | options
    return estimate(
        lambda p: (Net().apply({"params": p}, x), None),
        loss,
        params,
        layers=layers,
        layout=batch_layout(len(x), is_example),
        geometry=Geometry(LossKind.SOFTMAX),
        weights=is_example,
        key=key,
        **options,
    )


def part(index: int, n_devices: int):
    return jax.tree.map(lambda x: x.reshape(n_devices, -1, *x.shape[1:])[index], BATCH)


def mesh(n_devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:n_devices]), ("devices",))


def sharded(function, n_devices: int, out_specs, **options):
    """`function(params, batch)` in `shard_map`, the batch split."""
    specs = PartitionSpec(), PartitionSpec("devices")
    return jax.jit(jax.shard_map(function, mesh=mesh(n_devices), in_specs=specs, out_specs=out_specs, **options))


def assert_equal(got, expected, atol=1e-6):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=2e-5, atol=atol), got, expected)


# After steps of about 0.1: where the gradient is zero but for rounding, Adam steps by the rounding's sign.
STEPS = {"atol": 1e-3}


@functools.cache
def whole(sharing, fisher):
    return arrays(estimated(PARAMS, BATCH, sharing=sharing, fisher=fisher))


def arrays(batch):
    return batch.loss, batch.gradients, batch.factors


@DEVICES
@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("fisher", [Fisher.EXACT, Fisher.EMPIRICAL])
def test_sums_over_devices_are_the_whole_batch_s(n_devices, sharing, fisher):
    def run(params, batch):
        return arrays(estimated(params, batch, sharing=sharing, fisher=fisher, axis_name="devices"))

    assert_equal(sharded(run, n_devices, PartitionSpec())(PARAMS, BATCH), whole(sharing, fisher))


def test_sums_over_devices_without_types_of_variation():
    def run(params, batch):
        return arrays(estimated(params, batch, axis_name="devices"))

    expected = whole(Sharing.EXPAND, Fisher.EXACT)
    assert_equal(sharded(run, 4, PartitionSpec(), check_vma=False)(PARAMS, BATCH), expected)
    parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), BATCH)
    mapped = jax.pmap(run, axis_name="devices", in_axes=(None, 0))(PARAMS, parts)
    vectorised = jax.vmap(run, axis_name="devices", in_axes=(None, 0))(PARAMS, parts)
    for index in range(4):
        for got in (mapped, vectorised):
            assert_equal(jax.tree.map(lambda x, i=index: x[i], got), expected)


@DEVICES
@pytest.mark.parametrize("layers", [LAYERS, ()], ids=["factors", "gradients alone"])
def test_without_an_axis_each_device_has_its_own(n_devices, layers):
    key = jax.random.key(7)

    def run(params, batch):
        own = arrays(estimated(params, batch, key, layers=layers, fisher=Fisher.SAMPLED))
        return jax.tree.map(lambda x: x[None], own)

    stacked = sharded(run, n_devices, PartitionSpec("devices"))(PARAMS, BATCH)
    for index in range(n_devices):
        own = arrays(estimated(PARAMS, part(index, n_devices), key, layers=layers, fisher=Fisher.SAMPLED))
        assert_equal(jax.tree.map(lambda x, i=index: x[i], stacked), own)


@DEVICES
def test_jit_of_a_batch_that_lies_on_several_devices(n_devices):
    batch = jax.device_put(BATCH, NamedSharding(mesh(n_devices), PartitionSpec("devices")))
    got = jax.jit(lambda params, batch: arrays(estimated(params, batch)))(PARAMS, batch)
    assert_equal(got, whole(Sharing.EXPAND, Fisher.EXACT))


@pytest.mark.parametrize("sharing", Sharing)
def test_jit_on_a_mesh_whose_arrays_know_their_sharding(sharing):
    """As `jax.make_mesh` makes it."""
    explicit = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Explicit,))
    params = jax.device_put(PARAMS, NamedSharding(explicit, PartitionSpec()))
    batch = jax.device_put(BATCH, NamedSharding(explicit, PartitionSpec("devices")))
    got = jax.jit(lambda params, batch: arrays(estimated(params, batch, sharing=sharing, fisher=Fisher.EMPIRICAL)))
    assert_equal(got(params, batch), whole(sharing, Fisher.EMPIRICAL))


@pytest.mark.parametrize("make", [kfac, eigenbasis_adam, kfac_muon])
def test_refreshes_spread_over_a_mesh_whose_arrays_know_their_sharding(make):
    found, updates = estimated(PARAMS, BATCH), {}
    options = {"learning_rate": 0.1} | ({"damping": 1e-2} if make is kfac else {})
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        own = jax.make_mesh((4,), ("devices",), axis_types=(axis_type,))
        optimizer = make(LAYERS, mesh=own, **options)
        given = jax.device_put((PARAMS, found.gradients, found.factors), NamedSharding(own, PartitionSpec()))

        def update(params, gradients, factors, optimizer=optimizer):
            return optimizer.update(gradients, optimizer.init(params), params, factors=factors, refresh=True)[0]

        updates[axis_type] = jax.device_get(jax.jit(update)(*given))
    assert_equal(updates[AxisType.Explicit], updates[AxisType.Auto], **STEPS)


def test_a_mesh_of_two_axes_of_which_one_splits_the_batch():
    both = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("devices", "model"))

    def mapped(specs, layers=LAYERS):
        def run(params, batch):
            return arrays(estimated(params, batch, layers=layers, axis_name="devices"))

        return jax.jit(jax.shard_map(run, mesh=both, in_specs=(PartitionSpec(), specs), out_specs=PartitionSpec()))

    assert_equal(mapped(PartitionSpec("devices"))(PARAMS, BATCH), whole(Sharing.EXPAND, Fisher.EXACT))
    for layers in (LAYERS, ()):
        with pytest.raises(ValueError, match="the outputs vary along the axis 'model', too: name all axes"):
            mapped(PartitionSpec(("devices", "model")), layers)(PARAMS, BATCH)


def test_devices_draw_their_own_pseudo_targets():
    def run(params, batch):
        return estimated(params, (X, LABELS, jnp.ones(8)), jax.random.key(0), axis_name="devices", **sampled).factors

    sampled = {"fisher": Fisher.SAMPLED}
    specs = PartitionSpec(), PartitionSpec("devices")
    mapped = jax.shard_map(run, mesh=mesh(4), in_specs=specs, out_specs=PartitionSpec())
    _, b = jax.jit(mapped)(PARAMS, jnp.arange(4))["head"]
    _, alone = estimated(PARAMS, (X, LABELS, jnp.ones(8)), jax.random.key(0), **sampled).factors["head"]
    assert np.abs(b - alone).max() > 1e-3


OPTIMIZERS = {
    "kfac": kfac(LAYERS, learning_rate=0.3, damping=1e-2, grad_clip=1.0),
    "adam": eigenbasis_adam(LAYERS, learning_rate=0.1, relative_epsilon=0.1),
    "muon": kfac_muon(LAYERS, learning_rate=0.02),
}
KINDS = pytest.mark.parametrize("kind", OPTIMIZERS)


def step(kind, carry, batch, **options):
    """One step with new factors, which are used at once."""
    params, state = carry
    found = estimated(params, batch, **options)
    updates, state = OPTIMIZERS[kind].update(found.gradients, state, params, factors=found.factors, refresh=True)
    return (optax.apply_updates(params, updates), state), found.loss


def start(kind, params=PARAMS):
    return params, OPTIMIZERS[kind].init(params)


@functools.cache
def three_steps(kind):
    carry, losses, jitted = start(kind), [], jax.jit(functools.partial(step, kind))
    for _ in range(3):
        carry, loss = jitted(carry, BATCH)
        losses.append(loss)
    return carry[0], jnp.stack(losses)


@DEVICES
@KINDS
def test_scan_over_steps_inside_shard_map(kind, n_devices):
    def run(params, batch):
        (params, _), losses = jax.lax.scan(
            lambda carry, _: step(kind, carry, batch, axis_name="devices"), start(kind, params), length=3
        )
        return params, losses

    assert_equal(sharded(run, n_devices, PartitionSpec())(PARAMS, BATCH), three_steps(kind), **STEPS)


@KINDS
def test_scan_over_steps(kind):
    """Of steps with and without new curvature, the kind chosen by the step's number."""
    optimizer = OPTIMIZERS[kind]

    def plain(carry):
        params, state = carry
        found = estimated(params, BATCH, layers=())
        updates, state = optimizer.update(found.gradients, state, params, factors={})
        return (optax.apply_updates(params, updates), state), found.loss

    def either(carry, index):
        return jax.lax.cond(index % 2 == 0, lambda c: step(kind, c, BATCH), plain, carry)

    (params, _), losses = jax.jit(lambda carry: jax.lax.scan(either, carry, jnp.arange(3)))(start(kind))
    with_new, without = jax.jit(lambda carry: step(kind, carry, BATCH)), jax.jit(plain)
    carry, expected = start(kind), []
    for index in range(3):
        carry, loss = with_new(carry) if index % 2 == 0 else without(carry)
        expected.append(loss)
    assert_equal((params, losses), (carry[0], jnp.stack(expected)), **STEPS)


@KINDS
def test_vmap_over_seeds(kind):
    seeds = [jax.tree.map(lambda x, s=s: x * (1 + 0.1 * s), PARAMS) for s in range(2)]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *(start(kind, params) for params in seeds))
    both = jax.jit(jax.vmap(functools.partial(step, kind), in_axes=(0, None)))
    for _ in range(2):
        stacked, losses = both(stacked, BATCH)
    alone, jitted = [start(kind, params) for params in seeds], jax.jit(functools.partial(step, kind))
    for index, carry in enumerate(alone):
        for _ in range(2):
            carry, loss = jitted(carry, BATCH)
        got = jax.tree.map(lambda x, i=index: x[i], (stacked[0], losses))
        assert_equal(got, (carry[0], loss), **STEPS)


@KINDS
def test_donated_parameters_and_state(kind):
    carry, jitted = jax.tree.map(jnp.copy, start(kind)), jax.jit(functools.partial(step, kind), donate_argnums=0)
    for _ in range(3):
        given = jax.tree.leaves(carry)
        carry, _ = jitted(carry, BATCH)
        assert all(leaf.is_deleted() for leaf in given)
    assert_equal(carry[0], three_steps(kind)[0], **STEPS)
