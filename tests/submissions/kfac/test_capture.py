"""Capture of a model's layers: which uses are seen, what is refused and why, and what it costs."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, batch_layout, estimate, find_layers, trace_layers
from submissions.kfac.coverage import warn_once

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 5, 3)), jnp.float32)
TARGETS = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
SQUARE = Geometry(LossKind.SQUARE, 1.0)


def square_loss(outputs):
    return 0.5 * ((outputs - TARGETS) ** 2).sum(), jnp.asarray(4.0)


def run(model, params, *, x=X, layers=None, loss=square_loss, sharing=Sharing.REDUCE, forward=None, **options):
    """`estimate`, compiled, of a model without state; by default of all layers."""
    forward = forward or (lambda p: model.apply({"params": p}, x))
    options = {"layout": batch_layout(len(x), example_axis=0), "geometry": SQUARE, "key": jax.random.key(0), **options}
    layers = find_layers(params) if layers is None else layers
    step = jax.jit(lambda p: estimate(lambda q: (forward(q), None), loss, p, layers=layers, sharing=sharing, **options))
    return step(params)


def plain(model, params, x=X, loss=square_loss):
    return jax.jit(jax.value_and_grad(lambda p: loss(model.apply({"params": p}, x))[0] / 4.0))(params)


def assert_same_gradients(got, loss, gradients):
    np.testing.assert_allclose(got.loss, loss, rtol=1e-6)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), got.gradients, gradients)


def assert_same_factors(got, expected):
    assert set(got) == set(expected)
    for name, pair in got.items():
        for factor, reference in zip(pair, expected[name], strict=True):
            np.testing.assert_allclose(factor, reference, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(autouse=True)
def warnings_anew():
    warn_once.cache_clear()


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sin(nn.Dense(3)(x))


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.sin(nn.Dense(3)(x)), None


class Nested(nn.Module):
    """Plain layers around one inside a Flax transformation."""

    transform: str | None = None

    @nn.compact
    def __call__(self, x):
        x = jnp.sin(nn.Dense(3, name="before")(x))
        if self.transform == "vmap":
            shared = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
            x = nn.vmap(Block, in_axes=1, out_axes=1, **shared)(name="inner")(x)
        else:
            wrap = {"remat": nn.remat, "jit": nn.jit, "remat of jit": lambda m: nn.remat(nn.jit(m))}
            x = wrap.get(self.transform, lambda module: module)(Block)(name="inner")(x)
        return nn.Dense(2, name="after")(x.mean(1))


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


class OddCalls(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,), feature_group_count=2, name="grouped")(nn.Dense(4, name="fine")(x))
        x = nn.Conv(4, 3, padding="CIRCULAR", name="circular")(x)
        x = nn.ConvTranspose(4, (3,), strides=(2,), name="transposed")(x)[:, :5]
        x = nn.Dense(2, name="by keyword")(inputs=x)
        if self.is_initializing():
            nn.Dense(2, name="unused")(x)
        return x.mean(1)


def test_unsupported_uses_are_named_with_their_reason_and_warned_of_once(randomized):
    params = randomized(OddCalls(), X)
    with pytest.warns(
        UserWarning, match="no curvature for 2 layers.*\n  grouped: its kernel goes into a grouped convolution"
    ) as seen:
        got = run(OddCalls(), params)
        run(OddCalls(), params)
    assert len([w for w in seen if "no curvature" in str(w.message)]) == 1
    assert set(got.factors) == {"fine", "circular", "transposed", "by keyword"}
    assert set(got.uncaptured) == {"grouped", "unused"}
    assert "do not depend on it" in got.uncaptured["unused"]
    assert_same_gradients(got, *plain(OddCalls(), params))
    with pytest.raises(ValueError, match="no curvature for 2 layers"):
        run(OddCalls(), params, strict=True)


class Concatenated(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.RNN(nn.OptimizedLSTMCell(3), name="lstm")(x)[:, -1])


def test_layers_that_the_trace_does_not_find_are_warned_of_too(randomized):
    params = randomized(Concatenated(), X)
    layers = trace_layers(params, lambda p: (Concatenated().apply({"params": p}, X), None))
    assert [layer.name for layer in layers] == ["head"]
    with pytest.warns(UserWarning, match="no curvature for 8 layers.*\\n.*kernel: it goes into `concatenate`"):
        run(Concatenated(), params, layers=layers)


def test_the_wrong_tree_is_called_so(randomized):
    variables = {"params": randomized(Nested(), X)}
    layers = find_layers(variables["params"])
    with pytest.warns(UserWarning, match="no leaf before.kernel"):
        got = run(Nested(), variables, layers=layers, forward=lambda v: Nested().apply(v, X))
    assert got.factors == {}


class WeightStandardised(nn.Dense):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (x.shape[-1], self.features))
        return x @ (kernel - kernel.mean(0)) + self.param("bias", nn.initializers.normal(), (self.features,))


class Reparametrised(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(WeightStandardised(3, name="standardised")(x))
        x = nn.WeightNorm(nn.Dense(3, name="normed"), variable_filter={"kernel"})(x)
        return nn.Dense(2, name="head")(x.mean(1))


def test_kernels_computed_from_the_leaf_are_refused(randomized):
    params = randomized(Reparametrised(), X)
    with pytest.warns(UserWarning):
        got = run(Reparametrised(), params)
    assert set(got.factors) == {"head"}
    assert set(got.uncaptured) == {"standardised", "normed"}
    assert all("goes into `" in reason for reason in got.uncaptured.values())


class WithActivation(nn.Module):
    """Named as a Dense is, and its output is no linear function of the input: the product inside is."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (3, 2))
        return jnp.tanh(x.mean(1) @ kernel + self.param("bias", nn.initializers.normal(), (2,)))


class Scaled(nn.Module):
    """The bias is not added to the product itself."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (3, 2))
        return 3 * (x.mean(1) @ kernel) + self.param("bias", nn.initializers.normal(), (2,))


def test_an_activation_inside_a_layer_is_none_of_its_product(randomized):
    params = randomized(WithActivation(), X)
    got = run(WithActivation(), params, fisher=Fisher.EXACT)
    outputs = WithActivation().apply({"params": params}, X)
    slope = np.asarray(1 - outputs**2)
    np.testing.assert_allclose(got.factors["kernel"][1], slope.T @ slope / 4 * np.eye(2), rtol=1e-4)


def test_a_bias_that_is_not_added_to_the_product_is_refused_and_found_without(randomized):
    params = randomized(Scaled(), X)
    with pytest.warns(UserWarning, match="goes into `mul`"):
        assert run(Scaled(), params).factors == {}
    layers = trace_layers(params, lambda p: (Scaled().apply({"params": p}, X), None))
    assert [(layer.name, layer.has_bias) for layer in layers] == [("kernel", False)]
    assert set(run(Scaled(), params, layers=layers).factors) == {"kernel"}


class Misplaced(nn.Module):
    """As many positions as features, and a leaf called bias that is added along the positions."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (3, 5))
        x = x @ kernel + self.param("bias", nn.initializers.normal(), (5,))[:, None]
        return x.mean(1)[:, :2]


def test_a_bias_along_another_axis_is_refused(randomized):
    params = randomized(Misplaced(), X)
    with pytest.warns(UserWarning, match="kernel: its product goes into `add`"):
        assert run(Misplaced(), params).factors == {}


def test_a_teacher_of_the_same_names_is_no_use_of_the_student(randomized):
    """Nor is the student where its outputs are stopped."""
    params, teacher = randomized(Nested(), X), randomized(Nested(), X, seed=1)

    def distilled(p):
        target = Nested().apply({"params": teacher}, X) + jax.lax.stop_gradient(Nested().apply({"params": p}, 2 * X))
        return Nested().apply({"params": p}, X) - 0.1 * target

    got, expected = run(Nested(), params, forward=distilled), run(Nested(), params)
    assert_same_factors(got.factors, expected.factors)


class Folded(nn.Module):
    """Folds positions into the batch axis, so that rows no longer tell their example."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2, name="folded")(x.reshape(-1, 3))
        return x.reshape(4, 5, 2).mean(1)


def test_rows_that_the_layout_does_not_describe_are_refused_by_name(randomized):
    with pytest.warns(UserWarning, match="folded: its input's leading axes are 20, which are none of the layout's"):
        got = run(Folded(), randomized(Folded(), X))
    assert got.factors == {} and "row_layout" in got.uncaptured["folded"]


def test_gradients_are_those_of_plain_autodiff_without_layers_too(randomized):
    params = randomized(Nested(), X)
    expected = plain(Nested(), params)
    assert_same_gradients(run(Nested(), params, layers=()), *expected)
    got = run(Nested(), params)
    assert got.uncaptured == {} and set(got.factors) == {"before", "inner.Dense_0", "after"}
    assert_same_gradients(got, *expected)


def test_a_forward_pass_sees_the_values_outside_it_anew(randomized):
    params, batch = randomized(Nested(), X), {"x": X}

    def forward(p):
        return Nested().apply({"params": p}, batch["x"]), None

    def factor():
        options = {
            "layers": find_layers(params),
            "layout": batch_layout(4),
            "geometry": SQUARE,
            "key": jax.random.key(0),
        }
        return estimate(forward, square_loss, params, **options).factors["before"][0]

    first, batch["x"] = factor(), 2 * X
    np.testing.assert_allclose(factor()[:3, :3], 4 * first[:3, :3], rtol=1e-5)


class Counted(nn.Module):
    on_call: Callable

    @nn.compact
    def __call__(self, x):
        jax.debug.callback(self.on_call, x[0, 0, 0])
        return nn.Dense(2)(Block()(x).mean(1))


def test_forward_pass_runs_once(randomized):
    calls = []
    model = Counted(calls.append)
    params = randomized(model, X)
    jax.block_until_ready(run(model, params).factors)
    jax.effects_barrier()
    assert len(calls) == 1
    programs = [jax.make_jaxpr(lambda p, f=f: f(model, p)[:2])(params) for f in (run, plain)]
    assert [len(re.findall(r"= sin\b", str(program))) for program in programs] == [1, 1]


def test_products_of_factors_alone_ask_for_highest_precision(randomized):
    params = randomized(Nested(), X)
    for sharing in Sharing:
        step = jax.jit(lambda p, sharing=sharing: run(Nested(), p, sharing=sharing).factors)
        products = [line for line in step.lower(params).as_text().splitlines() if "stablehlo.dot_general" in line]
        square = {f"tensor<{n}x{n}xf32>" for n in (3, 4, 2)}
        highest = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
        assert len(highest) == 6 < len(products)  # A and B of three layers
        assert all(line.rsplit("-> ")[-1].split(" ")[0] in square for line in highest)


class HalfPrecision(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,), dtype=self.dtype, name="conv")(x)
        return nn.Dense(2, dtype=self.dtype, name="head")(jnp.tanh(x).mean(1))


@pytest.mark.parametrize("sharing", Sharing)
def test_factors_of_a_bfloat16_model_are_float32(randomized, sharing):
    x = jnp.asarray(RNG.normal(size=(4, 301, 3)), jnp.bfloat16)  # 1,204 rows: a count that bfloat16 does not hold
    params = randomized(HalfPrecision(jnp.bfloat16), x)

    def loss(outputs):
        return 0.5 * (outputs.astype(jnp.float32) ** 2).sum(), jnp.asarray(4.0)

    got, expected = (
        run(HalfPrecision(dtype), params, x=x.astype(dtype), loss=loss, sharing=sharing).factors
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    # The first layer's input is the same in both, so that its A must agree to float32's precision.
    np.testing.assert_allclose(got["conv"][0], expected["conv"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["head"][0], expected["head"][0], rtol=0.05, atol=0.05)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, perturbation=0.0):
        x = nn.Dense(4, name="inner")(x) + perturbation
        x = nn.BatchNorm(use_running_average=False, name="norm")(x)
        return nn.Dense(2, name="head")(jnp.tanh(x).mean(1))


@pytest.mark.parametrize("sharing", Sharing)
def test_batch_statistics_and_masked_rows(randomized, sharing):
    """Batch statistics come back as auxiliary values; they give padding an output gradient, which is masked."""
    model, is_example = Normalised(), jnp.asarray([1.0, 0.0, 1.0, 1.0])
    params = randomized(model, X)
    state = {"batch_stats": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}}

    def loss(outputs):
        return (is_example[:, None] * outputs**2).sum(), jnp.asarray(3.0)

    def forward(p, perturbation=0.0):
        return model.apply({"params": p, **state}, X, perturbation, mutable=["batch_stats"])

    layers = find_layers(params)
    options = {"layout": batch_layout(4, is_example), "sharing": sharing, "fisher": Fisher.EMPIRICAL}
    got = jax.jit(lambda p: estimate(forward, loss, p, layers=layers, **options))(params)
    cotangents = jax.jit(jax.grad(lambda e: loss(forward(params, e)[0])[0]))(jnp.zeros((4, 5, 4)))
    assert jnp.abs(cotangents[1]).max() > 1e-3
    kept = cotangents[jnp.asarray([0, 2, 3])]
    rows = kept.reshape(-1, 4) if sharing is Sharing.EXPAND else kept.sum(1)
    np.testing.assert_allclose(got.factors["inner"][1], rows.T @ rows / 3, rtol=1e-4, atol=1e-5)
    gradients, aux = jax.jit(jax.grad(lambda p: (loss(forward(p)[0])[0] / 3, forward(p)[1]), has_aux=True))(params)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-6), got.aux, aux)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), got.gradients, gradients)
