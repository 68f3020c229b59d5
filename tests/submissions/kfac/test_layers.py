import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import describe, find_layers, trace_layers
from submissions.kfac.layers import replace_layers


class Varied(nn.Module):
    @nn.compact
    def __call__(self, x):  # [batch, 6, 4]
        x = nn.LayerNorm(name="norm")(x)
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, name="attention")(x, x)
        x = nn.Conv(5, (3,), name="conv")(x)
        x = nn.DenseGeneral((2, 3), use_bias=False, name="ambiguous")(x)
        x = nn.Dense(7, use_bias=False, name="plain")(x.reshape(*x.shape[:-2], -1))
        embedding = nn.Embed(3, 7, name="embedding")(jnp.zeros((), int))
        return nn.Dense(20, name="wide")(x + embedding)


@pytest.fixture
def params(randomized):
    return randomized(Varied(), jnp.zeros((2, 6, 4)))


def test_split_of_every_kernel(params):
    found = {layer.name: (layer.d_in, layer.d_out, layer.has_bias, layer.n_rows) for layer in find_layers(params)}
    assert found == {
        "attention.query": (4, 6, True, 5),
        "attention.key": (4, 6, True, 5),
        "attention.value": (4, 6, True, 5),
        "attention.out": (6, 4, True, 7),
        "embedding": (3, 7, False, 3),
        "conv": (12, 5, True, 13),
        "plain": (6, 7, False, 6),
        "wide": (7, 20, True, 8),
    }


@pytest.mark.parametrize(
    "leaves",
    [
        {"kernel": (3, 4, 5)},  # [in, out, out] or [in, in, out]
        {"kernel": (6, 4, 5), "bias": (4,)},
        {"kernel": (4, 5), "bias": (5,), "scale": (5,)},
        {"kernel": (4, 5), "bias": (4, 5)},
        {"kernel": (5,), "bias": (5,)},
    ],
)
def test_kernels_of_unknown_split_are_refused(leaves):
    assert find_layers({"layer": {key: jnp.zeros(shape) for key, shape in leaves.items()}}) == ()


def test_read_is_bias_last_and_write_its_inverse(params):
    for layer in find_layers(params):
        leaves = params
        for key in layer.path:
            leaves = leaves[key]
        leaves = {"kernel": leaves[layer.kernel], **({"bias": leaves["bias"]} if layer.has_bias else {})}
        matrix = layer.read(params)
        x = np.random.default_rng(0).normal(size=layer.d_in).astype(np.float32)
        n_inputs = len(layer.kernel_shape) - layer.n_output_axes
        expected = np.tensordot(x.reshape(layer.kernel_shape[:n_inputs]), leaves["kernel"], n_inputs)
        expected = (expected + leaves.get("bias", 0)).reshape(-1)
        np.testing.assert_allclose(np.append(x, [1] * layer.has_bias) @ matrix, expected, rtol=1e-4, atol=1e-5)
        written = dict(zip(leaves, layer.write(matrix).values(), strict=True))
        jax.tree.map(np.testing.assert_array_equal, written, leaves)


def test_replacement_keeps_the_leaves_dtype():
    params = {"l": {"kernel": jnp.ones((2, 3), jnp.bfloat16), "bias": jnp.ones(3)}}
    (layer,) = find_layers(params)
    matrix = layer.read(params)
    assert matrix.dtype == jnp.float32
    replaced = replace_layers(params, [layer], {"l": 2 * matrix})["l"]
    assert {key: leaf.dtype for key, leaf in replaced.items()} == {"kernel": jnp.bfloat16, "bias": jnp.float32}
    assert all((leaf == 2).all() for leaf in replaced.values())


def test_replacement_keeps_axes_of_length_one():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((2, 1))}
    (layer,) = trace_layers(params, lambda p: (jnp.ones((4, 3)) @ p["kernel"] + p["bias"].T, None))
    assert layer.has_bias
    replaced = replace_layers(params, [layer], {layer.name: 2 * layer.read(params)})
    assert jax.tree.map(jnp.shape, replaced) == {"kernel": (3, 2), "bias": (2, 1)}


def test_layers_stacked_by_a_scan_are_found_one_by_one():
    """Each reads and writes its own part of the leaves alone."""
    params = {"l": {"kernel": jnp.arange(24.0).reshape(3, 2, 4), "bias": jnp.arange(12.0).reshape(3, 4)}}
    layers = find_layers(params)
    assert [(layer.name, layer.n_rows, layer.d_out) for layer in layers] == [(f"l[{i}]", 3, 4) for i in range(3)]
    np.testing.assert_array_equal(layers[1].read(params), [*params["l"]["kernel"][1], params["l"]["bias"][1]])
    got = replace_layers(params, layers, {"l[1]": jnp.zeros((3, 4))})["l"]
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, old.at[1].set(0)), got, params["l"])


def test_attention_without_biases_is_known_by_its_projections():
    shapes = {"query": (6, 2, 3), "key": (6, 2, 3), "value": (6, 2, 3), "out": (2, 3, 6)}
    params = {"a": {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}}
    found = {layer.name: (layer.d_in, layer.d_out) for layer in find_layers(params)}
    assert found == {f"a.{name}": (6, 6) for name in shapes}
    other = {"a": {**params["a"], "out": {"kernel": jnp.zeros((3, 2, 6))}}}
    assert find_layers(other) == ()


def test_attention_whose_result_goes_through_a_layer_of_another_name_is_known_too():
    shapes = {"query": (6, 2, 3), "key": (5, 2, 3), "value": (5, 2, 3), "projection": (6, 6)}
    params = {"a": {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}}
    found = {layer.name: (layer.d_in, layer.d_out) for layer in find_layers(params)}
    assert found == {"a.query": (6, 6), "a.key": (5, 6), "a.value": (5, 6), "a.projection": (6, 6)}
    del params["a"]["value"]
    assert {layer.name for layer in find_layers(params)} == {"a.projection"}


def test_replace_changes_the_named_layers_alone(params):
    layers = find_layers(params)
    conv = next(layer for layer in layers if layer.name == "conv")
    got = replace_layers(params, layers, {"conv": 2 * conv.read(params)})
    expected = {**params, "conv": jax.tree.map(lambda leaf: 2 * leaf, params["conv"])}
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_description_counts_every_parameter_once(params):
    layers = find_layers(params)
    head, *lines = describe(params, layers).splitlines()
    listed = [line.split()[0] for line in lines]
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    assert sorted(listed) == sorted(".".join(key.key for key in path) for path, _ in leaves)
    fallback = {line.split()[0] for line in lines if line.endswith("fallback")}
    assert fallback == {"norm.scale", "norm.bias", "ambiguous.kernel"}
    n_all = sum(leaf.size for _, leaf in leaves)
    n_preconditioned = sum(layer.n_rows * layer.d_out for layer in layers)
    assert head.startswith(f"{n_preconditioned:,} of {n_all:,} parameters in 8 layers")
    assert n_all - n_preconditioned == 4 + 4 + 5 * 6
