"""A part of a batch: which examples it holds, and that what is computed on it is theirs alone."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from submissions.algoperf import subset


def test_of_plain_examples_it_takes_every_nth():
    batch = {"inputs": jnp.arange(12.0).reshape(6, 2), "targets": jnp.arange(6), "weights": jnp.ones(6)}
    part = subset.one_example_in(batch, 3)
    np.testing.assert_array_equal(part["inputs"], [[0, 1], [6, 7]])
    np.testing.assert_array_equal(part["targets"], [0, 3])
    assert part["weights"].shape == (2,)


def packed(sizes: list[tuple[int, int]], n_nodes: int, n_edges: int, n_graphs: int, seed: int = 0) -> dict:
    """Graphs of the given (nodes, edges), padded by one graph that takes what is left, and by empty ones."""
    rng = np.random.default_rng(seed)
    n_node, n_edge = (np.array([size[i] for size in sizes]) for i in (0, 1))
    starts = np.cumsum(n_node) - n_node
    ends = [
        np.concatenate([start + rng.integers(0, n, e) for start, (n, e) in zip(starts, sizes, strict=True)])
        for _ in range(2)
    ]
    padding = n_nodes - n_node.sum(), n_edges - n_edge.sum()
    empty = [0] * (n_graphs - len(sizes) - 1)
    senders, receivers = (np.concatenate([end, np.full(padding[1], n_nodes - 1)]).astype(np.int32) for end in ends)
    graphs = jraph.GraphsTuple(
        nodes=jnp.asarray(rng.normal(size=(n_nodes, 3)), jnp.float32),
        edges=jnp.asarray(rng.normal(size=(n_edges, 2)), jnp.float32),
        senders=jnp.asarray(senders),
        receivers=jnp.asarray(receivers),
        globals=jnp.zeros((n_graphs, 1)),
        n_node=jnp.asarray([*n_node, padding[0], *empty], jnp.int32),
        n_edge=jnp.asarray([*n_edge, padding[1], *empty], jnp.int32),
    )
    weights = (np.arange(n_graphs) < len(sizes)).astype(np.float32)[:, None].repeat(2, 1)
    return {"inputs": graphs, "targets": jnp.arange(2.0 * n_graphs).reshape(n_graphs, 2), "weights": weights}


def test_of_packed_graphs_it_takes_the_first_that_fit():
    """Half of 40 nodes, 60 edges and 12 graphs: the fourth graph's 8 nodes no longer fit into 20."""
    batch = packed([(5, 8), (6, 9), (5, 5), (8, 9), (3, 2)], 40, 60, 12)
    part = subset.one_example_in(batch, 2)
    graphs = part["inputs"]
    np.testing.assert_array_equal(graphs.n_node, [5, 6, 5, 4, 0, 0])
    np.testing.assert_array_equal(graphs.n_edge, [8, 9, 5, 8, 0, 0])
    np.testing.assert_array_equal(part["weights"], [[1, 1]] * 3 + [[0, 0]] * 3)
    np.testing.assert_array_equal(part["targets"], batch["targets"][:6])
    assert graphs.nodes.shape == (20, 3) and graphs.edges.shape == (30, 2) and graphs.globals.shape == (6, 1)
    assert int(graphs.senders.max()) == int(graphs.receivers.max()) == 19
    for name in ("senders", "receivers"):
        np.testing.assert_array_equal(getattr(graphs, name)[:22], getattr(batch["inputs"], name)[:22])
        np.testing.assert_array_equal(getattr(graphs, name)[22:], 19)


def test_a_graph_network_sees_the_kept_graphs_as_in_the_whole_batch():
    def sums(graphs: jraph.GraphsTuple) -> jax.Array:
        """What each graph's nodes receive, `[n_graphs, 3]`."""
        received = jax.ops.segment_sum(graphs.nodes[graphs.senders], graphs.receivers, len(graphs.nodes))
        ids = jnp.repeat(jnp.arange(len(graphs.n_node)), graphs.n_node, total_repeat_length=len(graphs.nodes))
        return jax.ops.segment_sum(received**2, ids, len(graphs.n_node))

    batch = packed([(5, 8), (6, 9), (5, 5), (8, 9), (3, 2)], 40, 60, 12)
    part = jax.jit(subset.one_example_in, static_argnums=1)(batch, 2)
    np.testing.assert_allclose(sums(part["inputs"])[:3], sums(batch["inputs"])[:3], rtol=1e-6)


def test_nothing_fits():
    """A first graph larger than the part: nothing but padding is left."""
    part = subset.one_example_in(packed([(30, 20), (3, 2)], 40, 60, 12), 2)
    assert not np.asarray(part["weights"]).any()
    np.testing.assert_array_equal(part["inputs"].n_node, [20, 0, 0, 0, 0, 0])
