"""Small models of the kinds that the official workloads train: their layers and ways of sharing, at width 8 or less."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import linen as nn
from jax import Array

WIDTH = 8


class Dropout(nn.Module):
    """At a rate that may be traced."""

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: float | Array) -> Array:
        if not train:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), 0)


class FeedForward(nn.Module):
    width: int = WIDTH
    glu: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: float | Array) -> Array:
        hidden = nn.Dense(self.width * (2 if self.glu else 1), use_bias=self.use_bias)(x)
        hidden = nn.glu(hidden) if self.glu else nn.gelu(hidden)
        return Dropout()(nn.Dense(x.shape[-1], use_bias=self.use_bias)(hidden), train, rate)


class ClickModel(nn.Module):
    """Two towers of Dense layers around the products of rows of a raw table (criteo1tb)."""

    n_dense: int = 4
    n_rows: int = 64

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: float | Array) -> Array:
        dense, categories = x[:, : self.n_dense], x[:, self.n_dense :].astype(jnp.int32) % self.n_rows
        bottom = nn.relu(nn.Dense(WIDTH)(dense))
        table = self.param("embedding_table", nn.initializers.normal(0.1), (self.n_rows, WIDTH))
        features = jnp.concatenate([bottom[:, None], table[categories]], 1)
        upper = np.triu_indices(features.shape[1], 1)
        products = jnp.einsum("bik,bjk->bij", features, features)[:, upper[0], upper[1]]
        top = nn.relu(nn.Dense(WIDTH)(jnp.concatenate([bottom, products], 1)))
        return nn.Dense(1)(Dropout()(top, train, rate))


class ConvBlock(nn.Module):
    n_channels: int

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: float | Array) -> Array:
        x = instance_norm(nn.Conv(self.n_channels, (3, 3), use_bias=False)(x))
        return Dropout()(nn.leaky_relu(x, 0.2), train, rate)


def instance_norm(x: Array) -> Array:
    centred = x - x.mean((1, 2), keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean((1, 2), keepdims=True) + 1e-5)


class UNet(nn.Module):
    """One level down and up again, normalised by instance (fastmri): `[B, H, W] -> [B, H, W]`."""

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: float | Array) -> Array:
        fine = ConvBlock(3)(x[..., None], train, rate)
        coarse = ConvBlock(4)(nn.avg_pool(fine, (2, 2), (2, 2)), train, rate)
        up = nn.leaky_relu(instance_norm(nn.ConvTranspose(3, (2, 2), (2, 2), use_bias=False)(coarse)), 0.2)
        return nn.Conv(1, (1, 1))(jnp.concatenate([up, fine], -1))[..., 0]


class ResNet(nn.Module):
    """Convolutions without biases, and batch statistics (imagenet_resnet)."""

    n_classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: float | Array) -> Array:
        def norm(y: Array) -> Array:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)

        x = nn.relu(norm(nn.Conv(4, (3, 3), (2, 2), use_bias=False)(x)))
        x = nn.relu(x + norm(nn.Conv(4, (3, 3), use_bias=False)(x)))
        return nn.Dense(self.n_classes)(x.mean((1, 2)))


class ViT(nn.Module):
    """Patches, attention with biases, mean pooling, and a head from zero (imagenet_vit)."""

    n_classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool, rate: float | Array) -> Array:
        x = nn.Conv(WIDTH, (4, 4), (4, 4), padding="VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, WIDTH)
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(y, y)
        x = x + FeedForward()(nn.LayerNorm()(x), train, rate)
        return nn.Dense(self.n_classes, name="head")(nn.tanh(nn.Dense(WIDTH, name="pre_logits")(x.mean(1))))


class Subsampling(nn.Module):
    """A strided convolution by raw parameters, over time and frequency; it shortens the paddings too."""

    @nn.compact
    def __call__(self, x: Array, paddings: Array) -> tuple[Array, Array]:
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (3, 3, 1, 2))
        bias = self.param("bias", nn.initializers.zeros, (2,))
        x = jax.lax.conv_general_dilated(
            x[..., None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        paddings = paddings[:, ::2]
        x = nn.relu(x + bias) * (1 - paddings)[:, :, None, None]
        return x.reshape(*x.shape[:2], -1), paddings


class MaskedBatchNorm(nn.Module):
    """Batch statistics of the frames that are not padding; a step gives the averages two leading axes of length one."""

    @nn.compact
    def __call__(self, x: Array, paddings: Array, train: bool) -> Array:
        n = x.shape[-1]
        scale, bias = (self.param(name, nn.initializers.zeros, (n,)) for name in ("scale", "bias"))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (n,), x.dtype)
        var = self.variable("batch_stats", "var", jnp.ones, (n,), x.dtype)
        if train:
            present = (1 - paddings)[..., None]
            count = jnp.maximum(present.sum(), 1)
            new_mean = (present * x).sum((0, 1), keepdims=True) / count
            new_var = (present * (x - new_mean) ** 2).sum((0, 1), keepdims=True) / count
            if not self.is_initializing():
                mean.value, var.value = 0.9 * mean.value + 0.1 * new_mean, 0.9 * var.value + 0.1 * new_var
        else:
            new_mean, new_var = mean.value, var.value
        return (x - new_mean) * jax.lax.rsqrt(new_var + 1e-3) * (1 + scale) + bias


class Conformer(nn.Module):
    """Attention and a depthwise convolution over frames (librispeech_conformer): -> (logits, paddings)."""

    n_labels: int

    @nn.compact
    def __call__(self, x: Array, paddings: Array, train: bool, rate: float | Array) -> tuple[Array, Array]:
        x, paddings = Subsampling()(x, paddings)
        x = Dropout()(nn.Dense(WIDTH)(x), train, rate)
        x = x + 0.5 * FeedForward()(nn.LayerNorm()(x), train, rate)
        y, present = nn.LayerNorm()(x), 1 - paddings
        x = x + nn.MultiHeadDotProductAttention(2)(y, y, mask=nn.make_attention_mask(present, present))
        y = nn.LayerNorm()(x)
        y = nn.Dense(WIDTH)(y) * nn.sigmoid(nn.Dense(WIDTH)(y)) * present[..., None]
        y = nn.Conv(WIDTH, (3,), feature_group_count=WIDTH, use_bias=False)(y)
        x = x + nn.Dense(WIDTH)(nn.swish(MaskedBatchNorm()(y, paddings, train)))
        return nn.Dense(self.n_labels)(nn.LayerNorm()(x)), paddings


class DeepSpeech(nn.Module):
    """Long short-term memory in both directions (librispeech_deepspeech): -> (logits, paddings)."""

    n_labels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, paddings: Array, train: bool, rate: float | Array) -> tuple[Array, Array]:
        x, paddings = Subsampling()(x, paddings)
        x = Dropout()(nn.Dense(WIDTH)(x), train, rate)
        x = MaskedBatchNorm()(x, paddings, train)
        lengths = (1 - paddings).sum(1).astype(jnp.int32)
        cells = [nn.RNN(nn.OptimizedLSTMCell(4, param_dtype=self.dtype)) for _ in range(2)]
        x = nn.Bidirectional(*cells)(x, seq_lengths=lengths)
        x = x + FeedForward()(x, train, rate)
        return nn.Dense(self.n_labels)(x), paddings


class GraphModel(nn.Module):
    """One step of a graph network with updates of edges, nodes and graphs (ogbg)."""

    n_tasks: int

    @nn.compact
    def __call__(self, graphs: jraph.GraphsTuple, train: bool, rate: float | Array) -> Array:
        graphs = graphs._replace(
            nodes=nn.Dense(6)(graphs.nodes),
            edges=nn.Dense(6)(graphs.edges),
            globals=jnp.zeros((graphs.n_node.shape[0], 6), graphs.nodes.dtype),
        )

        def update():
            @jraph.concatenated_args
            def apply(x: Array) -> Array:
                return Dropout()(nn.relu(nn.LayerNorm()(nn.Dense(6)(x))), train, rate)

            return apply

        network = jraph.GraphNetwork(update_edge_fn=update(), update_node_fn=update(), update_global_fn=update())
        return nn.Dense(self.n_tasks)(network(graphs).globals)


class Translator(nn.Module):
    """Encoder and decoder with one table of embeddings, and attention without biases (wmt)."""

    n_tokens: int

    @nn.compact
    def __call__(self, inputs: Array, targets: Array, train: bool, rate: float | Array) -> Array:
        table = nn.Embed(self.n_tokens, WIDTH, name="shared_embedding")

        def attend(q: Array, kv: Array, mask: Array) -> Array:
            return Dropout()(nn.MultiHeadDotProductAttention(2, use_bias=False)(q, kv, mask=mask), train, rate)

        x = Dropout()(table(inputs) + positions(inputs), train, rate)
        y = nn.LayerNorm()(x)
        x = x + attend(y, y, nn.make_attention_mask(inputs > 0, inputs > 0))
        encoded = nn.LayerNorm()(x + FeedForward()(nn.LayerNorm()(x), train, rate))
        shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        x = Dropout()(table(shifted) + positions(shifted), train, rate)
        y = nn.LayerNorm()(x)
        x = x + attend(y, y, nn.make_causal_mask(targets))
        x = x + attend(nn.LayerNorm()(x), encoded, nn.make_attention_mask(targets > 0, inputs > 0))
        x = nn.LayerNorm()(x + FeedForward()(nn.LayerNorm()(x), train, rate))
        return table.attend(x) / np.sqrt(WIDTH)


class LanguageModel(nn.Module):
    """A decoder with normalised queries, gated layers and a tied output, computed in `dtype` (finewebedu_lm)."""

    n_tokens: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        table = nn.Embed(self.n_tokens, WIDTH, dtype=self.dtype, name="embed")
        x = table(tokens)
        y = nn.RMSNorm()(x).astype(self.dtype)
        q, k, v = (
            nn.DenseGeneral((2, WIDTH // 2), use_bias=False, dtype=self.dtype, name=name)(y)
            for name in ("query", "key", "value")
        )
        q, k = (z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-6) for z in (q, k))
        q = q * self.param("attn_scale", nn.initializers.constant(3.0), ())
        out = nn.dot_product_attention(q, k, v, mask=nn.make_causal_mask(tokens)).reshape(x.shape)
        x = x + nn.DenseGeneral(WIDTH, use_bias=False, dtype=self.dtype, name="attn_out_proj")(out.astype(self.dtype))
        y = nn.RMSNorm()(x).astype(self.dtype)
        x = x + FeedForward(glu=True, use_bias=False)(y, False, 0.0)
        return table.attend(nn.RMSNorm()(x).astype(self.dtype))


def positions(tokens: Array) -> np.ndarray:
    """Fixed sinusoids `[1, length, WIDTH]`."""
    angles = np.arange(tokens.shape[1])[:, None] / 100 ** (np.arange(WIDTH // 2) / (WIDTH // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)[None].astype(np.float32)
