"""A refresh in a program of its own, then a step: together the update that is given the factors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import Length, Momentum, eigenbasis_adam, find_layers, kfac, kfac_muon, refresh_curvature

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
PARAMS = {
    "dense": {"kernel": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), "bias": jnp.ones(3)},
    "scale": jnp.ones(4),
}
LAYERS = find_layers(PARAMS)
N_STEPS = 3


def covariance(n):
    x = RNG.normal(size=(2 * n, n))
    return jnp.asarray(x.T @ x / len(x), jnp.float32)


GRADIENTS = [jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS) for _ in range(N_STEPS)]
FACTORS = [{"dense": (covariance(6), covariance(3))} for _ in range(N_STEPS)]
RATES = optax.linear_schedule(0.3, 0.1, N_STEPS)  # a schedule counts the steps, and not the refreshes

OPTIMIZERS = {
    "kfac": functools.partial(kfac, damping=0.1),
    "layerwise": functools.partial(
        kfac, damping=0.1, length=Length.LAYERWISE, momentum_kind=Momentum.HEAVY_BALL, grad_clip=1.0
    ),
    "eigenbasis_adam": functools.partial(eigenbasis_adam, full_refreshes=2),
    "kfac_muon": functools.partial(kfac_muon, damping=0.1, grad_clip=1.0),
}
WRAPPINGS = {
    "plain": lambda make: make(LAYERS, learning_rate=0.3),
    "scheduled": lambda make: make(LAYERS, learning_rate=RATES),
    "chained": lambda make: optax.chain(make(LAYERS, learning_rate=0.3), optax.trace(0.5)),
    "masked": lambda make: optax.masked(make(LAYERS, learning_rate=0.3), {"dense": True, "scale": False}),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_refresh_and_a_step_are_the_update_with_factors(make, wrap):
    optimizer = wrap(make)
    together, apart = optimizer.init(PARAMS), optimizer.init(PARAMS)
    for gradients, factors in zip(GRADIENTS, FACTORS, strict=True):
        expected, together = optimizer.update(gradients, together, PARAMS, factors=factors, refresh=True)
        apart = refresh_curvature(optimizer, apart, PARAMS, factors)
        got, apart = optimizer.update(gradients, apart, PARAMS, factors=None)
        jax.tree.map(np.testing.assert_array_equal, (got, apart), (expected, together))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_refresh_changes_the_next_step(make):
    optimizer = make(LAYERS, learning_rate=0.3)
    state = optimizer.init(PARAMS)
    refreshed = refresh_curvature(optimizer, state, PARAMS, FACTORS[0])
    steps = [optimizer.update(GRADIENTS[0], each, PARAMS, factors=None)[0] for each in (state, refreshed)]
    assert np.abs(steps[0]["dense"]["kernel"] - steps[1]["dense"]["kernel"]).max() > 1e-3
    np.testing.assert_array_equal(steps[0]["scale"], steps[1]["scale"])


def test_a_refresh_that_a_wrapper_would_drop_is_refused():
    optimizer = optax.MultiSteps(kfac_muon(LAYERS, learning_rate=0.3), 4).gradient_transformation()
    with pytest.raises(
        ValueError, match="MultiSteps drops what changes between its steps: give `factors` and `refresh`"
    ):
        refresh_curvature(optimizer, optimizer.init(PARAMS), PARAMS, FACTORS[0])
