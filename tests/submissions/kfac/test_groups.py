"""A parameter tree in parts: stacked layers and the rest, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from submissions.kfac import find_layers
from submissions.kfac.groups import group_by_shape, join, split, unstack

RNG = np.random.default_rng(0)


def leaf(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), dtype)


PARAMS = {
    "attention": {"query": {"kernel": leaf(4, 2, 3), "bias": leaf(2, 3)}},
    "first": {"kernel": leaf(4, 6), "bias": leaf(6)},
    "no_bias": {"kernel": leaf(5, 6)},
    "wide": {"kernel": leaf(4, 7), "bias": leaf(7)},
    "norm": {"scale": leaf(6, dtype=jnp.bfloat16), "bias": leaf(6)},
    "half": {"kernel": leaf(4, 6, dtype=jnp.bfloat16), "bias": leaf(6)},
}
LAYERS = find_layers(PARAMS)
GROUPS = group_by_shape(LAYERS)


def test_layers_of_one_matrix_shape_make_a_group():
    """Whatever their kernels' shapes, and with or without a bias."""
    names = {group.name: [layer.name for layer in group.layers] for group in GROUPS}
    assert names == {"5x6": ["attention.query", "first", "half", "no_bias"], "5x7": ["wide"]}


def test_groups_of_one_shape_and_other_factors_have_names_of_their_own():
    """Names are the keys of the optimisers' states."""
    layers = [*find_layers({"a": {"kernel": leaf(5, 6)}}, max_width=5), *find_layers({"b": {"kernel": leaf(5, 6)}})]
    assert [group.name for group in group_by_shape(layers)] == ["5x6d", "5x6"]


def test_parts_hold_every_value_once():
    parts = split(PARAMS, GROUPS)
    for group in GROUPS:
        assert parts.matrices[group.name].dtype == jnp.float32
        for matrix, layer in zip(parts.matrices[group.name], group.layers, strict=True):
            np.testing.assert_array_equal(matrix, layer.read(PARAMS))
    assert set(parts.others) == {"norm.scale", "norm.bias"}
    assert {x.dtype for x in parts.others.values()} == {jnp.dtype("float32")}
    assert sum(x.size for x in jax.tree.leaves(parts)) == sum(x.size for x in jax.tree.leaves(PARAMS))


def test_join_is_the_inverse_of_split():
    parts = jax.tree.map(lambda x: 2 * x, split(PARAMS, GROUPS))
    got = join(PARAMS, GROUPS, parts)
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), got, PARAMS)


def test_unstack_is_the_inverse_of_stack():
    pairs = {layer.name: (leaf(2, 2), leaf(3)) for layer in LAYERS}
    got = unstack(GROUPS, {group.name: group.stack(pairs, None) for group in GROUPS})
    jax.tree.map(np.testing.assert_array_equal, got, pairs)


def test_a_layer_without_arrays_gets_those_for_missing_ones():
    stacked = GROUPS[0].stack({"first": leaf(2)}, 7 * jnp.ones(2))
    np.testing.assert_array_equal((stacked == 7).all(1), [True, False, True, True])
