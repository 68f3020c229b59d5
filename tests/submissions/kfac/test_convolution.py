import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Sharing
from submissions.kfac.capture import trace
from submissions.kfac.convolution import patch_sums, patches
from submissions.kfac.factors import Use, input_factor
from submissions.kfac.sharing import Rows

CONVOLUTIONS = {
    "plain": nn.Conv(4, (3, 2)),
    "strided": nn.Conv(4, (3, 3), strides=2),
    "valid": nn.Conv(4, (2, 3), strides=(2, 1), padding="VALID"),
    "dilated": nn.Conv(4, (3, 2), kernel_dilation=(1, 2)),
    "unevenly padded, no bias": nn.Conv(4, (3, 3), padding=((2, 0), (1, 3)), use_bias=False),
    "padded by a number": nn.Conv(4, (3, 3), padding=1, strides=(1, 3)),
    "one-dimensional": nn.Conv(4, (3,), padding="VALID", kernel_dilation=2),
}


@pytest.fixture(params=CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def conv(request) -> nn.Conv:
    return request.param


def inputs(conv: nn.Conv) -> jax.Array:
    spatial = (7, 6)[: len(conv.kernel_size)]
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *spatial, 3)), jnp.float32)


def geometry_of(conv: nn.Conv, params, x):
    traced = trace(lambda p: (conv.apply({"params": p}, x), None), params)
    (product,) = traced.products.by_leaf["kernel",]
    return product.convolution


def test_patches_times_kernel_is_the_convolution(conv, randomized):
    x = inputs(conv)
    params = randomized(conv, x)
    geometry = geometry_of(conv, params, x)
    got = patches(x, geometry) @ params["kernel"].reshape(-1, 4) + params.get("bias", 0)
    np.testing.assert_allclose(got, conv.apply({"params": params}, x), rtol=1e-5, atol=1e-5)


def test_reduce_builds_no_patches():
    """Nothing as large as them on its way, where expand has them whole."""
    conv, x = nn.Conv(8, (3, 3)), jnp.ones((4, 16, 16, 8))
    geometry = geometry_of(conv, conv.init(jax.random.key(0), x)["params"], x)

    def largest(sharing):
        program = jax.make_jaxpr(lambda x: input_factor([Use(x, Rows(4), geometry)], sharing, True))(x)
        return max(value.aval.size for equation in program.eqns for value in equation.outvars)

    assert largest(Sharing.REDUCE) < 2 * x.size < 9 * x.size <= largest(Sharing.EXPAND)


def test_patches_equal_xla_patches_reordered(conv, randomized):
    x = inputs(conv)
    geometry = geometry_of(conv, randomized(conv, x), x)
    spatial = "HW"[: len(geometry.window)]
    expected = jax.lax.conv_general_dilated_patches(
        x,
        geometry.window,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
    by_channel = expected.reshape(*expected.shape[:-1], x.shape[-1], -1)  # XLA's features are [channel, *window]
    expected = jnp.swapaxes(by_channel, -1, -2).reshape(expected.shape)
    np.testing.assert_allclose(patches(x, geometry), expected, rtol=1e-5, atol=1e-6)


def test_patch_sums_equal_summed_patches(conv, randomized):
    x = inputs(conv)
    geometry = geometry_of(conv, randomized(conv, x), x)
    sums, n_positions = patch_sums(x, geometry)
    every = patches(x, geometry)
    every = every.reshape(2, -1, every.shape[-1])
    assert n_positions == every.shape[1]
    np.testing.assert_allclose(sums, every.sum(1), rtol=1e-5, atol=1e-5)


def test_factors_of_a_convolution_are_those_of_its_patches(randomized):
    conv = CONVOLUTIONS["strided"]
    x = inputs(conv)
    geometry = geometry_of(conv, randomized(conv, x), x)
    rows = Rows(2, None, jnp.asarray([1.0, 0.0]))
    every = patches(x, geometry)
    for sharing in Sharing:
        got = input_factor([Use(x, rows, geometry)], sharing, has_bias=True)
        expected = input_factor([Use(every, rows)], sharing, has_bias=True)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
