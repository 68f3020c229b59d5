"""Kernels whose inputs are not their leading axes have the curvature, and the steps, of those rearranged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import (
    Fisher,
    Sharing,
    batch_layout,
    eigenbasis_adam,
    estimate,
    find_layers,
    kfac,
    kfac_muon,
    trace_layers,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def drawn(*shape):
    """Of a shape always the same numbers, in whatever order the tests run."""
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


X = drawn(6, 4, 3)  # examples, positions, features


# The product, the kernel's shape, the bias's, and the order of the kernel's axes with the inputs first.
PRODUCTS = {
    "[outputs, inputs]": ("btd,od->bto", (5, 3), (5,), (1, 0)),
    "[heads, inputs, width]": ("btd,ndh->btnh", (2, 3, 4), (2, 4), (1, 0, 2)),
    "[three, heads, inputs, width]": ("btd,kndh->btknh", (3, 2, 3, 2), (3, 2, 2), (2, 0, 1, 3)),
    "[width, positions, outputs, features]": ("btd,wtod->bwo", (2, 4, 5, 3), (2, 5), (1, 3, 0, 2)),
}


def model(equation, order=None):
    """Of a kernel as it is, or of one with its axes in `order`."""
    inverse = None if order is None else tuple(order.index(axis) for axis in range(len(order)))

    def outputs(params):
        own = params["own"]
        kernel = own["kernel"] if inverse is None else own["kernel"].transpose(inverse)
        y = jnp.einsum(equation, X, kernel) + own["bias"]
        return jnp.tanh(y).reshape(6, -1) @ params["head"]["kernel"]

    return outputs


def estimated(outputs, params, **options):
    def forward(p):
        return outputs(p), None

    layers = trace_layers(params, forward)
    options = {"fisher": Fisher.EMPIRICAL, "strict": True, **options}

    def loss(z):
        return 0.5 * jnp.square(z).sum(), jnp.float32(6)

    return layers, estimate(forward, loss, params, layers=layers, layout=batch_layout(6), **options)


def both(name):
    """(model, parameters) of a kernel as it is, and of the same kernel with its inputs first."""
    equation, shape, bias, order = PRODUCTS[name]
    n = np.prod(jax.eval_shape(lambda: jnp.einsum(equation, X, jnp.zeros(shape))).shape[1:])
    params = {"own": {"kernel": drawn(*shape), "bias": drawn(*bias)}, "head": {"kernel": drawn(int(n), 2)}}
    own = {"kernel": params["own"]["kernel"].transpose(order), "bias": params["own"]["bias"]}
    return (model(equation), params), (model(equation, order), params | {"own": own}), order


@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_factors_are_those_of_the_kernel_with_its_inputs_first(name, sharing):
    here, there, _ = both(name)
    (_, got), (_, expected) = (estimated(*own, sharing=sharing) for own in (here, there))
    assert set(got.factors) == {"own", "head"} and not got.uncaptured
    for layer, pair in expected.factors.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got.factors[layer], pair)


@pytest.mark.parametrize("optimizer", [kfac, kfac_muon, eigenbasis_adam], ids=lambda optimizer: optimizer.__name__)
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_steps_are_those_of_the_kernel_with_its_inputs_first(name, optimizer):
    here, there, order = both(name)
    options = {"damping": 1e-2} if optimizer is kfac else {}

    def step(outputs, params):
        layers, batch = estimated(outputs, params)
        own = optimizer(layers, learning_rate=0.1, **options)
        return own.update(batch.gradients, own.init(params), params, factors=batch.factors, refresh=True)[0]

    got, expected = step(*here), step(*there)
    np.testing.assert_allclose(got["own"]["kernel"].transpose(order), expected["own"]["kernel"], rtol=2e-2, atol=1e-5)
    np.testing.assert_allclose(got["own"]["bias"], expected["own"]["bias"], rtol=2e-2, atol=1e-5)


def test_kernels_that_a_scan_stacks_may_have_their_outputs_first():
    stacked = {"deep": {"kernel": drawn(2, 3, 3), "bias": drawn(2, 3)}}

    def scanned(kernel_of):
        def outputs(params):
            def block(x, own):
                return jnp.sin(x @ kernel_of(own["kernel"]) + own["bias"]), None

            return jax.lax.scan(block, X, params["deep"])[0].mean(1)

        return outputs

    turned = {"deep": stacked["deep"] | {"kernel": stacked["deep"]["kernel"].transpose(0, 2, 1)}}
    _, got = estimated(scanned(lambda kernel: kernel.T), stacked)
    _, expected = estimated(scanned(lambda kernel: kernel), turned)
    assert set(got.factors) == {"deep[0]", "deep[1]"}
    for layer, pair in expected.factors.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got.factors[layer], pair)


CONVOLUTIONS = {"OIHW": (3, 2, 0, 1), "OHWI": (3, 0, 1, 2), "IOHW": (2, 3, 0, 1)}  # from HWIO


@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_convolutions_may_have_their_kernels_axes_in_any_order(form, sharing):
    """PyTorch and Equinox have OIHW."""
    images = drawn(6, 5, 5, 2)
    params = {"own": {"kernel": drawn(3, 3, 2, 4), "bias": drawn(4)}, "head": {"kernel": drawn(4, 2)}}
    order = CONVOLUTIONS[form]
    turned = params | {"own": params["own"] | {"kernel": params["own"]["kernel"].transpose(order)}}

    def of(kernel_form):
        def outputs(p):
            numbers = ("NHWC", kernel_form, "NHWC")
            y = jax.lax.conv_general_dilated(images, p["own"]["kernel"], (2, 1), "SAME", dimension_numbers=numbers)
            return jnp.tanh(y + p["own"]["bias"]).mean((1, 2)) @ p["head"]["kernel"]

        return outputs

    (layers, got), (usual, expected) = (
        estimated(of(kernel_form), values, sharing=sharing)
        for kernel_form, values in ((form, turned), ("HWIO", params))
    )
    assert set(got.factors) == {"own", "head"}
    for layer, pair in expected.factors.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got.factors[layer], pair)
    updates = []
    for own, batch, values in ((layers, got, turned), (usual, expected, params)):
        optimizer = kfac_muon(own, learning_rate=0.1)
        step = optimizer.update(batch.gradients, optimizer.init(values), values, factors=batch.factors, refresh=True)
        updates.append(step[0]["own"]["kernel"])
    np.testing.assert_allclose(updates[0], updates[1].transpose(order), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 5)])
def test_a_bias_with_axes_of_length_one_is_the_layers(shape):
    params = {"own": {"kernel": drawn(3, 5), "bias": drawn(5)}, "head": {"kernel": drawn(20, 2)}}
    wide = params | {"own": params["own"] | {"bias": params["own"]["bias"].reshape(shape)}}

    def outputs(p):
        return jnp.tanh(X @ p["own"]["kernel"] + p["own"]["bias"]).reshape(6, -1) @ p["head"]["kernel"]

    (layers, got), (_, expected) = (estimated(outputs, own) for own in (wide, params))
    assert got.factors["own"][0].shape == (4, 4)
    np.testing.assert_allclose(got.factors["own"][0], expected.factors["own"][0], rtol=1e-5)
    optimizer = kfac_muon(layers, learning_rate=0.1)
    updates, _ = optimizer.update(got.gradients, optimizer.init(wide), wide, factors=got.factors, refresh=True)
    assert updates["own"]["bias"].shape == shape and np.abs(updates["own"]["bias"]).max() > 0


def test_kernels_side_by_side_may_have_biases_with_axes_of_length_one():
    params = {"head": {"kernel": drawn(8, 2)}}
    params |= {name: {"kernel": drawn(3, n), "bias": drawn(1, n)} for name, n in (("left", 5), ("right", 3))}

    def outputs(p):
        kernel, bias = (jnp.concatenate([p["left"][key], p["right"][key]], 1) for key in ("kernel", "bias"))
        return jnp.tanh(X.mean(1) @ kernel + bias) @ p["head"]["kernel"]

    _, got = estimated(outputs, params)
    assert {name: pair[0].shape for name, pair in got.factors.items()} == {
        "left": (4, 4),
        "right": (4, 4),
        "head": (8, 8),
    }


def test_kernels_side_by_side_may_have_an_axis_of_length_one():
    params = {"head": {"kernel": drawn(8, 2)}, "left": {"kernel": drawn(1, 5, 3)}, "right": {"kernel": drawn(1, 3, 3)}}

    def outputs(p):
        kernel = jnp.concatenate([p["left"]["kernel"][0], p["right"]["kernel"][0]])
        return jnp.tanh(X.mean(1) @ kernel.T) @ p["head"]["kernel"]

    plain = {name: {"kernel": own["kernel"].reshape(own["kernel"].shape[-2:])} for name, own in params.items()}

    def reference(p):
        kernel = jnp.concatenate([p["left"]["kernel"].T, p["right"]["kernel"].T], 1)
        return jnp.tanh(X.mean(1) @ kernel) @ p["head"]["kernel"]

    (_, got), (_, expected) = estimated(outputs, params), estimated(reference, plain)
    for layer, pair in expected.factors.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got.factors[layer], pair)


def test_a_kernel_reshaped_in_fortrans_order_is_not_followed():
    """Of a square kernel it is the transpose, which a reshape without a change of the shape would not be."""
    params = {"own": drawn(3, 3), "head": {"kernel": drawn(3, 2)}}

    def outputs(p):
        return jnp.tanh(X.mean(1) @ p["own"].reshape(3, 3, order="F")) @ p["head"]["kernel"]

    with pytest.raises(ValueError, match="own: it goes into"):
        estimated(outputs, params)


def test_a_bias_is_found_after_a_product_has_got_an_axis():
    params = {"own": {"kernel": drawn(3, 5), "bias": drawn(5)}, "head": {"kernel": drawn(5, 2)}}

    def outputs(p):
        y = jax.lax.expand_dims(X.mean(1) @ p["own"]["kernel"], (1,)) + p["own"]["bias"]
        return jnp.tanh(y[:, 0]) @ p["head"]["kernel"]

    _, got = estimated(outputs, params)
    assert got.factors["own"][0].shape == (4, 4)


def test_a_kernel_that_is_only_used_transposed_needs_trace_layers():
    """`find_layers` takes the leading axis for the inputs, so that A would be the outputs' factor."""
    params = {"own": {"kernel": drawn(5, 3)}, "head": {"kernel": drawn(5, 2)}}

    def outputs(p):
        return jnp.tanh(X.mean(1) @ p["own"]["kernel"].T) @ p["head"]["kernel"]

    loss = {"layout": batch_layout(6), "fisher": Fisher.EMPIRICAL, "strict": True}
    with pytest.raises(ValueError, match=r"own: its inputs meet the axes \(1,\) of its kernel; find the layers by"):
        estimate(
            lambda p: (outputs(p), None),
            lambda z: (0.5 * jnp.square(z).sum(), jnp.float32(6)),
            params,
            layers=find_layers(params),
            **loss,
        )


def test_a_table_of_positions_in_two_parts_is_no_bias():
    params = {
        "embedding": drawn(7, 5),
        "first": drawn(1, 1, 5),
        "others": drawn(1, 3, 5),
        "head": {"kernel": drawn(5, 2)},
    }
    tokens = jnp.arange(24).reshape(6, 4) % 7

    def outputs(p):
        x = p["embedding"][tokens] + jnp.concatenate([p["first"], p["others"]], 1)
        return x.mean(1) @ p["head"]["kernel"]

    _, got = estimated(outputs, params)
    assert set(got.factors) == {"embedding", "head"}


@pytest.mark.parametrize("find", [find_layers, lambda params: trace_layers(params, lambda p: (X, None))])
def test_two_parameters_of_one_name_are_refused(find):
    params = {"a.b": {"kernel": drawn(3, 5)}, "a": {"b": {"kernel": drawn(3, 5)}}}
    with pytest.raises(ValueError, match=r"two parameters are called a\.b\.kernel: rename one"):
        find(params)
    optimizer = kfac_muon(find_layers({"c": {"kernel": drawn(3, 5)}}), learning_rate=0.1)
    with pytest.raises(ValueError, match=r"two parameters are called a\.b\.kernel: rename one"):
        optimizer.init(params | {"c": {"kernel": drawn(3, 5)}})


def test_layers_of_one_example_under_vmap_have_their_biases():
    """As Equinox writes them: `weight @ x + bias`, and a convolution of `[channels, height, width]`."""
    images = drawn(6, 2, 5, 5)
    params = {
        "conv": {"weight": drawn(4, 2, 3, 3), "bias": drawn(4, 1, 1)},
        "hidden": {"weight": drawn(8, 4), "bias": drawn(8)},
        "head": {"weight": drawn(2, 8), "bias": drawn(2)},
    }

    def of_one(p, image):
        x = jax.lax.conv_general_dilated(image[None], p["conv"]["weight"], (1, 1), "SAME")[0] + p["conv"]["bias"]
        x = jnp.tanh(x).mean((1, 2))
        x = jnp.tanh(p["hidden"]["weight"] @ x + p["hidden"]["bias"])
        return p["head"]["weight"] @ x + p["head"]["bias"]

    layers, got = estimated(lambda p: jax.vmap(lambda image: of_one(p, image))(images), params)
    assert {layer.kernel_path[0]: layer.has_bias for layer in layers} == {"conv": True, "hidden": True, "head": True}
    inputs = jax.vmap(
        lambda image: jnp.tanh(
            jax.lax.conv_general_dilated(image[None], params["conv"]["weight"], (1, 1), "SAME")[0]
            + params["conv"]["bias"]
        ).mean((1, 2))
    )(images)
    rows = np.concatenate([inputs, np.ones((6, 1))], 1)
    np.testing.assert_allclose(got.factors["hidden.weight"][0], rows.T @ rows / 6, rtol=1e-4, atol=1e-6)
    optimizer = kfac_muon(layers, learning_rate=0.1)
    updates, _ = optimizer.update(got.gradients, optimizer.init(params), params, factors=got.factors, refresh=True)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
