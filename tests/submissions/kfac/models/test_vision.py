"""Models of images: convolutional and residual nets, vision transformers, a mixer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from submissions.kfac import Sharing, batch_layout, find_layers
from tests.submissions.kfac.models.case import Case, check, cross_entropy, initialised, normal, patch_rows, tap

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = normal(3, 4, 4, 2)
LOSS = cross_entropy(jnp.array([0, 2, 1]))
N_CLASSES, WIDTH = 3, 4


def linen_case(model, x, sharing, captured, **options) -> Case:
    variables = initialised(model, x)
    return Case(
        variables["params"],
        lambda p: model.apply({"params": p}, x),
        LOSS,
        batch_layout(len(x)),
        sharing,
        captured,
        **options,
    )


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(tap("first", nn.Conv(WIDTH, (3, 3), name="first"), x))
        x = nn.relu(tap("second", nn.Conv(WIDTH, (3, 3), strides=2, padding=1, name="second"), x))
        return nn.Dense(N_CLASSES, name="head")(x.reshape(len(x), -1))


@pytest.mark.parametrize("sharing", Sharing)
def test_cnn(sharing):
    rows = {"first": patch_rows(3), "second": patch_rows(3, stride=2)}
    check(linen_case(CNN(), IMAGES, sharing, {"first", "second", "head"}, rows=rows))


class Block(nn.Module):
    """A transformer's, with attention without biases."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=False, name="attention")(y)
        y = nn.gelu(tap(f"{self.name}.up", nn.Dense(6, name="up"), x))
        return x + tap(f"{self.name}.down", nn.Dense(WIDTH, name="down"), y)


ATTENTION = {f"attention.{name}" for name in ("query", "key", "value", "out")}
BLOCK = ATTENTION | {"up", "down"}


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = tap("patches", nn.Conv(WIDTH, (2, 2), (2, 2), name="patches"), x)
        x = x.reshape(len(x), -1, WIDTH)
        x = x + self.param("position", nn.initializers.normal(), (1, *x.shape[1:]))
        return nn.Dense(N_CLASSES, name="head")(Block(name="block")(x).mean(1))


def test_vit():
    captured = {"patches", "head"} | {f"block.{name}" for name in BLOCK}
    rows = {"patches": patch_rows(2, stride=2, padding=0)}
    check(linen_case(ViT(), IMAGES, Sharing.REDUCE, captured, rows=rows))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1, x.shape[-1])
        x = nn.Dense(WIDTH, name="stem")(x)
        y = nn.gelu(tap("tokens_up", nn.Dense(3, name="tokens_up"), x.swapaxes(1, 2)))
        x = x + nn.Dense(x.shape[1], name="tokens_down")(y).swapaxes(1, 2)
        y = nn.gelu(tap("channels_up", nn.Dense(5, name="channels_up"), x))
        x = x + nn.Dense(WIDTH, name="channels_down")(y)
        return nn.Dense(N_CLASSES, name="head")(x.mean(1))


def test_mixer():
    captured = {"stem", "tokens_up", "tokens_down", "channels_up", "channels_down", "head"}
    check(linen_case(Mixer(), IMAGES, Sharing.REDUCE, captured))


class ScannedViT(nn.Module):
    """Blocks of one scan over depth, whose parameters are stacked."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="stem")(x.reshape(len(x), -1, x.shape[-1]))
        scan = nn.scan(_Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = scan(name="blocks")(x, None)
        return nn.Dense(N_CLASSES, name="head")(x.mean(1))


class _Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(name="block")(x), None


def unrolled(params):
    """The same, one block after the other."""
    x = tap("stem", lambda x: nn.Dense(WIDTH).apply({"params": params["stem"]}, x), IMAGES.reshape(3, 16, 2))
    for depth in range(2):
        own = jax.tree.map(lambda p, depth=depth: p[depth], params["blocks"]["block"])
        y = nn.LayerNorm().apply({"params": own["norm"]}, x)
        attention = nn.MultiHeadDotProductAttention(2, use_bias=False)
        x = x + attention.apply({"params": own["attention"]}, y)

        def dense(name, width, x, own=own, depth=depth):
            layer = nn.Dense(width)
            return tap(f"blocks.block.{name}[{depth}]", lambda x: layer.apply({"params": own[name]}, x), x)

        x = x + dense("down", WIDTH, nn.gelu(dense("up", 6, x)))
    return nn.Dense(N_CLASSES).apply({"params": params["head"]}, x.mean(1))


@pytest.mark.parametrize("sharing", Sharing)
def test_vit_with_a_scan_over_depth(sharing):
    captured = {"stem", "head"} | {f"blocks.block.{name}[{depth}]" for name in BLOCK for depth in range(2)}
    check(linen_case(ScannedViT(), IMAGES, sharing, captured, tapped=unrolled))


class MapHead(nn.Module):
    """Multi-head attention pooling: a learned query attends to the tokens."""

    @nn.compact
    def __call__(self, x):
        x = tap("stem", nn.Dense(WIDTH, name="stem"), x.reshape(len(x), -1, x.shape[-1]))
        query = self.param("probe", nn.initializers.normal(), (1, 1, WIDTH))
        x = nn.MultiHeadDotProductAttention(2, name="pool")(jnp.tile(query, (len(x), 1, 1)), x)
        y = tap("up", nn.Dense(6, name="up"), nn.LayerNorm(name="norm")(x))
        return nn.Dense(N_CLASSES, name="head")((x + nn.Dense(WIDTH, name="down")(nn.gelu(y)))[:, 0])


def test_map_head():
    captured = {"stem", "up", "down", "head"} | {f"pool.{name}" for name in ("query", "key", "value", "out")}
    check(linen_case(MapHead(), IMAGES, Sharing.REDUCE, captured))


class ResNet(nn.Module):
    """Convolutions without biases, each followed by a BatchNorm in train mode."""

    conv: type[nn.Module] = nn.Conv

    @nn.compact
    def __call__(self, x):
        x = tap("stem", self.conv(WIDTH, (3, 3), use_bias=False, name="stem"), x)
        y = nn.relu(nn.BatchNorm(use_running_average=False, name="norm_1")(x))
        y = tap("first", self.conv(WIDTH, (3, 3), use_bias=False, name="first"), y)
        y = nn.relu(nn.BatchNorm(use_running_average=False, name="norm_2")(y))
        x = x + self.conv(WIDTH, (3, 3), use_bias=False, name="second")(y)
        return tap("head", nn.Dense(N_CLASSES, name="head"), x.mean((1, 2)))


def resnet_case(model, captured, **options) -> Case:
    variables = initialised(model, IMAGES)

    def forward(params):
        return model.apply(variables | {"params": params}, IMAGES, mutable=["batch_stats"])[0]

    layers = find_layers(variables["params"])
    layout = batch_layout(len(IMAGES))
    return Case(variables["params"], forward, LOSS, layout, Sharing.EXPAND, captured, layers=layers, **options)


def test_resnet_with_batch_norm_in_train_mode():
    taps = "stem", "first"
    rows, no_bias = dict.fromkeys(taps, patch_rows(3)), dict.fromkeys(taps, False)
    check(resnet_case(ResNet(), {"stem", "first", "second", "head"}, rows=rows, has_bias=no_bias))


class StandardisedConv(nn.Conv):
    """The kernel that is used is the leaf, standardised."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        if name != "kernel":
            return value
        return (value - value.mean((0, 1, 2))) / (value.std((0, 1, 2)) + 1e-5)


def test_a_weight_standardised_resnet_is_refused_but_for_its_head():
    model = ResNet(conv=StandardisedConv)
    refused = dict.fromkeys(("stem", "first", "second"), "not into linear layers' products alone")
    check(resnet_case(model, {"head"}, refused=refused))
