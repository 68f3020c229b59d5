"""Adam in the eigenbasis against the same steps written out in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import eigenbasis_adam, find_layers
from submissions.kfac.adaptive import EigenbasisState
from submissions.kfac.eigenbasis import Bases
from submissions.kfac.routing import states_of

RNG = np.random.default_rng(0)
PARAMS = {
    "dense": {"kernel": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), "bias": jnp.asarray([0.3, -0.2, 0.1])},
    "norm": {"scale": jnp.asarray([1.0, 2.0])},
}
LAYERS = find_layers(PARAMS)
N_STEPS = 5
GRADIENTS = [jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS) for _ in range(N_STEPS)]
SETTINGS = {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.9, "factor_decay": 0.7, "relative_epsilon": 1e-2}


def covariance(size: int) -> np.ndarray:
    rows = RNG.normal(size=(2 * size, size)) * 1.5 ** -np.arange(size)
    return rows.T @ rows / len(rows)


FACTORS = [(covariance(6), covariance(3)) for _ in range(N_STEPS)]
ALWAYS = (True,) * N_STEPS


def given(pair: tuple[np.ndarray, np.ndarray] | None) -> dict:
    return {} if pair is None else {"dense": tuple(jnp.asarray(f, jnp.float32) for f in pair)}


def eigenbasis_state(optimizer_state) -> EigenbasisState:
    return states_of(optimizer_state, EigenbasisState)[0]


def run(factors=FACTORS, refresh=ALWAYS, gradients=GRADIENTS, **settings):
    """Parameters after every step, and the last state."""
    optimizer = eigenbasis_adam(LAYERS, **{**SETTINGS, **settings})
    params, state, trajectory = PARAMS, optimizer.init(PARAMS), []
    for gradient, pair, kind in zip(gradients, factors, refresh, strict=True):
        updates, state = optimizer.update(gradient, state, params, factors=given(pair), refresh=kind)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory, eigenbasis_state(state)


def stacked(leaves) -> np.ndarray:
    return np.concatenate([np.asarray(leaves["kernel"], np.float64), np.asarray(leaves["bias"], np.float64)[None]])


def by_hand(weight_decay: float):
    """`dense` after every step of a run with new factors and a full refresh each."""
    lr, b1, b2, decay = (SETTINGS[name] for name in ("learning_rate", "beta1", "beta2", "factor_decay"))
    weights, m, v = stacked(PARAMS["dense"]), np.zeros((6, 3)), np.zeros((6, 3))
    averages, bases, trajectory = [np.zeros((6, 6)), np.zeros((3, 3))], [np.eye(6), np.eye(3)], []
    for step, pair in enumerate(FACTORS):
        weight = max(1 - decay, 1 / (step + 1))
        averages = [old + weight * (new - old) for old, new in zip(averages, pair, strict=True)]
        new = [np.linalg.eigh(average)[1][:, ::-1] for average in averages]
        overlaps = [(old.T @ q) ** 2 for old, q in zip(bases, new, strict=True)]
        v = overlaps[0].T @ v @ overlaps[1]
        bases = new
        g = stacked(GRADIENTS[step]["dense"])
        m = b1 * m + (1 - b1) * g
        ahead = b1 * m / (1 - b1 ** (step + 2)) + (1 - b1) * g / (1 - b1 ** (step + 1))
        turned_g, turned_m = (bases[0].T @ x @ bases[1] for x in (g, ahead))
        v = b2 * v + (1 - b2) * turned_g**2
        root = np.sqrt(v / (1 - b2 ** (step + 1)))
        u = turned_m / (root + 1e-2 * np.sqrt((root**2).mean()) + 1e-8)
        weights = weights - lr * (bases[0] @ u @ bases[1].T + weight_decay * weights)
        trajectory.append(weights)
    return trajectory


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_in_the_eigenbasis_equals_numpy(weight_decay):
    got, state = run(weight_decay=weight_decay)
    for params, matrix in zip(got, by_hand(weight_decay), strict=True):
        np.testing.assert_allclose(stacked(params["dense"]), matrix, rtol=1e-3, atol=1e-4)
    assert int(state.count) == N_STEPS and state.fallbacks == (0, 0)


def test_without_curvature_it_is_nadamw():
    none = (None,) * N_STEPS
    got, _ = run(factors=none, refresh=(False,) * N_STEPS, weight_decay=0.1, relative_epsilon=0.0)
    optimizer = optax.nadamw(0.3, b1=0.8, b2=0.9, weight_decay=0.1)
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradient in GRADIENTS:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got[-1], params)


def relative_change(one, other, before) -> float:
    steps = [
        np.concatenate([np.ravel(p - q) for p, q in zip(*map(jax.tree.leaves, (end, before)), strict=True)])
        for end in (one, other)
    ]
    return np.linalg.norm(steps[0] - steps[1]) / np.linalg.norm(steps[1])


@pytest.mark.parametrize("full_refreshes", [None, 1])
@pytest.mark.parametrize("rank", [6, 3])
def test_a_refresh_on_unchanged_factors_changes_nothing(full_refreshes, rank):
    """Of the next update less than 1e-4, from bases whose vectors are permuted and flipped too; else much more."""
    rows = RNG.normal(size=(rank, 6))
    pair = (rows.T @ rows, FACTORS[0][1])
    first = (pair, None, None, None)
    optimizer = eigenbasis_adam(LAYERS, full_refreshes=full_refreshes, **SETTINGS)
    state, params = optimizer.init(PARAMS), PARAMS
    for gradient, factors in zip(GRADIENTS, first, strict=False):
        updates, state = optimizer.update(gradient, state, params, factors=given(factors), refresh=factors is not None)
        params = optax.apply_updates(params, updates)
    shuffled = jax.tree.map(lambda x: x, state)
    inner, group = eigenbasis_state(state), "6x3"
    orders = [np.roll(RNG.permutation(n), 1) for n in (6, 3)]
    turned = [
        basis[:, :, order] * RNG.choice([-1.0, 1.0], len(order)).astype(np.float32)
        for basis, order in zip(inner.bases[group], orders, strict=True)
    ]
    second = inner.second_moment.matrices[group][:, orders[0]][:, :, orders[1]]
    moved = inner._replace(
        bases={group: Bases(*turned)},
        second_moment=inner.second_moment._replace(matrices={group: second}),
    )
    shuffled = tuple(moved if part is inner else part for part in state)

    def next_params(start, refresh):
        updates, _ = optimizer.update(GRADIENTS[-1], start, params, refresh=refresh)
        return optax.apply_updates(params, updates)

    expected = next_params(state, False)
    for start in (state, shuffled):
        assert relative_change(next_params(start, True), expected, params) < 1e-4
    unmoved = tuple(moved._replace(second_moment=inner.second_moment) if part is inner else part for part in state)
    assert relative_change(next_params(unmoved, True), expected, params) > 1e-2


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0])
def test_what_tells_nothing_is_counted_and_changes_no_average(broken):
    bad = (FACTORS[1][0], np.full((3, 3), broken))
    trajectory, state = run(factors=(FACTORS[0], bad, *FACTORS[2:]))
    of_a, of_b = state.factors["6x3"]
    assert state.fallbacks == ((1, 0) if broken == 0 else (0, 1))
    assert of_a.n_estimates.tolist() == [N_STEPS] and of_b.n_estimates.tolist() == [N_STEPS - 1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trajectory, state)))


def test_a_gradient_that_is_not_finite_is_none_for_its_layer():
    lost = {**GRADIENTS[1], "dense": {**GRADIENTS[1]["dense"], "bias": jnp.asarray([1.0, jnp.nan, 2.0])}}
    zeroed = {**GRADIENTS[1], "dense": jax.tree.map(jnp.zeros_like, GRADIENTS[1]["dense"])}
    trials = [run(gradients=[GRADIENTS[0], second, *GRADIENTS[2:]]) for second in (lost, zeroed)]
    jax.tree.map(np.testing.assert_array_equal, trials[0][0], trials[1][0])
    assert trials[0][1].fallbacks == (0, 1) and trials[1][1].fallbacks == (0, 0)


def test_a_gradient_whose_squares_overflow_is_lost_for_one_step_only():
    huge = {**GRADIENTS[1], "dense": jax.tree.map(lambda g: 1e25 * g, GRADIENTS[1]["dense"])}
    trajectory, state = run(gradients=[GRADIENTS[0], huge, *GRADIENTS[2:]])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((trajectory, state)))
    assert state.fallbacks == (0, 1)
    assert (trajectory[-1]["dense"]["kernel"] != trajectory[-2]["dense"]["kernel"]).all()


def test_a_layer_that_lacks_one_factor_turns_with_the_other():
    """Under a head that starts from zero B is zero, and A alone has a basis."""
    lacking = [(pair[0], np.zeros((3, 3))) for pair in FACTORS]
    _, state = run(factors=lacking)
    a = np.asarray(state.factors["6x3"][0].value[0])
    turned = np.asarray(state.bases["6x3"].inputs[0]).T @ a @ np.asarray(state.bases["6x3"].inputs[0])
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 0.1 * np.abs(a - np.diag(np.diag(a))).max()
    np.testing.assert_array_equal(np.sort(state.bases["6x3"].outputs[0]), np.sort(np.eye(3)))


def test_every_kind_of_step_compiles_once_and_keeps_the_state_s_shape():
    def step(params, state, gradients, factors, rate, refresh):
        optimizer = eigenbasis_adam(LAYERS, **{**SETTINGS, "learning_rate": rate})
        updates, state = optimizer.update(gradients, state, params, factors=factors, refresh=refresh)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, static_argnums=5)
    params, state = PARAMS, eigenbasis_adam(LAYERS, **SETTINGS).init(PARAMS)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for repeat in range(3):
        for pair, due in ((FACTORS[0], True), (None, False)):
            rate = jnp.float32(0.1 / (1 + repeat))
            params, state = jitted(params, state, GRADIENTS[repeat], given(pair), rate, due)
        assert jitted._cache_size() == 2
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
