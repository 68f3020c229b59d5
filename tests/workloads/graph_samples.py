"""Small made-up graphs, and the same graphs as jraph sees them."""

import jraph
import numpy as np

from workloads.graphs.store import PackedGraphs, pack


def random_graphs(n_graphs: int, *, n_tasks: int = 3, seed: int = 0) -> PackedGraphs:
    """Graphs of 1-40 nodes and 0-44 bonds; a third of the labels missing; every third in validation."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(n_graphs):
        n_nodes, n_bonds = rng.integers(1, 41), rng.integers(0, 45)
        parts.append(
            (
                rng.integers(0, 120, (n_nodes, 9)),
                rng.integers(0, 5, (n_bonds, 3)),
                rng.integers(0, n_nodes, (n_bonds, 2)),
            )
        )
    labels = rng.integers(0, 2, (n_graphs, n_tasks)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.3] = np.nan
    return pack(parts, labels, np.arange(n_graphs) % 3 == 2)


def as_jraph(graphs: PackedGraphs, index: int) -> jraph.GraphsTuple:
    """One graph built bond by bond, each in both directions."""
    nodes = slice(*graphs.node_offsets[index : index + 2])
    bonds = slice(*graphs.bond_offsets[index : index + 2])
    ends, features = graphs.bond_ends[bonds], graphs.bond_features[bonds].astype(np.float32)
    return jraph.GraphsTuple(
        nodes=graphs.node_features[nodes].astype(np.float32),
        edges=np.concatenate([features, features]),
        senders=np.concatenate([ends[:, 0], ends[:, 1]]),
        receivers=np.concatenate([ends[:, 1], ends[:, 0]]),
        globals={},
        n_node=np.array([len(graphs.node_features[nodes])]),
        n_edge=np.array([2 * len(ends)]),
    )
