"""Layers whose arrays are stacked train as each would alone, whatever their neighbours in the stack are given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import eigenbasis_adam, find_layers, kfac, kfac_muon

RNG = np.random.default_rng(0)
N_STEPS = 4
NAMES = ("one", "two", "three")


def leaves(dtype=jnp.float32) -> dict[str, jax.Array]:
    return {"kernel": jnp.asarray(RNG.normal(size=(5, 3)), dtype), "bias": jnp.asarray(RNG.normal(size=3), dtype)}


def covariance(size: int) -> jax.Array:
    rows = RNG.normal(size=(2 * size, size))
    return jnp.asarray(rows.T @ rows / len(rows), jnp.float32)


PARAMS = {name: leaves() for name in NAMES}
GRADIENTS = [{name: leaves() for name in NAMES} for _ in range(N_STEPS)]
FACTORS = [{name: (covariance(6), covariance(3)) for name in NAMES} for _ in range(N_STEPS)]

WAYS = {
    "kfac": functools.partial(kfac, learning_rate=0.1, damping=0.05, kl_clip=1e9),  # it bounds all layers together
    "muon": functools.partial(kfac_muon, learning_rate=0.1, damping=0.05),
    "power": functools.partial(eigenbasis_adam, learning_rate=0.1, full_refreshes=2),
    "adam": functools.partial(eigenbasis_adam, learning_rate=0.1),
}


@functools.cache
def compiled(way: str, n_layers: int):
    """The optimiser of so many layers, by whatever names, and its compiled update."""
    names = [str(i) for i in range(n_layers)]
    optimizer = WAYS[way](find_layers(dict.fromkeys(names, PARAMS["one"])))
    return optimizer, jax.jit(optimizer.update, static_argnames="refresh")


def run(way: str, names=NAMES, factors=FACTORS, gradients=GRADIENTS):
    """The parameters of the named layers after the last step, and how often something was faulty."""
    optimizer, update = compiled(way, len(names))

    def own(tree):
        return {str(i): tree[name] for i, name in enumerate(names) if name in tree}

    params = own(PARAMS)
    state = optimizer.init(params)
    for step in range(N_STEPS):
        updates, state = update(own(gradients[step]), state, params, factors=own(factors[step]), refresh=True)
        params = optax.apply_updates(params, updates)
    n_faulty = sum(int(part.fallbacks.n_faulty) for part in state if hasattr(part, "fallbacks"))
    return {name: params[str(i)] for i, name in enumerate(names)}, n_faulty


def assert_each_as_alone(way: str, n_faulty: int, **given) -> None:
    together, n_together = run(way, **given)
    alone = {name: run(way, (name,), **given) for name in NAMES}
    assert n_together == n_faulty == sum(n for _, n in alone.values())
    for name, (params, _) in alone.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together[name], params[name])


@pytest.mark.parametrize("way", WAYS)
def test_layers_train_together_as_alone(way):
    assert_each_as_alone(way, 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_without_factors_leaves_its_neighbours_theirs(way):
    """Never given any, as where a layer is not captured, and in one step alone; neither is a fallback to count."""
    some = [{name: pair for name, pair in step.items() if name != "two"} for step in FACTORS]
    assert_each_as_alone(way, 0, factors=some)
    assert_each_as_alone(way, 0, factors=[FACTORS[0], some[1], *FACTORS[2:]])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_a_number_in_one_layer_stays_there(way):
    broken = {**FACTORS[1], "two": (jnp.full((6, 6), jnp.nan), FACTORS[1]["two"][1])}
    assert_each_as_alone(way, 1, factors=[FACTORS[0], broken, *FACTORS[2:]])
    lost = {**GRADIENTS[2], "three": jax.tree.map(lambda g: g.at[0].set(jnp.nan), GRADIENTS[2]["three"])}
    assert_each_as_alone(way, 1, gradients=[*GRADIENTS[:2], lost, GRADIENTS[3]])


def test_parameters_of_half_precision_keep_it_and_the_state_its_own():
    """With numbers that are arrays, as in a compiled step, which the next call would else compile again."""
    numbers = {"learning_rate": jnp.float32(0.1), "beta1": jnp.float32(0.9), "beta2": jnp.float32(0.99)}
    params = {"dense": leaves(jnp.bfloat16), "norm": {"scale": jnp.ones(3, jnp.bfloat16)}}
    optimizer = eigenbasis_adam(find_layers(params), **numbers)
    state = optimizer.init(params)
    updates, new = optimizer.update(params, state, params, factors={"dense": FACTORS[0]["one"]}, refresh=True)
    assert dtypes(optax.apply_updates(params, updates)) == dtypes(params)
    assert dtypes(new) == dtypes(state)


def dtypes(tree):
    return jax.tree.map(lambda x: x.dtype, tree)
