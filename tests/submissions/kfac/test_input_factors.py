"""Input factors alone: the same as beside output factors, for any loss, at the cost of a forward pass made anyway."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from submissions.kfac import Geometry, LossKind, Sharing, batch_layout, estimate, find_layers
from submissions.kfac.capture import trace
from submissions.kfac.estimate import Sums, estimate_sums

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 4, 3)), jnp.float32)
IS_EXAMPLE = jnp.asarray([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (2,), name="conv")(x))
        return nn.Dense(2, name="head")(jnp.tanh(nn.Dense(4, name="dense")(x)).mean(1))


PARAMS = Net().init(jax.random.key(0), X)["params"]
LAYERS = find_layers(PARAMS)


def absolute_loss(outputs):
    """Whose Hessian is zero: no Fisher is known for it."""
    return jnp.abs(jnp.where(IS_EXAMPLE[:, None] > 0, outputs - 1, 0)).sum(), IS_EXAMPLE.sum()


def run(params=PARAMS, *, x=X, estimator=estimate, **options):
    return estimator(
        lambda p: (Net().apply({"params": p}, x), None),
        absolute_loss,
        params,
        **{"layers": LAYERS, "layout": batch_layout(len(x), IS_EXAMPLE), "output_factors": False, **options},
    )


@pytest.mark.parametrize("sharing", Sharing)
def test_they_are_those_of_the_whole_estimate(sharing):
    alone = run(sharing=sharing)
    whole = run(sharing=sharing, output_factors=True, geometry=Geometry(LossKind.SQUARE), key=jax.random.key(0))
    assert set(alone.factors) == set(whole.factors) == {"conv", "dense", "head"}
    for name, (a, b) in alone.factors.items():
        assert b is None
        np.testing.assert_array_equal(a, whole.factors[name][0])
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-7), alone.gradients, whole.gradients)


def test_they_cost_one_product_a_layer_and_no_second_backward_pass():
    def n_products(**options):
        program = str(jax.make_jaxpr(lambda p: run(p, **options)[:4])(PARAMS))
        return program.count("dot_general["), program.count("random_")

    plain, _ = n_products(layers=())
    both, n_draws = n_products(output_factors=True, geometry=Geometry(LossKind.SQUARE), key=jax.random.key(0))
    alone, n_draws_alone = n_products()
    assert alone == plain + len(LAYERS) and n_draws_alone == 0
    assert both >= plain + 2 * len(LAYERS) and n_draws > 0


def test_without_gradients_no_backward_pass_is_traced():
    def forward(params):
        x = jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(X.shape, X.dtype), params["scale"] * X)  # no derivative
        return Net().apply({"params": params["net"]}, x), None

    params = {"scale": jnp.ones([]), "net": PARAMS}
    options = {"layers": find_layers(params), "layout": batch_layout(len(X), IS_EXAMPLE), "output_factors": False}
    factors = estimate(forward, absolute_loss, params, with_gradients=False, **options).factors
    for name, (a, _) in run().factors.items():
        np.testing.assert_array_equal(factors[f"net.{name}"][0], a)
    with pytest.raises(ValueError, match="do not support JVP"):
        estimate(forward, absolute_loss, params, **options)


def test_a_traced_forward_pass_serves_as_well():
    def forward(p):
        return Net().apply({"params": p}, X), None

    options = {"layers": LAYERS, "layout": batch_layout(len(X), IS_EXAMPLE), "output_factors": False}
    once, again = (estimate(f, absolute_loss, PARAMS, **options) for f in (forward, trace(forward, PARAMS)))
    jax.tree.map(np.testing.assert_array_equal, once[:4], again[:4])
    with pytest.raises(ValueError, match="no layers"):
        estimate(trace(forward, PARAMS), absolute_loss, PARAMS)


def test_sums_of_parts_add_up():
    def part(rows: slice) -> Sums:
        def loss(outputs):
            return jnp.square(outputs).sum(), jnp.float32(len(outputs))

        x = X[rows]
        return estimate_sums(
            lambda p: (Net().apply({"params": p}, x), None),
            loss,
            PARAMS,
            layers=LAYERS,
            layout=batch_layout(len(x)),
            output_factors=False,
        )[0]

    whole, parts = part(slice(None)), jax.tree.map(jnp.add, part(slice(2)), part(slice(2, None)))
    for name, (a, _) in parts.mean(None, {}).factors.items():
        np.testing.assert_allclose(a, whole.mean(None, {}).factors[name][0], rtol=1e-5, atol=1e-6)
