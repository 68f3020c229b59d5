"""Graph nets on packed graphs of different sizes, the last of them padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from submissions.kfac import Sharing, graph_layout
from tests.submissions.kfac.models.case import Case, check, cross_entropy, initialised, normal, tap

pytestmark = pytest.mark.usefixtures("quick_compilation")

N_NODE, N_EDGE = np.array([2, 3, 2]), np.array([3, 4, 2])
OF_NODES, OF_EDGES = (np.repeat([0, 1, -1], counts) for counts in (N_NODE, N_EDGE))
IS_GRAPH = jnp.array([1.0, 1.0, 0.0])
GRAPHS = jraph.GraphsTuple(
    nodes=normal(7, 2),
    edges=normal(9, 3, seed=2),
    senders=jnp.array([0, 1, 1, 2, 3, 4, 2, 5, 6]),
    receivers=jnp.array([1, 0, 0, 3, 4, 2, 4, 6, 5]),
    globals=jnp.zeros((3, 2)),
    n_node=jnp.asarray(N_NODE),
    n_edge=jnp.asarray(N_EDGE),
)
LAYOUT = graph_layout(GRAPHS.n_node, GRAPHS.n_edge, 7, 9, IS_GRAPH)
LOSS = cross_entropy(jnp.array([0, 2, 1]), IS_GRAPH)
WIDTH = 4


class GraphNet(nn.Module):
    """Edges, nodes and graphs each updated by a layer of their own."""

    @nn.compact
    def __call__(self, graphs):
        def update(name):
            layer = nn.Dense(WIDTH, name=name)
            return jraph.concatenated_args(lambda x: jnp.tanh(tap(name, layer, x)))

        graphs = jraph.GraphNetwork(update("edges"), update("nodes"), update("graphs"))(graphs)
        return nn.Dense(3, name="head")(graphs.globals)


class GraphConvolutionNet(nn.Module):
    """Nodes' features are mapped, then averaged over neighbours; a graph's are the mean of its nodes'."""

    @nn.compact
    def __call__(self, graphs):
        for name in ("first", "second"):
            layer = nn.Dense(WIDTH, name=name)
            convolution = jraph.GraphConvolution(lambda x, name=name, layer=layer: tap(name, layer, x))
            graphs = convolution(graphs)
            graphs = graphs._replace(nodes=jnp.tanh(graphs.nodes))
        of_nodes = jnp.repeat(jnp.arange(3), graphs.n_node, total_repeat_length=7)
        pooled = jax.ops.segment_sum(graphs.nodes, of_nodes, 3) / graphs.n_node[:, None]
        return nn.Dense(3, name="head")(pooled)


@pytest.mark.parametrize(
    ("model", "captured", "sharing"),
    [
        (GraphNet(), {"edges", "nodes", "graphs", "head"}, Sharing.REDUCE),
        (GraphConvolutionNet(), {"first", "second", "head"}, Sharing.EXPAND),
    ],
    ids=["graph net", "graph convolution net"],
)
def test_graphs(model, captured, sharing):
    examples = {
        "edges": OF_EDGES,
        "nodes": OF_NODES,
        "graphs": np.array([0, 1, -1]),
        "first": OF_NODES,
        "second": OF_NODES,
    }
    params = initialised(model, GRAPHS)["params"]
    check(
        Case(params, lambda p: model.apply({"params": p}, GRAPHS), LOSS, LAYOUT, sharing, captured, examples=examples)
    )
