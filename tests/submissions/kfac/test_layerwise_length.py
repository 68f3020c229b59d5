"""K-FAC whose layers all have steps of one length: by hand in float64, and what it is invariant to."""

import jax
import numpy as np
import pytest

from submissions.kfac import Length, Momentum, WeightDecay, kfac
from tests.submissions.kfac.test_transform import FACTORS, GRADIENTS, LAYERS, PARAMS, SETTINGS, run, stacked


def by_hand(kind: Momentum, decay_kind: WeightDecay, weight_decay: float):
    """Float64 trajectory of (matrix `[4, 2]`, scale `[2]`), refreshed at the first and third step."""
    lr, damping, beta = SETTINGS["learning_rate"], SETTINGS["damping"], SETTINGS["momentum"]
    p = [stacked(PARAMS["dense"]), np.asarray(PARAMS["norm"]["scale"], np.float64)]
    trace, moment, average, trajectory = [np.zeros_like(x) for x in p], np.zeros(2), None, []
    for step, gradients in enumerate(GRADIENTS):
        g = [stacked(gradients["dense"]), np.asarray(gradients["norm"]["scale"], np.float64)]
        if decay_kind is WeightDecay.COUPLED:
            g = [x + weight_decay * y for x, y in zip(g, p, strict=True)]
        trace = [beta * t + x for t, x in zip(trace, g, strict=True)]
        m = [x + beta * t for x, t in zip(g, trace, strict=True)] if kind is Momentum.NESTEROV else trace
        if FACTORS[step]:
            new = [np.asarray(f, np.float64) for f in FACTORS[step]["dense"]]
            average = new if average is None else [(a + n) / 2 for a, n in zip(average, new, strict=True)]
        if step != 1:
            units = [f / (np.trace(f) / len(f)) for f in average]
            inverses = [np.linalg.inv(f + np.sqrt(damping) * np.eye(len(f))) for f in units]  # π is 1
        u = inverses[0] @ m[0] @ inverses[1]
        moment = 0.99 * moment + 0.01 * m[1] ** 2
        fallback = 0.1 * m[1] / (np.sqrt(moment / (1 - 0.99 ** (step + 1))) + 1e-8)
        u = [0.2 * u / np.sqrt((u**2).mean()), fallback]
        if decay_kind is WeightDecay.DECOUPLED:
            u = [x + weight_decay * y for x, y in zip(u, p, strict=True)]
        p = [y - lr * x for x, y in zip(u, p, strict=True)]
        trajectory.append(p)
    return trajectory


@pytest.mark.parametrize("kind", Momentum)
@pytest.mark.parametrize("decay_kind", WeightDecay)
def test_three_steps_equal_numpy(kind, decay_kind):
    got, _ = run(momentum_kind=kind, weight_decay_kind=decay_kind, weight_decay=0.1, length=Length.LAYERWISE)
    for params, (matrix, scale) in zip(got, by_hand(kind, decay_kind, 0.1), strict=True):
        np.testing.assert_allclose(stacked(params["dense"]), matrix, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["norm"]["scale"], scale, rtol=1e-5)


def one_step(gradients, factors):
    optimizer = kfac(LAYERS, **SETTINGS, length=Length.LAYERWISE)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS, factors=factors, refresh=True)
    return stacked(updates["dense"])


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_a_scaled_loss_has_the_same_steps(scale):
    """With the loss times c the gradient is c G, and B c² B."""
    a, b = FACTORS[0]["dense"]
    expected = one_step(GRADIENTS[0], FACTORS[0])
    scaled = jax.tree.map(lambda g: scale * g, GRADIENTS[0])
    np.testing.assert_allclose(one_step(scaled, {"dense": (a, scale**2 * b)}), expected, rtol=1e-4)


def test_scaled_inputs_have_the_same_steps():
    """The step of the weights is that of the fixed length, whatever the unit of the inputs."""
    a, b = FACTORS[0]["dense"]
    got = one_step(GRADIENTS[0], {"dense": (100 * a, b)})
    np.testing.assert_allclose(got, one_step(GRADIENTS[0], FACTORS[0]), rtol=1e-4)


def test_gradients_of_any_size_have_a_finite_step():
    for scale in (1e-30, 1e15):
        step = one_step(jax.tree.map(lambda g, s=scale: s * g, GRADIENTS[0]), FACTORS[0])
        assert np.sqrt((step**2).mean()) == pytest.approx(0.3 * 0.2, rel=1e-4)


def test_a_gradient_that_is_not_finite_is_forgotten():
    """It does not stay in the momentum: all later steps are finite, and of the full length."""
    optimizer = kfac(LAYERS, **SETTINGS, length=Length.LAYERWISE)
    state = optimizer.init(PARAMS)
    lost = jax.tree.map(lambda g: g * float("nan"), GRADIENTS[0])
    for gradients in (GRADIENTS[0], lost, GRADIENTS[1]):
        updates, state = optimizer.update(gradients, state, PARAMS, factors=FACTORS[0], refresh=True)
        step = stacked(updates["dense"])
        assert np.sqrt((step**2).mean()) == pytest.approx(0.3 * 0.2, rel=1e-4)
