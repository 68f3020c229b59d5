"""Models of sequences: transformers with masks, tied embeddings and dropout, and a recurrent net."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Sharing, batch_layout
from tests.submissions.kfac.models.case import Case, check, cross_entropy, initialised, normal, tap

pytestmark = pytest.mark.usefixtures("quick_compilation")

N_WORDS, WIDTH = 5, 4
TOKENS = jnp.array([[1, 2, 3, 4, 1], [4, 2, 1, 0, 0], [3, 3, 2, 1, 0]])  # 0 is padding
IS_TOKEN = (TOKENS > 0).astype(jnp.float32)
TARGETS = jnp.roll(TOKENS, -1, axis=1)
OF_TOKENS = np.where(np.asarray(IS_TOKEN) > 0, np.arange(3)[:, None], -1)
LOSS = cross_entropy(TARGETS, IS_TOKEN)
PROJECTIONS = ("query", "key", "value", "out")


class Feed(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(tap(f"{self.name}.up", nn.Dense(6, name="up"), nn.LayerNorm(name="norm")(x)))
        y = nn.Dropout(self.rate, deterministic=not self.rate)(y)
        return x + tap(f"{self.name}.down", nn.Dense(WIDTH, name="down"), y)


class Decoder(nn.Module):
    """Decoder-only; the head is the embedding, or a layer of its own."""

    is_tied: bool

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(N_WORDS, WIDTH, name="embed")
        x = embed(tokens)
        mask = nn.combine_masks(nn.make_causal_mask(tokens), nn.make_attention_mask(tokens > 0, tokens > 0))
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, mask=mask)
        x = Feed(0.3, name="feed")(x)
        return embed.attend(x) if self.is_tied else nn.Dense(N_WORDS, name="head")(x)


@pytest.mark.parametrize("is_tied", [True, False])
def test_decoder(is_tied):
    model = Decoder(is_tied)
    params = initialised(model, TOKENS)["params"]

    def forward(p):
        return model.apply({"params": p}, TOKENS, rngs={"dropout": jax.random.key(5)})

    captured = {"embed", "feed.up", "feed.down"} | {f"attention.{name}" for name in PROJECTIONS}
    captured |= set() if is_tied else {"head"}
    layout = batch_layout(len(TOKENS), is_token=IS_TOKEN)
    examples = dict.fromkeys(("feed.up", "feed.down"), OF_TOKENS)
    check(Case(params, forward, LOSS, layout, Sharing.EXPAND, captured, examples=examples))


class EncoderDecoder(nn.Module):
    """Cross-attention of the targets' earlier words to the source's; one embedding for all."""

    @nn.compact
    def __call__(self, source, target):
        embed = nn.Embed(N_WORDS, WIDTH, name="embed")
        encoded = Feed(name="encoder_feed")(
            nn.MultiHeadDotProductAttention(2, name="encoder_attention")(
                embed(source), mask=nn.make_attention_mask(source > 0, source > 0)
            )
        )
        x = embed(target)
        x = x + nn.MultiHeadDotProductAttention(2, name="decoder_attention")(x, mask=nn.make_causal_mask(target))
        cross = nn.MultiHeadDotProductAttention(2, name="cross_attention")
        x = x + cross(x, encoded, mask=nn.make_attention_mask(target > 0, source > 0))
        return nn.Dense(N_WORDS, name="head")(Feed(name="decoder_feed")(x))


def test_encoder_decoder():
    """The source's padding is counted, as the layout's mask is that of the targets, of another length."""
    model, source = EncoderDecoder(), jnp.array([[1, 2, 0, 0], [4, 3, 2, 1], [2, 2, 2, 0]])
    params = initialised(model, source, TOKENS)["params"]
    names = ("encoder_attention", "decoder_attention", "cross_attention")
    captured = {f"{name}.{projection}" for name in names for projection in PROJECTIONS} | {"embed", "head"}
    captured |= {f"{part}_feed.{layer}" for part in ("encoder", "decoder") for layer in ("up", "down")}
    examples = dict.fromkeys(("decoder_feed.up", "decoder_feed.down"), OF_TOKENS)
    layout = batch_layout(len(TOKENS), is_token=IS_TOKEN)

    def forward(p):
        return model.apply({"params": p}, source, TOKENS)

    check(Case(params, forward, LOSS, layout, Sharing.EXPAND, captured, examples=examples))


class Recurrent(nn.Module):
    cell: type[nn.RNNCellBase]

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell(WIDTH, name="cell"), name="lstm")(nn.Dense(3, name="stem")(x))
        return nn.Dense(N_WORDS, name="head")(x)


def by_hand(params, x):
    """The same, gate by gate and step by step."""
    x = nn.Dense(3).apply({"params": params["stem"]}, x)
    cell = params["lstm"]["cell"] if "lstm" in params else params["cell"]
    h = c = jnp.zeros((len(x), WIDTH))
    states = []
    for t in range(x.shape[1]):
        gates = {}
        for gate in "ifgo":
            own = cell[f"h{gate}"]
            from_h = tap(f"cell.h{gate}", lambda h, own=own: h @ own["kernel"] + own["bias"], h)
            from_x = tap(f"cell.i{gate}", lambda x, gate=gate: x @ cell[f"i{gate}"]["kernel"], x[:, t])
            gates[gate] = from_h + from_x
        c = nn.sigmoid(gates["f"]) * c + nn.sigmoid(gates["i"]) * jnp.tanh(gates["g"])
        h = nn.sigmoid(gates["o"]) * jnp.tanh(c)
        states.append(h)
    return nn.Dense(N_WORDS).apply({"params": params["head"]}, jnp.stack(states, 1))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell])
@pytest.mark.parametrize("sharing", Sharing)
def test_lstm_shares_its_weights_over_time(sharing, cell):
    """Also where the gates' kernels lie side by side in one product."""
    model, x = Recurrent(cell), normal(3, 4, 2)
    params = initialised(model, x)["params"]
    captured = {"stem", "head"} | {f"cell.{side}{gate}" for side in "hi" for gate in "ifgo"}
    check(
        Case(
            params,
            lambda p: model.apply({"params": p}, x),
            cross_entropy(jnp.arange(12).reshape(3, 4) % N_WORDS),
            batch_layout(3),
            sharing,
            captured,
            tapped=lambda p: by_hand(p, x),
            has_bias={f"cell.i{gate}": False for gate in "ifgo"},
        )
    )
