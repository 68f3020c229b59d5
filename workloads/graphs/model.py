"""A graph network that predicts from its global attribute.

Source: the AlgoPerf `ogbg` model (Battaglia et al. 2018, arXiv 1806.01261, by `jraph.GraphNetwork`). The
parameters have that model's names, so that parameter trees can be exchanged.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jraph
from flax import linen as nn

from workloads.dropout import Dropout


class GraphNetworkModel(nn.Module):
    """Node and edge embeddings, message-passing steps with edge, node and global MLPs, a linear decoder.

    Each MLP layer is Dense -> LayerNorm -> activation -> Dropout. Neighbours, nodes and edges are summed.
    """

    num_outputs: int
    latent_dim: int = 256
    hidden_dims: tuple[int, ...] = (256,)
    num_message_passing_steps: int = 5
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @property
    def output_layer_name(self) -> str:
        """Name of the decoder's parameters: the Dense after all those of the MLPs."""
        return f"Dense_{3 * self.num_message_passing_steps * len(self.hidden_dims)}"

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        """Graphs with nodes [n_nodes, d_v] and edges [n_edges, d_e] -> logits [n_graphs, num_outputs]."""

        @jraph.concatenated_args
        def mlp(x: jax.Array) -> jax.Array:
            for features in self.hidden_dims:
                x = nn.LayerNorm()(nn.Dense(features)(x))
                x = Dropout(deterministic=not train)(self.activation(x), dropout_rate)
            return x

        embed = jraph.GraphMapFeatures(
            embed_node_fn=nn.Dense(self.latent_dim, name="node_embedding"),
            embed_edge_fn=nn.Dense(self.latent_dim, name="edge_embedding"),
        )
        graph = embed(graph._replace(globals=jnp.zeros((graph.n_node.shape[0], self.num_outputs))))
        for _ in range(self.num_message_passing_steps):
            graph = jraph.GraphNetwork(update_edge_fn=mlp, update_node_fn=mlp, update_global_fn=mlp)(graph)
        return nn.Dense(self.num_outputs)(graph.globals)
