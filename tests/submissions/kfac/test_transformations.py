"""Layers inside the transformations of Flax and JAX are as outside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from submissions.kfac import Sharing, find_layers, kfac_muon, trace_layers
from tests.submissions.kfac.small import (
    Nested,
    X,
    assert_same_factors,
    assert_same_gradients,
    plain,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.sin(nn.Dense(3)(x)), None


@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("transform", ["remat", "jit", "remat of jit", "vmap"])
def test_layers_inside_a_flax_transformation_are_as_outside(randomized, transform, sharing):
    params = randomized(Nested(), X)
    got, expected = (run(Nested(t), params, sharing=sharing) for t in (transform, None))
    assert set(expected.factors) == {"before", "inner.Dense_0", "after"}
    assert_same_factors(got.factors, expected.factors)
    assert_same_gradients(got, *plain(Nested(), params))


@pytest.mark.parametrize("transform", ["jit", "checkpoint", "vmap"])
def test_a_model_inside_a_jax_transformation_is_as_outside(randomized, transform):
    params = randomized(Nested(), X)

    def apply(p, x):
        return Nested().apply({"params": p}, x)

    forward = {
        "jit": lambda p: jax.jit(apply)(p, X),
        "checkpoint": lambda p: jax.checkpoint(apply)(p, X),
        "vmap": lambda p: jax.vmap(lambda x: apply(p, x[None])[0])(X),
    }[transform]
    got = run(Nested(), params, forward=forward)
    assert_same_factors(got.factors, run(Nested(), params).factors)
    assert_same_gradients(got, *plain(Nested(), params))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return jnp.sin(self.dense(x))


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat])
def test_layers_inside_a_transformation_of_nnx_are_as_outside(transform):
    graph, params = nnx.split(NNXBlock(nnx.Rngs(0)))

    def factors(call):
        def outputs(p):
            return call(nnx.merge(graph, p), X).mean(1)[:, :2]

        layers = trace_layers(params, lambda p: (outputs(p), None))
        return run(None, params, forward=outputs, layers=layers).factors

    got, expected = factors(transform(lambda block, x: block(x))), factors(lambda block, x: block(x))
    assert set(got) == {"dense"}
    assert_same_factors(got, expected)


def test_rematerialised_layers_stay_so(randomized):
    """The backward pass computes the sine's derivative from what it computes anew, behind its barrier."""
    params = randomized(Nested(), X)
    programs = [str(jax.make_jaxpr(lambda p, t=t: run(Nested(t), p)[:2])(params)) for t in ("remat", None)]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [True, False]


class Deep(nn.Module):
    """Two blocks, stacked by a scan or in turn."""

    is_scanned: bool
    is_rematerialised: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(ScanBlock, prevent_cse=False) if self.is_rematerialised else ScanBlock
        if self.is_scanned:
            stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            x, _ = stack(name="stack")(x, None)
        else:
            for i in range(2):
                x, _ = block(name=f"block_{i}")(x, None)
        return nn.Dense(2, name="head")(x.mean(1))


@pytest.mark.parametrize("is_rematerialised", [False, True])
@pytest.mark.parametrize("sharing", Sharing)
def test_layers_stacked_by_a_scan_have_the_factors_of_layers_in_turn(randomized, sharing, is_rematerialised):
    params = randomized(Deep(True), X)
    unrolled = {"head": params["head"]}
    for i in range(2):
        unrolled[f"block_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], params["stack"])
    got = run(Deep(True, is_rematerialised), params, sharing=sharing)
    expected = run(Deep(False), unrolled, sharing=sharing).factors
    names = {"head": "head", "block_0.Dense_0": "stack.Dense_0[0]", "block_1.Dense_0": "stack.Dense_0[1]"}
    assert_same_factors(got.factors, {names[name]: pair for name, pair in expected.items()})
    assert_same_gradients(got, *plain(Deep(True), params))


def test_some_of_the_layers_that_a_scan_stacks(randomized):
    params = randomized(Deep(True), X)
    layers = find_layers(params)
    some = [layer for layer in layers if layer.index != 0]
    got, expected = (run(Deep(True), params, layers=own).factors for own in (some, layers))
    assert_same_factors(got, {layer.name: expected[layer.name] for layer in some})
    with pytest.raises(
        ValueError, match="the optimizer has 1 of the 2 layers that are stacked in stack.Dense_0.kernel"
    ):
        kfac_muon([*some, *some], learning_rate=0.1).init(params)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.sin(nn.Conv(3, (3,), name="first")(x))
        return nn.Dense(2, name="head")(jnp.sin(nn.ConvTranspose(2, (3,), name="second")(x)).mean(-2))


def test_convolutions_of_one_example_under_vmap_are_as_those_of_a_batch(randomized):
    """Flax adds an axis for the batch to one example's inputs, and takes it from the outputs before the bias."""
    params = randomized(Convolutions(), X)

    def forward(params):
        return jax.vmap(lambda x: Convolutions().apply({"params": params}, x))(X)

    layers = trace_layers(params, lambda p: (forward(p), None))
    assert all(layer.has_bias for layer in layers) and len(layers) == 3
    got = run(Convolutions(), params, forward=forward, layers=layers, strict=True)
    assert_same_factors(got.factors, run(Convolutions(), params).factors)
    assert_same_gradients(got, *plain(Convolutions(), params))
