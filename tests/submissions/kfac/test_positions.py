"""Whose example a row is: padded tokens, flattened and time-major inputs, rows common to all, time inside a scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import (
    CurvatureWarning,
    Fisher,
    Geometry,
    LossKind,
    Sharing,
    batch_layout,
    estimate,
    find_layers,
    row_layout,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 6, 3)), jnp.float32)
LENGTHS = np.array([6, 2, 4, 1])
IS_TOKEN = jnp.asarray(np.arange(6) < LENGTHS[:, None], jnp.float32)


def run(forward, params, layout, sharing, **options):
    options = {"fisher": Fisher.EMPIRICAL, "strict": True, **options}

    def loss(z):
        return jnp.square(z).sum(), jnp.asarray(4.0)

    layers = find_layers(params)
    step = jax.jit(
        lambda p: estimate(
            lambda q: (forward(q), None), loss, p, layers=layers, layout=layout, sharing=sharing, **options
        )
    )
    return step(params)


def assert_same(got, expected):
    assert set(got) == set(expected)
    for name, pair in got.items():
        for factor, reference in zip(pair, expected[name], strict=True):
            np.testing.assert_allclose(factor, reference, rtol=1e-4, atol=1e-6, err_msg=name)


class Tokens(nn.Module):
    """Each token by itself, then the mean over all that are given."""

    is_flat: bool = False
    time_axis: int = 1
    is_convolution: bool = False

    @nn.compact
    def __call__(self, x, is_token=None):
        shape = x.shape
        if self.is_flat:
            x = x.reshape(-1, shape[-1])
        layer = nn.Conv(3, 1, name="tokens") if self.is_convolution else nn.Dense(3, name="tokens")
        x = nn.tanh(layer(x))
        if self.is_flat:
            x = x.reshape(*shape[:-1], 3)
        if is_token is None:
            x = x.mean(self.time_axis)
        else:
            x = (x * is_token[..., None]).sum(self.time_axis) / is_token.sum(self.time_axis)[:, None]
        return nn.Dense(2, name="head")(x)


@pytest.mark.parametrize("is_convolution", [False, True])
@pytest.mark.parametrize("sharing", Sharing)
def test_padded_tokens_are_left_out(randomized, sharing, is_convolution):
    """Against examples one by one, each without its padding, and shown to matter."""
    model = Tokens(is_convolution=is_convolution)
    params = randomized(model, X)
    padded = jnp.where(IS_TOKEN[..., None] > 0, X, 100)

    def forward(p):
        return model.apply({"params": p}, padded, IS_TOKEN)

    got = run(forward, params, batch_layout(4, is_token=IS_TOKEN), sharing).factors
    a, b, n_rows = 0.0, 0.0, 0
    for x, length in zip(X, LENGTHS, strict=True):
        alone = run(
            lambda p, x=x[None, :length]: model.apply({"params": p}, x), params, batch_layout(1), sharing
        ).factors
        weight = length if sharing is Sharing.EXPAND else 1
        a, b, n_rows = a + weight * alone["tokens"][0], b + alone["tokens"][1], n_rows + weight
    assert_same({"tokens": got["tokens"]}, {"tokens": (a / n_rows, b)})
    unmasked = run(forward, params, batch_layout(4), sharing).factors
    assert unmasked["tokens"][0][0, 0] > 100 * got["tokens"][0][0, 0]


def test_an_example_without_real_tokens_is_none_unless_said_to_be(randomized):
    params = randomized(Tokens(), X)
    is_token = IS_TOKEN.at[-1].set(0)

    def head(layout):
        return run(lambda p: Tokens().apply({"params": p}, X), params, layout, Sharing.REDUCE).factors["head"][0]

    is_example = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(
        head(batch_layout(4, is_token=is_token)), head(batch_layout(4, is_example, is_token=is_token))
    )
    all_four = head(batch_layout(4, jnp.ones(4), is_token=is_token))
    np.testing.assert_allclose(all_four, head(batch_layout(4)), rtol=1e-6)


@pytest.mark.parametrize("sharing", Sharing)
def test_flattened_rows(randomized, sharing):
    params = randomized(Tokens(), X)
    example_of = jnp.repeat(jnp.arange(4), 6)
    got = run(lambda p: Tokens(is_flat=True).apply({"params": p}, X), params, row_layout(4, [example_of]), sharing)
    expected = run(lambda p: Tokens().apply({"params": p}, X), params, batch_layout(4), sharing)
    assert_same(got.factors, expected.factors)


@pytest.mark.parametrize("sharing", Sharing)
def test_rows_below_zero_are_padding(randomized, sharing):
    params = randomized(Tokens(), X)
    example_of = jnp.where(IS_TOKEN > 0, jnp.arange(4)[:, None], -1)

    def forward(is_flat):
        return lambda p: Tokens(is_flat=is_flat).apply({"params": p}, X, IS_TOKEN)

    flat = run(forward(True), params, row_layout(4, [example_of.reshape(-1)]), sharing).factors
    whole = run(forward(False), params, row_layout(4, [example_of]), sharing).factors
    expected = run(forward(False), params, batch_layout(4, is_token=IS_TOKEN), sharing).factors
    assert_same(flat, expected)
    assert_same(whole, expected)


@pytest.mark.parametrize("n_positions", [6, 4])
@pytest.mark.parametrize("sharing", Sharing)
def test_time_major_inputs(randomized, sharing, n_positions):
    x = X[:, :n_positions]
    params = randomized(Tokens(), x)
    got = run(
        lambda p: Tokens(time_axis=0).apply({"params": p}, jnp.swapaxes(x, 0, 1)),
        params,
        batch_layout(4, example_axis=1),
        sharing,
    )
    assert_same(
        got.factors,
        run(lambda p: Tokens().apply({"params": p}, x), params, batch_layout(4, example_axis=0), sharing).factors,
    )


def test_as_many_positions_as_examples_are_warned_of_unless_settled(randomized, recwarn):
    x = X[:, :4]
    params = randomized(Tokens(), x)
    run(lambda p: Tokens().apply({"params": p}, x), params, batch_layout(4, example_axis=0), Sharing.EXPAND)
    assert not [w for w in recwarn if w.category is CurvatureWarning]
    with pytest.warns(CurvatureWarning, match="inputs of tokens have two leading axes"):
        run(lambda p: Tokens().apply({"params": p}, x), params, batch_layout(4), Sharing.EXPAND)


def test_examples_that_a_scan_goes_over_are_not_taken_for_time():
    """`lax.map` over as many examples as there are positions looks as a recurrent net does."""
    params = {"tokens": {"kernel": jnp.ones((3, 2))}}

    def forward(p):
        return jax.lax.map(lambda x: jnp.tanh(x @ p["tokens"]["kernel"]).mean(0), X[:, :4])

    with pytest.warns(CurvatureWarning, match="inputs of tokens have two leading axes"):
        run(forward, params, batch_layout(4), Sharing.EXPAND)


class Prefixed(nn.Module):
    """One more position than the mask has."""

    @nn.compact
    def __call__(self, x):
        x = jnp.concatenate([jnp.ones((len(x), 1, 3)), x], axis=1)
        return nn.Dense(2, name="head")(nn.tanh(nn.Dense(3, name="tokens")(x)).mean(1))


def test_positions_beside_those_that_a_mask_describes_are_warned_of(randomized, recwarn):
    params = randomized(Prefixed(), X)

    def forward(p):
        return Prefixed().apply({"params": p}, X)

    example_of = jnp.where(jnp.pad(IS_TOKEN, ((0, 0), (1, 0)), constant_values=1) > 0, jnp.arange(4)[:, None], -1)
    both = row_layout(4, [example_of, jnp.where(IS_TOKEN > 0, jnp.arange(4)[:, None], -1)])
    described = run(forward, params, both, Sharing.EXPAND).factors["tokens"]
    assert not [w for w in recwarn if w.category is CurvatureWarning]
    with pytest.warns(CurvatureWarning, match="inputs of tokens have other positions than those whose padding"):
        unmasked = run(forward, params, batch_layout(4, is_token=IS_TOKEN), Sharing.EXPAND).factors["tokens"]
    rows = np.concatenate([np.ones((4, 1, 3)), X], 1)[np.asarray(example_of) >= 0]
    np.testing.assert_allclose(described[0][:3, :3], rows.T @ rows / len(rows), rtol=1e-5)
    assert np.abs(unmasked[0] - described[0]).max() > 0.1


class SideInput(nn.Module):
    """One row, the same for all examples, added to each."""

    @nn.compact
    def __call__(self, x, side):
        return nn.Dense(2, name="head")(x.mean(1)) + nn.Dense(2, name="side")(side)


def test_a_row_common_to_all_examples(randomized):
    """A is that row's; B's mean over pseudo-targets is the sum over examples of the output Hessian."""
    side = jnp.ones((1, 5))
    params = randomized(SideInput(), X, side)

    def forward(p):
        return SideInput().apply({"params": p}, X, side)

    def b_of(key):
        layout = row_layout(4, shared=[1])
        options = {"fisher": Fisher.SAMPLED, "geometry": Geometry(LossKind.SQUARE), "key": key}
        return run(forward, params, layout, Sharing.EXPAND, **options).factors["side"]

    a, b = jax.vmap(b_of)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(a[0], np.ones((6, 6)), rtol=1e-6)
    np.testing.assert_allclose(b.mean(0), np.eye(2), atol=0.1)
    with pytest.raises(ValueError, match="side: its rows are common to all examples"):
        run(forward, params, row_layout(4, shared=[1]), Sharing.EXPAND)


class OneLayerForBoth(nn.Module):
    """A layer that is used on every example and on a table that all examples share."""

    @nn.compact
    def __call__(self, x, table):
        both = nn.Dense(2, name="both")
        return both(x.mean(1)) + both(table).mean(0)


def test_one_layer_on_examples_and_on_rows_common_to_all_is_refused(randomized):
    table = jnp.ones((3, X.shape[-1]))
    params = randomized(OneLayerForBoth(), X, table)
    with pytest.raises(
        ValueError, match="both: its uses have rows of different kinds, or of different numbers of examples"
    ):
        run(
            lambda p: OneLayerForBoth().apply({"params": p}, X, table),
            params,
            row_layout(4, shared=[3]),
            Sharing.REDUCE,
            fisher=Fisher.SAMPLED,
            geometry=Geometry(LossKind.SQUARE),
            key=jax.random.key(0),
        )


class Unrolled(nn.Module):
    """A simple recurrent cell, in a scan over time or as a loop that calls its layers at every step."""

    is_scanned: bool

    @nn.compact
    def __call__(self, x):
        cell = nn.SimpleCell(3, name="cell")
        if self.is_scanned:
            x = nn.RNN(cell)(x)
            return nn.Dense(2, name="head")(x[:, -1])
        carry = jnp.zeros((len(x), 3))
        for step in range(x.shape[1]):
            carry, _ = cell(carry, x[:, step])
        return nn.Dense(2, name="head")(carry)


@pytest.mark.parametrize("sharing", Sharing)
def test_time_inside_a_scan_is_a_shared_position(randomized, sharing):
    params = randomized(Unrolled(True), X)
    got, expected = (
        run(lambda p, s=s: Unrolled(s).apply({"params": p}, X), params, batch_layout(4), sharing).factors
        for s in (True, False)
    )
    assert set(got) == {"cell.i", "cell.h", "head"}
    assert_same(got, expected)
