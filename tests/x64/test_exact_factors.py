"""A ⊗ B against the generalised Gauss-Newton matrix: where K-FAC is exact, and where it is not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, batch_layout, estimate, find_layers

SQUARE = Geometry(LossKind.SQUARE, 1.0)
EXACT, INEXACT = 1e-9, 1e-2  # relative errors: below the one, above the other


class DeepLinear(nn.Module):
    """Three linear layers over `[batch, positions, d]`; pooled, the last two follow and precede the mean."""

    is_pooled: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2)(nn.Dense(4)(x))
        if self.is_pooled:
            x = x.mean(1)
        return nn.Dense(3)(x)


class Repeated(nn.Module):
    """One layer used on two and on three positions."""

    is_pooled: bool

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(3, name="shared")
        y = jnp.concatenate([shared(x[:, :2]), shared(x[:, 2:])], axis=1)
        return nn.Dense(2, name="head")(y.mean(1) if self.is_pooled else y)


class AttentionKernels(nn.Module):
    """Value and output projections of attention, in its kernel shapes [d, heads, d_head] and [heads, d_head, d]."""

    is_pooled: bool

    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((2, 3), name="value")(x)
        x = nn.DenseGeneral(4, axis=(-2, -1), name="out")(x)
        return x.mean(1) if self.is_pooled else x


class ReshapedDense(nn.Module):
    """`AttentionKernels` with plain kernels."""

    is_pooled: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="out")(nn.Dense(6, name="value")(x))
        return x.mean(1) if self.is_pooled else x


class Convolutional(nn.Module):
    """One convolution, then a linear layer per pixel or on the mean of the pixels."""

    is_pooled: bool
    kernel_size: tuple[int, int] = (3, 2)
    strides: tuple[int, int] = (1, 1)
    padding: object = "SAME"
    dilation: int = 1

    @nn.compact
    def __call__(self, x):
        kernel_dilation = (self.dilation, self.dilation)
        x = nn.Conv(2, self.kernel_size, self.strides, self.padding, kernel_dilation=kernel_dilation, name="conv")(x)
        return nn.Dense(2, name="head")(x.mean((1, 2)) if self.is_pooled else x)


def half_square(outputs):
    return 0.5 * (outputs**2).sum()


def exact_factors(model, params, x, sharing, geometry=SQUARE, summed_loss=half_square, n_terms=7.0):
    """The factors; M is no number that the code could have found by itself."""
    layers = find_layers(params)
    result = estimate(
        lambda p: (model.apply({"params": p}, x), None),
        lambda outputs: (summed_loss(outputs), jnp.asarray(n_terms)),
        params,
        layers=layers,
        layout=batch_layout(x.shape[0]),
        sharing=sharing,
        fisher=Fisher.EXACT,
        geometry=geometry,
    )
    assert result.uncaptured == {}
    return layers, result.factors


@pytest.fixture
def errors(randomized, kronecker_error):
    """Layer name -> relative error of A ⊗ B."""

    def of(model, x, sharing, geometry=SQUARE, summed_loss=half_square):
        params = randomized(jax.eval_shape(model.init, jax.random.key(0), x)["params"])

        @jax.jit
        def compare(params):
            layers, factors = exact_factors(model, params, x, sharing, geometry, summed_loss)
            case = (lambda p: model.apply({"params": p}, x)), summed_loss, params
            return {layer.name: kronecker_error(*case, layer.path, 7.0, factors[layer.name]) for layer in layers}

        return jax.tree.map(float, compare(params))

    return of


def inputs(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape))


@pytest.mark.parametrize("model", [DeepLinear, Repeated, AttentionKernels])
def test_expand_is_exact_for_losses_per_position(errors, model):
    found = errors(model(is_pooled=False), inputs(4, 5, 3), Sharing.EXPAND)
    assert len(found) >= 2 and max(found.values()) < EXACT, found


@pytest.mark.parametrize("model", [DeepLinear, Repeated, AttentionKernels])
def test_reduce_is_exact_for_mean_pooled_positions(errors, model):
    found = errors(model(is_pooled=True), inputs(4, 5, 3), Sharing.REDUCE)
    assert len(found) >= 2 and max(found.values()) < EXACT, found


@pytest.mark.parametrize(
    ("is_pooled", "sharing", "shared"),
    [
        (True, Sharing.EXPAND, ["Dense_0", "Dense_1"]),
        (False, Sharing.REDUCE, ["Dense_0", "Dense_1", "Dense_2"]),
    ],
)
def test_the_other_flavour_is_not_exact(errors, is_pooled, sharing, shared):
    found = errors(DeepLinear(is_pooled), inputs(4, 5, 3), sharing)
    assert min(found[name] for name in shared) > INEXACT, found
    # A layer after the pooling shares no weights, so that it is exact in either flavour.
    assert all(error < EXACT for name, error in found.items() if name not in shared), found


@pytest.mark.parametrize(
    "geometry",
    [{}, {"strides": (2, 1)}, {"padding": "VALID"}, {"dilation": 2}, {"padding": ((1, 0), (2, 1)), "strides": (2, 3)}],
)
@pytest.mark.parametrize(("is_pooled", "sharing"), [(False, Sharing.EXPAND), (True, Sharing.REDUCE)])
def test_convolution_is_exact(errors, geometry, is_pooled, sharing):
    found = errors(Convolutional(is_pooled, **geometry), inputs(2, 5, 6, 2), sharing)
    assert set(found) == {"conv", "head"} and max(found.values()) < EXACT, found


@pytest.mark.parametrize("sharing", Sharing)
def test_attention_kernels_equal_reshaped_dense_layers(randomized, sharing):
    x = inputs(4, 5, 3)
    params = randomized(jax.eval_shape(AttentionKernels(True).init, jax.random.key(0), x)["params"])
    flat = {
        "value": {"kernel": params["value"]["kernel"].reshape(3, 6), "bias": params["value"]["bias"].reshape(6)},
        "out": {"kernel": params["out"]["kernel"].reshape(6, 4), "bias": params["out"]["bias"]},
    }
    _, factors = exact_factors(AttentionKernels(True), params, x, sharing)
    _, expected = exact_factors(ReshapedDense(True), flat, x, sharing)
    assert set(factors) == set(expected) == {"value", "out"}
    for name in factors:
        for got, want in zip(factors[name], expected[name], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "summed_loss"),
    [
        (LossKind.SOFTMAX, lambda z: optax.softmax_cross_entropy_with_integer_labels(z, jnp.ones(len(z), int)).sum()),
        (LossKind.SIGMOID, lambda z: optax.sigmoid_binary_cross_entropy(z, jnp.ones_like(z)).sum()),
    ],
)
def test_one_example_is_exact_for_any_output_hessian(errors, kind, summed_loss):
    """One example has one H, so that A ⊗ B is exact; two examples have two, and it is not."""
    geometry = Geometry(kind)
    one = errors(DeepLinear(True), inputs(1, 5, 3), Sharing.REDUCE, geometry, summed_loss)
    two = errors(DeepLinear(True), inputs(2, 5, 3), Sharing.REDUCE, geometry, summed_loss)
    assert max(one.values()) < EXACT and min(two.values()) > INEXACT, (one, two)
