"""What is no plain use of a layer is refused by name, with its reason, and warned of once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import Fisher, batch_layout, describe, find_layers, kfac_muon, trace_layers
from tests.submissions.kfac.small import (
    Nested,
    X,
    assert_same_factors,
    assert_same_gradients,
    plain,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


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


class Half(nn.Module):
    @nn.compact
    def __call__(self):
        return self.param("kernel", nn.initializers.normal(), (3, 3))


class Concatenated(nn.Module):
    """Two kernels one above the other, for an input that is two."""

    @nn.compact
    def __call__(self, x):
        x = jnp.concatenate([x, jnp.sin(x)], -1) @ jnp.concatenate([Half(name="upper")(), Half(name="lower")()])
        return nn.Dense(2, name="head")(x.mean(1))


def test_layers_that_the_trace_does_not_find_are_warned_of_too(randomized):
    params = randomized(Concatenated(), X)
    layers = trace_layers(params, lambda p: (Concatenated().apply({"params": p}, X), None))
    assert [layer.name for layer in layers] == ["head"]
    with pytest.warns(UserWarning, match="no curvature for 2 layers.*\\n.*kernel: it goes into `concatenate`"):
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


def of_leaves(outputs, params, *, layers=None, **options):
    """`estimate` of a model that is a function of its leaves; by default of the layers that its forward pass shows."""
    found = trace_layers(params, lambda p: (outputs(p), None)) if layers is None else layers
    loss = {"loss": lambda z: (0.5 * jnp.square(z).sum(), jnp.float32(4))}
    return run(None, params, layers=found, forward=outputs, **loss | options)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def test_a_bias_of_two_kernels_is_the_bias_of_neither():
    params = {"own": {"kernel": normal(3, 2), "bias": normal(2)}, "other": normal(3, 2)}

    def outputs(p):
        own = X.mean(1) @ p["own"]["kernel"] + p["own"]["bias"]
        return jnp.tanh(own) + (X.max(1) @ p["other"] + p["own"]["bias"])

    with pytest.warns(UserWarning, match="own: its bias is added to another kernel's product too"):
        assert of_leaves(outputs, params, layers=find_layers(params)).factors == {}
    assert set(of_leaves(outputs, params).factors) == {"own", "other"}


def test_complex_kernels_are_refused():
    params = {"complex": normal(3, 4) + 1j * normal(3, 4), "real": normal(4, 2)}
    with pytest.warns(UserWarning, match="complex: its product is complex64, and factors are of real numbers"):
        assert set(of_leaves(lambda p: jnp.abs(X.mean(1) @ p["complex"]) @ p["real"], params).factors) == {"real"}


def test_complex_parameters_need_another_optimizer():
    params = {"complex": normal(3, 4) + 1j * normal(3, 4), "real": normal(4, 2)}
    layers = trace_layers(params, lambda p: (jnp.abs(X.mean(1) @ p["complex"]) @ p["real"], None))
    with pytest.raises(ValueError, match="parameter complex is complex: give another optimizer"):
        kfac_muon(layers, learning_rate=0.1).init(params)
    apart = {"ours": kfac_muon(layers, learning_rate=0.1), "other": optax.adam(0.1)}
    optax.multi_transform(apart, {"complex": "other", "real": "ours"}).init(params)


def test_experts_in_a_ragged_product_are_named():
    params = {"experts": normal(2, 3, 4), "head": normal(4, 2)}

    def outputs(p):
        return jax.lax.ragged_dot(X.mean(1), p["experts"], jnp.asarray([1, 3])) @ p["head"]

    with pytest.warns(UserWarning, match="experts: it goes into `ragged_dot"):
        assert set(of_leaves(outputs, params).factors) == {"head"}


def test_a_kernel_that_a_scan_slices_by_another_axis_is_named():
    params = {"stack": normal(3, 2, 3), "head": normal(3, 2)}

    def outputs(p):
        kernels = p["stack"].transpose(1, 0, 2)
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), X.mean(1), kernels)[0] @ p["head"]

    with pytest.warns(UserWarning, match="stack: it goes into a `scan`, not by its first axis"):
        assert set(of_leaves(outputs, params).factors) == {"head"}


def test_layers_wider_than_the_limit_on_both_sides_are_no_surprise(recwarn):
    params = {"wide": normal(3, 4), "head": normal(4, 2)}

    def outputs(p):
        return jnp.tanh(X.mean(1) @ p["wide"]) @ p["head"]

    layers = trace_layers(params, lambda p: (outputs(p), None), max_width=2)
    assert [layer.name for layer in layers] == ["head"]
    assert set(of_leaves(outputs, params, layers=layers, strict=True).factors) == {"head"}
    assert not recwarn.list
    told = describe(params, layers, lambda p: (outputs(p), None), batch_layout(4))
    assert "wide (3, 4): fallback: both of its sides are wider" in told


def test_a_kernel_that_is_no_matrix_of_inputs_and_outputs_is_called_so():
    params = {"odd": normal(3, 3, 2), "head": normal(2, 2)}

    def outputs(p):
        equations = ("bd,edf->bef", "be,edf->bdf")
        return sum(jnp.einsum(equation, X.mean(1), p["odd"]) for equation in equations).mean(1) @ p["head"]

    with pytest.warns(UserWarning, match="odd: its products are not those of one matrix"):
        got = of_leaves(outputs, params)
    assert set(got.factors) == {"head"}


def test_two_kernels_of_one_node_are_not_taken_for_one_another():
    """Both would have the node's name; the second is left out, and said to be."""
    params = {"node": {"kernel": normal(3, 2), "embedding": normal(6, 3)}}
    tokens = jnp.asarray([[0, 5], [2, 1], [3, 3], [4, 0]])
    with pytest.warns(UserWarning, match="node.kernel: its layer is not among those given"):
        got = of_leaves(lambda p: jnp.tanh(p["node"]["embedding"][tokens].mean(1)) @ p["node"]["kernel"], params)
    assert got.factors["node"][0].shape == (6, 1)


@pytest.mark.parametrize("has_result", [False, True])
def test_uses_inside_a_scan_that_the_outputs_do_not_depend_on_are_none(has_result):
    """A scan that hands out what nobody needs: neither its products nor the leaf itself, as NNX's scans do."""
    params = {"kernel": normal(3, 3), "deep": normal(2, 3, 3)}

    def outputs(p):
        def step(x, kernel):
            unused = (10 * x @ p["kernel"], kernel)
            return jnp.sin(x @ p["kernel"]) @ kernel, unused if has_result else None

        return jax.lax.scan(step, X, p["deep"])[0].mean(1)[:, :2]

    got = of_leaves(outputs, params)
    assert set(got.factors) == {"kernel", "deep[0]", "deep[1]"}
    inputs = [X.mean(1), jnp.sin(X @ params["kernel"]) @ params["deep"][0]]
    mean = (inputs[0] + inputs[1].mean(1)) / 2
    np.testing.assert_allclose(got.factors["kernel"][0], mean.T @ mean / 4, rtol=1e-5)


def test_a_barrier_changes_no_kernel():
    params = {"kernel": normal(3, 2)}
    barred = of_leaves(lambda p: X.mean(1) @ jax.lax.optimization_barrier(p["kernel"]), params)
    assert_same_factors(barred.factors, of_leaves(lambda p: X.mean(1) @ p["kernel"], params).factors)
