"""The gradient transformation against the same steps written out in numpy."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import Momentum, WeightDecay, find_layers, kfac, trust_region
from submissions.kfac.transform import KFACState

RNG = np.random.default_rng(0)
PARAMS = {
    "dense": {"kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "bias": jnp.asarray([0.3, -0.2])},
    "norm": {"scale": jnp.asarray([1.0, 2.0])},
}
LAYERS = find_layers(PARAMS)
GRADIENTS = [jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS) for _ in range(3)]
SETTINGS = {"learning_rate": 0.3, "damping": 0.05, "momentum": 0.8, "factor_decay": 0.7}


def covariance(size: int) -> jax.Array:
    rows = RNG.normal(size=(2 * size, size))
    return jnp.asarray(rows.T @ rows / len(rows), jnp.float32)


# New factors at the first and second step; none at the third.
FACTORS = [{"dense": (covariance(4), covariance(2))} for _ in range(2)] + [None]


def state_of(optimizer_state) -> KFACState:
    return next(state for state in optimizer_state if isinstance(state, KFACState))


def run(n_steps: int = 3, factors=FACTORS, refresh=(True, False, True), **settings):
    """Parameters after every step."""
    optimizer = kfac(LAYERS, **{**SETTINGS, **settings})
    params, state, trajectory = PARAMS, optimizer.init(PARAMS), []
    for step in range(n_steps):
        updates, state = optimizer.update(GRADIENTS[step], state, params, factors=factors[step], refresh=refresh[step])
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory, state_of(state)


def by_hand(kind: Momentum, decay_kind: WeightDecay, weight_decay: float, kl_clip: float, refresh=(True, False, True)):
    """Float64 trajectory of (matrix `[4, 2]`, scale `[2]`), and the clipping factor of each step."""
    lr, damping, beta = SETTINGS["learning_rate"], SETTINGS["damping"], SETTINGS["momentum"]
    p = [stacked(PARAMS["dense"]), np.asarray(PARAMS["norm"]["scale"], np.float64)]
    trace, moment = [np.zeros_like(x) for x in p], np.zeros(2)
    average, inverses, trajectory, clips = None, None, [], []
    for step, gradients in enumerate(GRADIENTS):
        g = [stacked(gradients["dense"]), np.asarray(gradients["norm"]["scale"], np.float64)]
        if decay_kind is WeightDecay.COUPLED:
            g = [x + weight_decay * y for x, y in zip(g, p, strict=True)]
        if FACTORS[step]:
            new = [np.asarray(f, np.float64) for f in FACTORS[step]["dense"]]
            average = new if average is None else [(a + n) / 2 for a, n in zip(average, new, strict=True)]
        if refresh[step]:
            pi = np.sqrt((np.trace(average[0]) / 4) / (np.trace(average[1]) / 2))
            scales = pi * np.sqrt(damping), np.sqrt(damping) / pi
            inverses = [np.linalg.inv(f + s * np.eye(len(f))) for f, s in zip(average, scales, strict=True)]
        u = inverses[0] @ g[0] @ inverses[1]
        clips.append(min(1.0, np.sqrt(kl_clip / (u * g[0]).sum())))
        moment = 0.99 * moment + 0.01 * g[1] ** 2
        fallback = 0.1 * g[1] / (np.sqrt(moment / (1 - 0.99 ** (step + 1))) + 1e-8)
        u = [clips[-1] * u, fallback]
        trace = [beta * t + x for t, x in zip(trace, u, strict=True)]
        if kind is Momentum.NESTEROV:
            u = [x + beta * t for x, t in zip(u, trace, strict=True)]
        else:
            u = trace
        if decay_kind is WeightDecay.DECOUPLED:
            u = [x + weight_decay * y for x, y in zip(u, p, strict=True)]
        p = [y - lr * x for x, y in zip(u, p, strict=True)]
        trajectory.append(p)
    return trajectory, clips


def stacked(leaves) -> np.ndarray:
    return np.concatenate([leaves["kernel"], leaves["bias"][None]]).astype(np.float64)


@pytest.mark.parametrize("kind", Momentum)
@pytest.mark.parametrize("decay_kind", WeightDecay)
@pytest.mark.parametrize("kl_clip", [0.2, 1e6])
def test_three_steps_equal_numpy(kind, decay_kind, kl_clip):
    got, _ = run(momentum_kind=kind, weight_decay_kind=decay_kind, weight_decay=0.1, kl_clip=kl_clip)
    expected, clips = by_hand(kind, decay_kind, 0.1, kl_clip)
    assert (max(clips) < 1) == (kl_clip == 0.2)
    for params, (matrix, scale) in zip(got, expected, strict=True):
        np.testing.assert_allclose(stacked(params["dense"]), matrix, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["norm"]["scale"], scale, rtol=1e-5)


def test_inverses_stay_until_they_are_refreshed():
    """The trajectory by hand with the third step's refresh left out differs, so that the test above sees it."""
    (*_, refreshed), _ = by_hand(Momentum.NESTEROV, WeightDecay.COUPLED, 0.0, 1e6)
    (*_, stale), _ = by_hand(Momentum.NESTEROV, WeightDecay.COUPLED, 0.0, 1e6, refresh=(True, False, False))
    assert np.abs(refreshed[0] - stale[0]).max() > 1e-2
    got, _ = run(kl_clip=1e6, refresh=(True, False, False))
    np.testing.assert_allclose(stacked(got[-1]["dense"]), stale[0], rtol=1e-4, atol=1e-5)


def test_gradient_clipping_comes_first():
    norm = float(np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(GRADIENTS[0]))))
    optimizer = kfac(LAYERS, **SETTINGS, kl_clip=1e6, grad_clip=norm / 4)
    clipped, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS, factors=FACTORS[0], refresh=True)
    optimizer = kfac(LAYERS, **SETTINGS, kl_clip=1e6)
    plain, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS, factors=FACTORS[0], refresh=True)
    np.testing.assert_allclose(clipped["dense"]["kernel"], plain["dense"]["kernel"] / 4, rtol=1e-5)


def test_a_layer_without_an_estimate_is_left_to_the_fallback():
    """The first fallback step is the gradient's sign times the rates, and does not enter the clip."""
    (params,), state = run(n_steps=1, factors=[None], refresh=[False], momentum_kind=Momentum.HEAVY_BALL, kl_clip=1e-9)
    step = jax.tree.map(lambda new, old: new - old, params, PARAMS)
    expected = jax.tree.map(lambda g: -0.3 * 0.1 * jnp.sign(g), GRADIENTS[0])
    jax.tree.map(lambda s, e: np.testing.assert_allclose(s, e, rtol=1e-3, atol=1e-6), step, expected)
    assert [average.n_estimates.tolist() for average in state.factors["4x2"]] == [[0], [0]]


def test_state_counts_and_averages():
    _, state = run()
    averages = state.factors["4x2"]
    assert int(state.count) == 3 and [average.n_estimates.tolist() for average in averages] == [[2], [2]]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, FACTORS[0]["dense"], FACTORS[1]["dense"])
    for average, expected in zip(averages, mean, strict=True):
        np.testing.assert_allclose(average.value[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_kind_of_step_compiles_once_and_keeps_the_state_s_shape(dtype):
    def step(params, state, gradients, factors, learning_rate, refresh):
        arrays = {"learning_rate": learning_rate, "momentum": jnp.float32(0.9), "weight_decay": jnp.float32(0.1)}
        optimizer = kfac(LAYERS, **{**SETTINGS, **arrays})
        updates, state = optimizer.update(gradients, state, params, factors=factors, refresh=refresh)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, static_argnums=5)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    state = kfac(LAYERS, **SETTINGS, weight_decay=0.1).init(params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for repeat in range(3):
        for factors, refresh in ((FACTORS[0], True), (FACTORS[1], False), (None, False)):
            rate = jnp.float32(0.1 / (1 + repeat))
            gradients = jax.tree.map(lambda x: x.astype(dtype), GRADIENTS[repeat])
            params, state = jitted(params, state, gradients, factors, rate, refresh)
        assert jitted._cache_size() == 3
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


def test_an_uninformative_or_broken_factor_is_left_out_alone():
    """Zero, infinite and missing factors change no average; a layer that lacks one stays with the fallback."""
    (a, b), (other_a, other_b) = FACTORS[0]["dense"], FACTORS[1]["dense"]
    pairs = [(a, b), (other_a, jnp.zeros((2, 2))), (jnp.full((4, 4), jnp.nan), other_b)]
    trajectory, state = run(factors=[{"dense": pair} for pair in pairs], refresh=(True, True, True))
    for average, mean in zip(state.factors["4x2"], ((a + other_a) / 2, (b + other_b) / 2), strict=True):
        assert average.n_estimates.tolist() == [2]
        np.testing.assert_allclose(average.value[0], mean, rtol=1e-6)
    assert state.fallbacks == (1, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trajectory))
    without, _ = run(factors=[None] * 3, refresh=(False,) * 3)
    uninformed, _ = run(factors=[{"dense": pairs[1]}, None, None], refresh=(True, True, True))
    for got, expected in zip(jax.tree.leaves(uninformed), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("entry", "is_used"), [(5e36, True), (3e38, False)])
def test_estimates_that_could_make_the_average_overflow_are_not_used(entry, is_used):
    """The absolute values of an estimate's entries have to sum to less than a quarter of the largest number, 3.4e38."""
    b = FACTORS[0]["dense"][1]
    estimates = [{"dense": (sign * jnp.full((4, 4), entry), b)} for sign in (1, -1)]
    _, state = run(n_steps=2, factors=estimates, refresh=(False, False))
    average = state.factors["4x2"][0]
    assert np.isfinite(average.value).all() and average.n_estimates == 2 * is_used
    assert state.fallbacks == (0, 0 if is_used else 2)


def test_a_clip_of_what_is_no_number_takes_no_step():
    assert float(trust_region.kl_clip(jnp.asarray(jnp.nan), jnp.asarray(1.0))) == 0


SCHEDULES = {
    "learning_rate": lambda count: 0.3 / (1 + count),
    "damping": lambda count: 0.05 * 0.5**count,
    "momentum": lambda count: 0.5 + 0.1 * count,
    "weight_decay": lambda count: 0.01 * count,
    "grad_clip": lambda count: 1.0 + count,
    "factor_decay": lambda count: 0.3 - 0.2 * count,
    "kl_clip": lambda count: 0.1 * (1 + count),
    "fallback_rate": lambda count: 0.1 + 0.1 * count,
}


def trajectory(optimizer_of):
    """Parameters after each of three jitted steps, by the optimiser of each step's number."""

    @functools.partial(jax.jit, static_argnums=(0, 5))
    def step(index, params, state, gradients, factors, refresh):
        optimizer = optimizer_of(index)
        updates, state = optimizer.update(gradients, state, params, factors=factors, refresh=refresh)
        return optax.apply_updates(params, updates), state

    params, state, found = PARAMS, optimizer_of(0).init(PARAMS), []
    for index in range(3):
        params, state = step(index, params, state, GRADIENTS[index], FACTORS[index], index != 1)
        found.append(params)
    return found, state


def test_every_number_may_be_a_schedule():
    scheduled, state = trajectory(lambda index: kfac(LAYERS, **SCHEDULES))
    assert float(state.hyperparams["damping"]) == pytest.approx(0.0125)
    by_step, _ = trajectory(lambda index: kfac(LAYERS, **{name: of(index) for name, of in SCHEDULES.items()}))
    jax.tree.map(lambda s, e: np.testing.assert_allclose(s, e, rtol=1e-5), scheduled, by_step)
    assert set(state.hyperparams) == set(SCHEDULES)


def test_a_number_beside_a_schedule_follows_its_argument():
    """As where a step is compiled with the learning rate as an argument."""
    damping = SCHEDULES["damping"]
    got, _ = trajectory(lambda index: kfac(LAYERS, learning_rate=0.1 * (1 + index), damping=damping))
    numbers, _ = trajectory(lambda index: kfac(LAYERS, learning_rate=0.1 * (1 + index), damping=damping(index)))
    jax.tree.map(lambda s, e: np.testing.assert_allclose(s, e, rtol=1e-5), got, numbers)


def test_an_update_that_is_not_given_factors_warns():
    optimizer = kfac(LAYERS, **SETTINGS)
    with pytest.warns(UserWarning, match="without `factors`"):
        optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS, factors=None)


def test_factors_of_an_unknown_layer_are_refused():
    optimizer = kfac(LAYERS, **SETTINGS)
    with pytest.raises(ValueError, match="does not have: head"):
        optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS, factors={"head": FACTORS[0]["dense"]})
