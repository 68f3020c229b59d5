"""What must not change the factors, and how halves of a batch add up."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, batch_layout, estimate, find_layers, graph_layout
from submissions.kfac.factors import Use, input_factor, input_sums, output_factor, spread_indices
from submissions.kfac.sharing import Rows, expand

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 5, 3)), jnp.float32)
KINDS = pytest.mark.parametrize("sharing", Sharing)


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)).mean(1))


def factors(params, x, is_example, sharing):
    return _factors(params, x, jnp.asarray(is_example, jnp.float32), sharing)


@functools.partial(jax.jit, static_argnums=3)
def _factors(params, x, is_example, sharing):
    return estimate(
        lambda p: (Tokens().apply({"params": p}, x), None),
        lambda z: (z.sum(), is_example.sum()),
        params,
        layers=find_layers(params),
        layout=batch_layout(len(x), is_example),
        sharing=sharing,
        fisher=Fisher.EXACT,
        geometry=Geometry(LossKind.SOFTMAX),
        weights=is_example,
    ).factors


def assert_equal(got, expected):
    assert set(got) == set(expected) == {"Dense_0", "Dense_1"}
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), got, expected)


@pytest.fixture
def params(randomized):
    return randomized(Tokens(), X)


@KINDS
def test_padding(params, sharing):
    padded = jnp.insert(X, jnp.asarray([0, 3, 6]), 100.0, axis=0)
    is_example = [0, 1, 1, 1, 0, 1, 1, 1, 0]
    assert_equal(factors(params, padded, is_example, sharing), factors(params, X, [1] * 6, sharing))


@KINDS
def test_permutation_of_examples(params, sharing):
    order = np.asarray([3, 0, 5, 1, 4, 2])
    is_example = np.asarray([1, 1, 0, 1, 1, 1])
    got = factors(params, X[order], is_example[order], sharing)
    assert_equal(got, factors(params, X, is_example, sharing))


@KINDS
def test_weighted_mean_of_two_parts_is_the_whole(params, sharing):
    whole = factors(params, X, [1] * 6, sharing)
    two, four = factors(params, X[:2], [1] * 2, sharing), factors(params, X[2:], [1] * 4, sharing)
    assert_equal(jax.tree.map(lambda a, b: (2 * a + 4 * b) / 6, two, four), whole)


@KINDS
@pytest.mark.parametrize("is_example", [None, [1.0, 0.0, 1.0, 1.0]])
def test_bias_entry_is_an_appended_one(sharing, is_example):
    """Over nodes of graphs with 2, 3, 0 and 4 nodes, the second graph being padding in one case."""
    x = jnp.asarray(RNG.normal(size=(9, 2, 3)), jnp.float32)
    graph_of = jnp.repeat(jnp.arange(4), np.asarray([2, 3, 0, 4]))
    rows = Rows(4, graph_of, None if is_example is None else jnp.asarray(is_example))
    got = input_factor([Use(x, rows)], sharing, has_bias=True)
    ones = jnp.concatenate([x, jnp.ones((9, 2, 1))], axis=-1)
    np.testing.assert_allclose(got, input_factor([Use(ones, rows)], sharing, has_bias=False), rtol=1e-5, atol=1e-6)
    assert got[-1, -1] == pytest.approx(1, rel=1e-6)


def test_counts_by_hand():
    """Graph 0 has rows 1 and 3, graph 1 none, graph 2 row 5, graph 3 (padding) row 7."""
    rows = Rows(4, jnp.asarray([0, 0, 2, 3]), jnp.asarray([1.0, 1.0, 1.0, 0.0]))
    use = [Use(jnp.asarray([[1.0], [3.0], [5.0], [7.0]]), rows)]
    assert input_factor(use, Sharing.EXPAND, False)[0, 0] == pytest.approx((1 + 9 + 25) / 3)
    assert input_factor(use, Sharing.REDUCE, False)[0, 0] == pytest.approx((2**2 + 5**2) / 2)
    assert output_factor(use, Sharing.EXPAND, jnp.asarray(4))[0, 0] == pytest.approx((1 + 9 + 25) / 4)
    assert output_factor(use, Sharing.REDUCE, jnp.asarray(4))[0, 0] == pytest.approx((4**2 + 5**2) / 4)


@KINDS
def test_a_batch_of_padding_gives_zero(sharing):
    use = [Use(jnp.full((2, 3, 2), jnp.inf), Rows(2, None, jnp.zeros(2)))]
    np.testing.assert_array_equal(input_factor(use, sharing, has_bias=True), np.zeros((3, 3)))


@pytest.mark.parametrize("has_bias", [True, False])
def test_expand_draws_some_rows_and_counts_the_real_ones(has_bias):
    """Ten of 30 rows of width 3 (4): the sums are those of the rows drawn, without the padding among them."""
    is_example = np.asarray([1, 1, 0, 1, 1, 1.0])
    x = np.where(is_example[:, None, None] > 0, np.asarray(X, np.float64), np.inf)
    rows = np.where(np.isfinite(x), x, 0).reshape(30, 3)
    is_real = np.repeat(is_example, 5)
    if has_bias:
        rows = np.column_stack([rows, is_real])
    use, key = [Use(jnp.asarray(x, jnp.float32), Rows(6, None, jnp.asarray(is_example)))], jax.random.key(0)
    products, count = input_sums(use, Sharing.EXPAND, has_bias, rows_per_width=2 if has_bias else 3, key=key)
    drawn = np.asarray(spread_indices(key, 30, 10))
    np.testing.assert_allclose(products, rows[drawn].T @ rows[drawn], rtol=1e-5, atol=1e-5)
    assert count == is_real[drawn].sum() < 10


@pytest.mark.parametrize(("n", "n_drawn"), [(30, 10), (31, 12), (7, 7)])
def test_rows_are_drawn_uniformly_and_spread_over_the_examples(n, n_drawn):
    keys = jax.random.split(jax.random.key(0), 4_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: spread_indices(key, n, n_drawn)))(keys))
    low, high = (np.arange(n_drawn) * n // n_drawn, -(-(np.arange(n_drawn) + 1) * n // n_drawn))
    assert (drawn >= low).all() and (drawn < high).all()
    frequency = np.bincount(drawn.ravel(), minlength=n) / len(keys)
    np.testing.assert_allclose(frequency, n_drawn / n, atol=0.04)


def test_no_index_overflows():
    drawn = np.asarray(spread_indices(jax.random.key(0), 2**30, 5_000), np.int64)
    assert (drawn // (2**30 / 5_000)).astype(int).tolist() == list(range(5_000))


def test_drawn_rows_do_not_alias_with_the_positions():
    """Inputs that depend on the position alone, as position embeddings do: one row in 16, of 16 positions.

    Each draw of every sixteenth row would see a single position.
    """
    position = np.random.default_rng(0).normal(size=(16, 2))
    use = [Use(jnp.asarray(np.tile(position, (64, 1, 1)), jnp.float32), Rows(64))]
    whole, n_rows = input_sums(use, Sharing.EXPAND, False)
    keys = jax.random.split(jax.random.key(1), 400)
    drawn = jax.vmap(lambda key: jnp.divide(*input_sums(use, Sharing.EXPAND, False, rows_per_width=32, key=key)))(keys)
    error = np.sqrt(((drawn - whole / n_rows) ** 2).mean((0, 1, 2)))
    products = np.einsum("pi,pj->pij", position, position)
    of_64_independent_draws = np.sqrt(products.var(0).mean() / 64)
    assert error < 1.1 * of_64_independent_draws
    assert of_64_independent_draws < 0.2 * np.sqrt(products.var(0).mean())  # the error of a single position


def test_rows_at_random_need_a_key(params):
    with pytest.raises(ValueError, match="give a key"):
        estimate(
            lambda p: (Tokens().apply({"params": p}, X), None),
            lambda z: (z.sum(), jnp.ones([])),
            params,
            layers=find_layers(params),
            layout=batch_layout(len(X)),
            sharing=Sharing.EXPAND,
            fisher=Fisher.EMPIRICAL,
            rows_per_width=1,
        )


def test_expand_takes_all_rows_where_there_are_few():
    use = [Use(X, Rows(6))]
    some = input_sums(use, Sharing.EXPAND, True, rows_per_width=4, key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, some, input_sums(use, Sharing.EXPAND, True))


@pytest.mark.parametrize("is_example", [jnp.asarray([True, False]), jnp.asarray([1, 0]), jnp.asarray([1.0, 0.0])])
def test_masks_of_any_dtype(is_example):
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    flat, is_real = expand(x, Rows(2, None, is_example))
    np.testing.assert_array_equal(flat, [[1, 2], [0, 0]])
    np.testing.assert_array_equal(is_real, [1, 0])


def test_graph_rows_follow_the_counts():
    is_example = jnp.asarray([1.0, 0.0, 1.0])
    layout = graph_layout(jnp.asarray([2, 1, 2]), jnp.asarray([0, 4, 2]), 5, 6, is_example)
    np.testing.assert_array_equal(layout.rows((5,))[0].example_of, [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(layout.rows((6,))[0].example_of, [1, 1, 1, 1, 2, 2])
    assert layout.rows((3,))[0].example_of is None
    assert all(layout.rows((length,))[0].n_examples == 3 for length in (3, 5, 6))


def test_unknown_and_ambiguous_axes_are_refused():
    with pytest.raises(ValueError, match=r"leading axes are 7x2, which are none of the layout's \(4\)"):
        batch_layout(4).rows((7, 2))
    as_many_edges_as_nodes = graph_layout(jnp.asarray([2, 3]), jnp.asarray([1, 4]), 5, 5, jnp.ones(2))
    with pytest.raises(ValueError, match="two axes of the batch have length 5"):
        as_many_edges_as_nodes.rows((5,))
