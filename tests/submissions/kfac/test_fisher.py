"""Pseudo-targets against the exact output Hessian, and the probe that finds a loss's geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import Geometry, LossKind, probe
from submissions.kfac.fisher import n_root_columns, root_column, sample_cotangent

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
LABEL_WEIGHTS = jnp.asarray([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
LOSSES = {
    LossKind.SOFTMAX: lambda z: optax.softmax_cross_entropy(z, jax.nn.one_hot(0, z.shape[-1])),
    LossKind.SIGMOID: lambda z: optax.sigmoid_binary_cross_entropy(z, jnp.ones_like(z)).sum(),
    LossKind.SQUARE: lambda z: optax.l2_loss(z).sum(),
}
# Constant, as that of squares: an absolute loss has no Hessian, and the score of a Laplace distribution is a sign.
LOSSES[LossKind.ABSOLUTE] = LOSSES[LossKind.SQUARE]
WEIGHTS = {
    LossKind.SOFTMAX: jnp.asarray([1.0, 3.0]),
    LossKind.SIGMOID: LABEL_WEIGHTS,
    LossKind.SQUARE: LABEL_WEIGHTS,
    LossKind.ABSOLUTE: LABEL_WEIGHTS,
}


def hessians(kind: LossKind) -> np.ndarray:
    """Weighted output Hessian of each example `[examples, n_outputs, n_outputs]`, by automatic differentiation."""
    root = jnp.sqrt(WEIGHTS[kind]).reshape(2, -1) * jnp.ones((2, 3))
    return np.asarray(jax.vmap(jax.hessian(LOSSES[kind]))(LOGITS) * root[:, :, None] * root[:, None, :])


@pytest.mark.parametrize("kind", LossKind)
def test_root_columns_give_the_hessian(kind):
    columns = [
        root_column(Geometry(kind), LOGITS, WEIGHTS[kind], jnp.asarray(k)) for k in range(n_root_columns(LOGITS))
    ]
    got = sum(np.einsum("ni,nj->nij", c, c) for c in np.asarray(columns))
    np.testing.assert_allclose(got, hessians(kind), rtol=1e-5, atol=1e-6)


def test_root_columns_keep_positions_apart():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 3)), jnp.float32)
    columns = np.stack([root_column(Geometry(LossKind.SOFTMAX), logits, None, jnp.asarray(k)) for k in range(6)])
    got = np.einsum("kni,knj->nij", columns.reshape(6, 1, 6), columns.reshape(6, 1, 6))[0]
    expected = jax.hessian(lambda z: sum(LOSSES[LossKind.SOFTMAX](row) for row in z.reshape(2, 3)))(logits.reshape(-1))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LossKind)
def test_samples_converge_to_the_hessian_as_one_over_root_n(kind):
    n_draws = 40_000
    keys = jax.random.split(jax.random.key(1), n_draws)
    draws = jax.jit(jax.vmap(lambda key: sample_cotangent(Geometry(kind), LOGITS, WEIGHTS[kind], key)))(keys)
    products = np.einsum("kni,knj->knij", *[np.asarray(draws, np.float64)] * 2)
    expected = hessians(kind)

    def error(n: int) -> float:
        """Root mean square error of means over n draws."""
        means = products.reshape(n_draws // n, n, *expected.shape).mean(1)
        return float(np.sqrt(((means - expected) ** 2).mean()))

    assert error(n_draws) < 0.02 * np.abs(expected).max()
    assert error(20) / error(2_000) == pytest.approx(10, rel=0.5)
    np.testing.assert_allclose(np.asarray(draws).mean(0), 0, atol=0.04)


def test_a_zero_weight_silences_its_label_alone():
    cotangent = sample_cotangent(Geometry(LossKind.SIGMOID), LOGITS, LABEL_WEIGHTS, jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(cotangent) == 0, np.asarray(LABEL_WEIGHTS) == 0)


@pytest.mark.parametrize("target", [0, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probe_finds_softmax_whatever_the_target(target, smoothing):
    labels = optax.smooth_labels(jax.nn.one_hot(target, 5), smoothing)
    assert probe(lambda z: optax.softmax_cross_entropy(z, labels), 5) == Geometry(LossKind.SOFTMAX)


@pytest.mark.parametrize("n_outputs", [1, 2, 4])
def test_probe_finds_sigmoid(n_outputs):
    labels = jnp.arange(n_outputs) % 2.0
    found = probe(lambda z: optax.sigmoid_binary_cross_entropy(z, labels).sum(), n_outputs)
    assert found == Geometry(LossKind.SIGMOID)


@pytest.mark.parametrize(
    ("loss", "scale"), [(optax.l2_loss, 1.0), (optax.squared_error, 2.0), (lambda z, t: ((z - t) ** 2) / 3, 2 / 3)]
)
def test_probe_finds_square_and_its_scale(loss, scale):
    found = probe(lambda z: loss(z, jnp.full(3, 0.7)).sum(), 3)
    assert found.kind is LossKind.SQUARE and found.scale == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: jnp.abs(z).sum() + jnp.abs(z[0]),
        lambda z: jnp.maximum(z, 0).sum(),
        lambda z: -z.sum(),
        lambda z: optax.hinge_loss(z, jnp.ones_like(z)).sum(),
        lambda z: optax.softmax_cross_entropy(2 * z, jax.nn.one_hot(0, 3)),
        lambda z: 3 * optax.sigmoid_binary_cross_entropy(z, jnp.ones(3)).sum(),
        lambda z: optax.sigmoid_focal_loss(z, jnp.ones(3)).sum(),
        lambda z: optax.huber_loss(z).sum(),
        lambda z: optax.l2_loss(z).sum() + optax.l2_loss(z[0]),
    ],
    ids=[
        "weighted absolute",
        "relu",
        "linear",
        "hinge",
        "tempered softmax",
        "scaled sigmoid",
        "focal",
        "huber",
        "weighted square",
    ],
)
def test_probe_refuses_another_loss(loss):
    with pytest.raises(ValueError, match="empirical Fisher"):
        probe(loss, 3)


@pytest.mark.parametrize("loss", [optax.huber_loss, optax.log_cosh], ids=["huber", "log cosh"])
def test_probe_is_not_fooled_by_one_output_near_zero(loss):
    with pytest.raises(ValueError, match="empirical Fisher"):
        probe(lambda z: loss(z, jnp.zeros(1)).sum(), 1)


@pytest.mark.parametrize("target", [0.0, 0.7, -300.0])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_probe_finds_an_absolute_loss_and_its_scale(target, n_outputs):
    found = probe(lambda z: 3 * jnp.abs(z - target).sum(), n_outputs)
    assert found.kind is LossKind.ABSOLUTE and found.scale == pytest.approx(9, rel=1e-5)


@pytest.mark.parametrize("delta", [1e-2, 1.0])
def test_probe_tells_a_huber_loss_of_a_far_target_from_an_absolute_one(delta):
    with pytest.raises(ValueError, match="empirical Fisher"):
        probe(lambda z: optax.huber_loss(z, jnp.full(2, 5.0), delta=delta).sum(), 2)


def test_signs_are_drawn_for_an_absolute_loss():
    draws = sample_cotangent(Geometry(LossKind.ABSOLUTE, 9.0), jnp.zeros((400, 3)), None, jax.random.key(0))
    assert set(np.unique(draws)) == {-3.0, 3.0}


WIDE = 50_257


@pytest.mark.parametrize("kind", LossKind)
def test_probe_of_a_vocabulary(kind):
    """A dense Hessian would take 10 GB; nor may one output that differs among 50,257 be missed."""
    loss = {**LOSSES, LossKind.ABSOLUTE: lambda z: jnp.abs(z).sum()}[kind]
    assert probe(loss, 50_257) == Geometry(kind)
    with pytest.raises(ValueError, match="empirical Fisher"):
        probe(lambda z: loss(z.at[1_000].multiply(1.1)), 50_257)


def test_probe_needs_one_number():
    with pytest.raises(ValueError, match="must be one number"):
        probe(optax.l2_loss, 3)


def test_probe_works_while_a_step_is_being_traced():
    found = []
    jax.jit(lambda x: found.append(probe(LOSSES[LossKind.SQUARE], 2)) or x)(jnp.zeros(()))
    assert found == [Geometry(LossKind.SQUARE, 1.0)]
