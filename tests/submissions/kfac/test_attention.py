"""Reduce on an attention layer's keys: adding one vector to all of them changes nothing, so there is no curvature."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from submissions.kfac import Geometry, LossKind, Sharing, batch_layout, estimate, find_layers


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x, x)
        return nn.Dense(3, name="head")(x.mean(1))


def test_the_keys_are_uninformative_under_reduce_alone():
    x = jax.random.normal(jax.random.key(0), (8, 5, 4))
    params = Attention().init(jax.random.key(1), x)["params"]
    traces = {}
    for sharing in Sharing:
        batch = estimate(
            lambda p: (Attention().apply({"params": p}, x), None),
            lambda z: (0.5 * jnp.square(z).sum(), jnp.float32(8)),
            params,
            layers=find_layers(params),
            layout=batch_layout(8),
            sharing=sharing,
            geometry=Geometry(LossKind.SQUARE),
            key=jax.random.key(2),
        )
        traces[sharing] = {name: float(np.trace(b)) for name, (_, b) in batch.factors.items()}
    assert traces[Sharing.REDUCE]["attention.key"] == 0.0
    assert all(trace > 0 for name, trace in traces[Sharing.REDUCE].items() if name != "attention.key")
    assert all(trace > 0 for trace in traces[Sharing.EXPAND].values())
