"""Outputs that are trees, several heads, half precision, boxed parameters, and the description of a model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from submissions.kfac import (
    Fisher,
    Geometry,
    LossKind,
    Sharing,
    batch_layout,
    describe,
    estimate,
    find_layers,
    kfac,
    trace_layers,
)

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 4, 3)), jnp.float32)
GEOMETRIES = Geometry(LossKind.SOFTMAX), Geometry(LossKind.SQUARE, 2.0)


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(4, name="body")(x).mean(1))
        heads = {"policy": nn.Dense(3, name="policy")(x), "value": nn.Dense(1, name="value")(x)}
        return heads | {"features": x, "n_steps": jnp.int32(len(x))}


def forward(p):
    return ActorCritic().apply({"params": p}, X), None


def loss(outputs):
    return -jax.nn.log_softmax(outputs["policy"])[:, 0].sum() + jnp.square(outputs["value"]).sum(), jnp.asarray(6.0)


def run(params, *, forward=forward, loss=loss, layers=None, **options):
    options = {"layout": batch_layout(6), "key": jax.random.key(0), "strict": True, **options}
    layers = find_layers(params) if layers is None else layers
    return jax.jit(lambda p: estimate(forward, loss, p, layers=layers, **options))(params)


def test_heads_add_up_and_one_can_be_picked(randomized):
    """Exactly: B of the body is the sum of the heads' own, and a head that is not picked has none."""
    params = randomized(ActorCritic(), X)
    options = {"fisher": Fisher.EXACT}
    both = run(params, logits=lambda o: (o["policy"], o["value"]), geometry=GEOMETRIES, **options).factors
    policy = run(params, logits=lambda o: o["policy"], geometry=GEOMETRIES[0], **options).factors
    value = run(params, logits=lambda o: o["value"], geometry=GEOMETRIES[1], **options).factors
    np.testing.assert_allclose(both["body"][1], policy["body"][1] + value["body"][1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(both["value"][1], [[2.0]], rtol=1e-6)
    assert not policy["value"][1].any() and policy["policy"][1].any()
    sampled = jax.vmap(
        lambda key: run(params, logits=lambda o: (o["policy"], o["value"]), geometry=GEOMETRIES, key=key).factors[
            "body"
        ][1]
    )(jax.random.split(jax.random.key(1), 4000))
    np.testing.assert_allclose(sampled.mean(0), both["body"][1], atol=0.05 * jnp.abs(both["body"][1]).max())


def test_a_tree_of_outputs_needs_a_function_that_picks(randomized):
    params = randomized(ActorCritic(), X)
    with pytest.raises(ValueError, match="outputs are a dict: give `logits`"):
        run(params, geometry=GEOMETRIES[0])
    with pytest.raises(ValueError, match="2 heads of logits, 1 geometries"):
        run(params, logits=lambda o: [o["policy"], o["value"]], geometry=GEOMETRIES[:1])


class Plain(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.Dense(4, kernel_init=kernel_init, param_dtype=self.dtype, name="first")(x.astype(self.dtype))
        return nn.Dense(2, param_dtype=self.dtype, name="head")(nn.tanh(x).mean(1))


def square(outputs):
    return 0.5 * jnp.square(outputs.astype(jnp.float32)).sum(), jnp.asarray(6.0)


def test_boxed_parameters_have_the_factors_and_updates_of_plain_ones():
    boxed = Plain().init(jax.random.key(0), X)["params"]
    assert isinstance(boxed["first"]["kernel"], nn.Partitioned)
    results = []
    for params in (boxed, nn.meta.unbox(boxed)):
        layers = find_layers(params)
        assert [layer.name for layer in layers] == ["first", "head"]
        options = {"forward": lambda p: (Plain().apply({"params": p}, X), None), "loss": square}
        batch = run(params, layers=layers, geometry=Geometry(LossKind.SQUARE), **options)
        optimizer = kfac(layers, learning_rate=0.1, damping=1e-2)
        state = optimizer.init(params)
        updates, _ = optimizer.update(batch.gradients, state, params, factors=batch.factors, refresh=True)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        results.append((batch.factors, nn.meta.unbox(updates)))
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_in_half_precision(randomized, dtype):
    """The numbers of terms is one that float16 does not hold."""

    def run_in(dtype):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), nn.meta.unbox(randomized(Plain(), X)))
        return run(
            params,
            forward=lambda p: (Plain(dtype).apply({"params": p}, X), None),
            loss=lambda z: (square(z)[0], jnp.asarray(70_000.0)),
            geometry=Geometry(LossKind.SQUARE),
            sharing=Sharing.EXPAND,
        )

    got, expected = run_in(dtype), run_in(jnp.float32)
    for name, pair in got.factors.items():
        for factor, reference in zip(pair, expected.factors[name], strict=True):
            assert factor.dtype == jnp.float32
            np.testing.assert_allclose(factor, reference, rtol=0.1, atol=0.05 * jnp.abs(reference).max())
    gradient, reference = (batch.gradients["head"]["bias"].astype(jnp.float32) for batch in (got, expected))
    np.testing.assert_allclose(gradient, reference, rtol=0.1)


class Twins(nnx.Module):
    """The same as `Plain`, in NNX."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.first(x)).mean(1))


def test_an_nnx_model_trains_as_the_linen_one_of_the_same_values():
    linen = nn.meta.unbox(Plain().init(jax.random.key(0), X)["params"])
    graph, state = nnx.split(Twins(nnx.Rngs(0)))
    nnx.replace_by_pure_dict(state, linen)
    results = []
    cases = [(linen, lambda p: Plain().apply({"params": p}, X)), (state, lambda p: nnx.merge(graph, p)(X))]
    for params, outputs in cases:
        layers = trace_layers(params, lambda p, outputs=outputs: (outputs(p), None))
        assert layers == find_layers(params)
        options = {"forward": lambda p, outputs=outputs: (outputs(p), None), "loss": square}
        batch = run(params, layers=layers, geometry=Geometry(LossKind.SQUARE), **options)
        optimizer = kfac(layers, learning_rate=0.1, damping=1e-2)
        updates, _ = optimizer.update(
            batch.gradients, optimizer.init(params), params, factors=batch.factors, refresh=True
        )
        results.append((batch.factors, updates if params is linen else nnx.to_pure_dict(updates)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *results)


class Partly(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(nn.DenseGeneral((2, 2), use_bias=False, name="split")(x).reshape(6, 4, 4))
        x = nn.Conv(4, 3, feature_group_count=2, name="grouped")(x)
        return nn.Dense(2, name="head")(x.reshape(24, 4)).reshape(6, 4, 2).mean(1)


def test_the_description_is_what_the_estimate_will_have(randomized):
    params = randomized(Partly(), X)

    def forward(p):
        return Partly().apply({"params": p}, X), None

    layers = find_layers(params)
    lines = {
        line.split()[0]: line.split(": ", 1)[1]
        for line in describe(params, layers, forward, batch_layout(6)).split("\n")[1:]
    }
    assert (
        "24, which are none of the layout's (6)" in lines["head.kernel"] and lines["head.bias"] == lines["head.kernel"]
    )
    assert "grouped convolution" in lines["grouped.kernel"]
    assert "not among those given" in lines["split.kernel"]
    assert lines["norm.scale"] == "fallback: no kernel of a linear layer"
    traced = trace_layers(params, forward)
    assert "grouped convolution" in describe(params, traced, forward)
    assert [layer.name for layer in traced] == ["head", "split"]
    told = describe(params, traced, forward, batch_layout(6))
    assert told.startswith(f"{3 * 4:,} of ") and "split.kernel (3, 2, 2): factors 3 and 4" in told
    with pytest.warns(UserWarning):
        got = run(params, forward=forward, loss=square, layers=traced, geometry=Geometry(LossKind.SQUARE), strict=False)
    assert set(got.factors) == {"split"} and set(got.uncaptured) == {"head"}
