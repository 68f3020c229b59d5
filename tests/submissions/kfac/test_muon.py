"""Muon in the metric of the input factors: against float64 numpy, its exact cases and invariance, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import Sharing, find_layers, kfac_muon, layers_with_metric
from submissions.kfac.algoperf import KFAC, KFACMuon
from submissions.kfac.muon import MuonState
from submissions.kfac.roots import _polynomials
from submissions.kfac.routing import states_of

RNG = np.random.default_rng(0)
N_STEPS = 4
PARAMS = {
    "dense": {"kernel": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), "bias": jnp.asarray([0.3, -0.2, 0.1])},
    "norm": {"scale": jnp.asarray([1.0, 2.0])},
}
LAYERS = find_layers(PARAMS)
GRADIENTS = [jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS) for _ in range(N_STEPS)]
SETTINGS = {"learning_rate": 0.3, "damping": 0.02, "beta1": 0.8, "beta2": 0.9, "factor_decay": 0.4}


def covariance(size: int) -> np.ndarray:
    rows = RNG.normal(size=(4 * size, size)) * 1.3 ** -np.arange(size)
    return rows.T @ rows / len(rows)


# New factors at three steps, used at two of them.
FACTORS = [covariance(6), covariance(6), None, covariance(6)]
REFRESH = [True, False, False, True]


def state_of(optimizer_state) -> MuonState:
    return states_of(optimizer_state, MuonState)[0]


def given(factor: np.ndarray | None) -> dict | None:
    return None if factor is None else {"dense": (jnp.asarray(factor, jnp.float32), None)}


def run(factors=FACTORS, gradients=GRADIENTS, refresh=REFRESH, **settings):
    """Parameters after every step, and the last state."""
    optimizer = kfac_muon(LAYERS, **{**SETTINGS, **settings})
    params, state, trajectory = PARAMS, optimizer.init(PARAMS), []
    for gradient, factor, due in zip(gradients, factors, refresh, strict=True):
        updates, state = optimizer.update(gradient, state, params, factors=given(factor), refresh=due)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory, state_of(state)


def stacked(leaves) -> np.ndarray:
    return np.concatenate([leaves["kernel"], np.asarray(leaves["bias"])[None]]).astype(np.float64)


def polar(matrix: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for a, b, c in _polynomials(5):
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


def inverse_root(factor: np.ndarray, damping: float, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(factor)
    return (vectors * (values / values.mean() + damping) ** -power) @ vectors.T


def by_hand(weight_decay: float, power: float):
    """(matrix `[6, 3]`, scale `[2]`) after every step, in float64."""
    lr, damping, b1, b2, decay = (
        SETTINGS[name] for name in ("learning_rate", "damping", "beta1", "beta2", "factor_decay")
    )
    weights = [stacked(PARAMS["dense"]), np.asarray(PARAMS["norm"]["scale"], np.float64)]
    first, second = [np.zeros_like(w) for w in weights], np.zeros(2)
    average, n, root, trajectory = np.zeros((6, 6)), 0, np.eye(6), []
    for step, gradients in enumerate(GRADIENTS):
        g = [stacked(gradients["dense"]), np.asarray(gradients["norm"]["scale"], np.float64)]
        if FACTORS[step] is not None:
            average = average + max(1 - decay, 1 / (n + 1)) * (FACTORS[step] - average)
            n += 1
        if REFRESH[step]:
            root = inverse_root(average, damping, power)
        first = [b1 * m + (1 - b1) * x for m, x in zip(first, g, strict=True)]
        here, ahead = 1 - b1 ** (step + 1), 1 - b1 ** (step + 2)
        m = [b1 * m / ahead + (1 - b1) * x / here for m, x in zip(first, g, strict=True)]
        second = b2 * second + (1 - b2) * g[1] ** 2
        u = root @ polar(root @ m[0])
        steps = [0.2 * u / np.sqrt((u**2).mean()), m[1] / (np.sqrt(second / (1 - b2 ** (step + 1))) + 1e-8)]
        weights = [w - lr * (s + weight_decay * w) for w, s in zip(weights, steps, strict=True)]
        trajectory.append(weights)
    return trajectory


@pytest.mark.parametrize(("weight_decay", "power"), [(0.0, 0.25), (0.1, 0.25), (0.1, 0.5)])
def test_four_steps_equal_numpy(weight_decay, power):
    got, state = run(weight_decay=weight_decay, power=power)
    for params, (matrix, scale) in zip(got, by_hand(weight_decay, power), strict=True):
        np.testing.assert_allclose(stacked(params["dense"]), matrix, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["norm"]["scale"], scale, rtol=1e-5)
    assert state.fallbacks == (0, 0) and state.factors["6x3"].n_estimates.tolist() == [3]


@jax.jit
def _first_step(params, gradients, factors, damping):
    optimizer = kfac_muon(find_layers(params), learning_rate=1.0, damping=damping, power=0.5)
    return optimizer.update(gradients, optimizer.init(params), params, factors=factors, refresh=True)[0]


def first_step(gradient: np.ndarray, factor: np.ndarray, damping: float = 1e-6) -> np.ndarray:
    """The first update of a layer without bias, at rate one and power ½, whose metric is the change of the outputs."""
    gradient, factor = (jnp.asarray(x, jnp.float32) for x in (gradient, factor))
    leaves = {"one": {"kernel": gradient}}
    return np.asarray(_first_step(leaves, leaves, {"one": (factor, None)}, damping)["one"]["kernel"], np.float64)


@pytest.mark.parametrize("case", ["one output", "orthogonal error"])
def test_a_linear_regression_is_solved_in_one_step(case):
    """Its gradient is A (W - W*). The step is along Newton's, W* - W, for one output, whatever A is, and wherever the
    error in whitened inputs, A^½ (W - W*), is a multiple of an orthogonal matrix.
    """
    factor = covariance(6)
    values, vectors = np.linalg.eigh(factor)
    if case == "one output":
        error = RNG.normal(size=(6, 1))
    else:
        error = (vectors / np.sqrt(values)) @ vectors.T @ np.linalg.qr(RNG.normal(size=(6, 3)))[0]
    step = first_step(factor @ error, factor)
    rate = np.linalg.norm(error) / np.linalg.norm(step)  # the length is the learning rate's to choose
    np.testing.assert_allclose(error + rate * step, 0, atol=1e-3 * np.abs(error).max())
    plain = first_step(factor @ error, np.eye(6))
    assert np.abs(error + np.linalg.norm(error) / np.linalg.norm(plain) * plain).max() > 0.1 * np.abs(error).max()


def test_reparametrised_inputs_have_the_same_step_of_the_function():
    """With inputs x -> C x, the weights C⁻ᵀ W make the same outputs, the gradient is C G and the factor C A Cᵀ; the
    outputs' change Uᵀ x is the same, but for its length.
    """
    factor, gradient = covariance(6), RNG.normal(size=(6, 4))
    change = np.diag([3.0, 2.0, 1.0, 1.0, 0.5, 0.5]) + 0.2 * RNG.normal(size=(6, 6))
    step = first_step(gradient, factor)
    other = change.T @ first_step(change @ gradient, change @ factor @ change.T)
    np.testing.assert_allclose(
        other / np.linalg.norm(other), step / np.linalg.norm(step), atol=3e-3 * np.abs(step).max()
    )
    euclidean = change.T @ first_step(change @ gradient, np.eye(6))
    cosine = (euclidean * step).sum() / np.linalg.norm(euclidean) / np.linalg.norm(step)
    assert cosine < 0.95


def test_another_power_is_refused():
    with pytest.raises(ValueError, match="power is 1.0; it must be 0.5 or 0.25"):
        kfac_muon(LAYERS, learning_rate=0.1, power=1.0)


def test_embeddings_have_nadamw():
    """Their step is of the size one in every entry with a gradient, however rare the index."""
    table = {"embed": {"embedding": jnp.ones((4, 3))}}
    layers = find_layers(table)
    assert [layer.name for layer in layers] == ["embed"] and layers_with_metric(layers) == ()
    gradients = {"embed": {"embedding": jnp.asarray([[1e-3] * 3, [1.0] * 3, [-1.0] * 3, [0.0] * 3])}}
    optimizer = kfac_muon(layers, learning_rate=1.0)
    factors = {"embed": (jnp.asarray([[1e-6], [0.5], [0.5], [0.0]]), None)}
    updates, _ = optimizer.update(gradients, optimizer.init(table), table, factors=factors, refresh=True)
    steps = updates["embed"]["embedding"]
    np.testing.assert_allclose(steps / steps[1, 0], [[1] * 3, [1] * 3, [-1] * 3, [0] * 3], rtol=1e-4)


def test_the_submissions_estimate_no_factors_of_embeddings():
    params = {"embed": {"embedding": jnp.ones((4, 3))}, **PARAMS}
    assert [layer.name for layer in KFACMuon(Sharing.REDUCE).layers(params)] == ["dense"]
    assert [layer.name for layer in KFAC(Sharing.REDUCE).layers(params)] == ["dense", "embed"]


def test_without_a_factor_it_is_muon():
    gradient = np.asarray(stacked(GRADIENTS[0]["dense"]))
    (params,), _ = run(factors=[None], gradients=GRADIENTS[:1], refresh=[True])
    u = polar(gradient)
    expected = stacked(PARAMS["dense"]) - SETTINGS["learning_rate"] * 0.2 * u / np.sqrt((u**2).mean())
    np.testing.assert_allclose(stacked(params["dense"]), expected, rtol=1e-4, atol=1e-5)


def test_numbers_may_be_schedules():
    """Of the updates made; those of given gradients are in proportion to the rate."""
    rates = jnp.asarray([0.3, 0.2, 0.1, 0.05])
    scheduled, _ = run(learning_rate=lambda count: rates[count])
    constant, _ = run()
    for step, rate in enumerate(rates):
        one, other = ((PARAMS, *trajectory)[step : step + 2] for trajectory in (scheduled, constant))
        one, other = (jax.tree.map(jnp.subtract, after, before) for before, after in (one, other))
        jax.tree.map(lambda a, b, r=rate: np.testing.assert_allclose(a, b * r / 0.3, rtol=1e-3, atol=1e-5), one, other)


def test_a_step_is_the_same_for_any_scale_of_gradient_and_factor():
    gradient, factor = RNG.normal(size=(6, 4)), covariance(6)
    step = first_step(gradient, factor)
    for gradient_scale, factor_scale in ((1e-20, 1.0), (1e15, 1.0), (1.0, 1e-12), (1.0, 1e12)):
        other = first_step(gradient_scale * gradient, factor_scale * factor)
        np.testing.assert_allclose(other, step, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_factor_without_information_is_counted_and_not_used(bad):
    trajectory, state = run(factors=[FACTORS[0], np.full((6, 6), bad), *FACTORS[2:]])
    assert state.fallbacks == ((1, 0) if bad == 0 else (0, 1))
    assert state.factors["6x3"].n_estimates.tolist() == [2]
    expected, _ = run(factors=[FACTORS[0], None, *FACTORS[2:]])
    jax.tree.map(np.testing.assert_array_equal, trajectory, expected)


def test_a_gradient_that_is_not_finite_is_zero_for_its_layer():
    lost = {**GRADIENTS[1], "dense": {**GRADIENTS[1]["dense"], "bias": jnp.asarray([1.0, jnp.nan, 2.0])}}
    zeroed = {**GRADIENTS[1], "dense": jax.tree.map(jnp.zeros_like, GRADIENTS[1]["dense"])}
    trials = [run(gradients=[GRADIENTS[0], second, *GRADIENTS[2:]]) for second in (lost, zeroed)]
    jax.tree.map(np.testing.assert_array_equal, trials[0][0], trials[1][0])
    assert trials[0][1].fallbacks == (0, 1) and trials[1][1].fallbacks == (0, 0)


@pytest.mark.parametrize("damping", [1e-30, 1e-3, 1e9])
@pytest.mark.parametrize("gradient_scale", [0.0, 1e-30, 1e18])
def test_every_step_is_finite(damping, gradient_scale):
    """With a factor of rank one, whose null space has a gradient of rounding."""
    direction = RNG.normal(size=(6, 1))
    gradient = gradient_scale * (direction @ np.ones((1, 4)) + 1e-7 * RNG.normal(size=(6, 4)))
    step = first_step(gradient, direction @ direction.T, damping)
    assert np.isfinite(step).all() and bool(step.any()) == (gradient_scale > 0)


def test_gradient_clipping_comes_first():
    """It changes how the gradients weigh in their average."""
    norms = [float(optax.global_norm(gradient)) for gradient in GRADIENTS]
    clipped, _ = run(grad_clip=norms[0] / 4)
    scaled, _ = run(
        gradients=[
            jax.tree.map(lambda g, norm=norm: g * norms[0] / (4 * norm), gradient)
            for gradient, norm in zip(GRADIENTS, norms, strict=True)
        ]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), clipped, scaled)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_of_two_steps_compiles_once_and_keeps_the_state_s_shape(dtype):
    def step(params, state, gradients, factors, rate, refresh):
        optimizer = kfac_muon(LAYERS, **{**SETTINGS, "learning_rate": rate})
        updates, state = optimizer.update(gradients, state, params, factors=factors, refresh=refresh)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, static_argnums=5)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    state = kfac_muon(LAYERS, **SETTINGS).init(params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    for repeat in range(2):
        for factor, due in ((FACTORS[0], True), (None, False)):
            gradients = jax.tree.map(lambda x: x.astype(dtype), GRADIENTS[repeat])
            params, state = jitted(params, state, gradients, given(factor), jnp.float32(0.1 / (1 + repeat)), due)
        assert jitted._cache_size() == 2
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == shapes
