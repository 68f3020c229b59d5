"""Batches of packed graphs, planned ahead, with fixed shapes.

A batch is S sub-batches one after another. A sub-batch of nominal size B holds at most B graphs, 26 B nodes
and 56 B directed edges, and is padded to B + 1 graphs, 26 B + 1 nodes and 56 B edges by one graph that owns
the spare nodes and edges (all at its first node), then empty graphs: what `jraph.dynamically_batch` makes of
the same graphs in the same order. No edge leaves its sub-batch. The numbers 26 and 56 are AlgoPerf's: the mean numbers
of nodes and edges in molpcba. Where the number of devices does not divide the number of graphs, nodes or edges, padding
is added at the end of the batch. No real row moves, so that any number of devices draws the same dropout masks.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jraph
import numpy as np

from workloads import shards
from workloads.graphs.store import MISSING, PackedGraphs

NODES_PER_GRAPH = 26
EDGES_PER_GRAPH = 56


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """`sub_batches` sub-batches with room for `graphs_per_sub_batch` graphs of mean size each, on `devices` devices."""

    sub_batches: int
    graphs_per_sub_batch: int
    devices: int = 1

    @classmethod
    def of(cls, *, global_batch_size: int, sub_batches: int, devices: int = 1) -> "BatchShape":
        """Raises ValueError if the batch size is not a positive multiple of the number of sub-batches."""
        if global_batch_size < 1 or global_batch_size % sub_batches:
            raise ValueError(
                f"the batch size must be a positive multiple of the {sub_batches} sub-batches, not {global_batch_size}"
            )
        return cls(sub_batches, global_batch_size // sub_batches, devices)

    @property
    def max_nodes(self) -> int:
        return NODES_PER_GRAPH * self.graphs_per_sub_batch

    @property
    def max_edges(self) -> int:
        return EDGES_PER_GRAPH * self.graphs_per_sub_batch

    @property
    def totals(self) -> tuple[int, int, int]:
        """Graphs, nodes and edges of a whole batch, padding included: multiples of the number of devices."""

        def rounded_up(count: int) -> int:
            return -(-self.sub_batches * count // self.devices) * self.devices

        return rounded_up(self.graphs_per_sub_batch + 1), rounded_up(self.max_nodes + 1), rounded_up(self.max_edges)


def plan(graphs: PackedGraphs, order: np.ndarray, shape: BatchShape) -> list[np.ndarray]:
    """Cut `order` (graph ids) into consecutive sub-batches, each as long as its budget allows.

    Raises:
        ValueError: one graph alone is over the budget; the message names it.
    """
    nodes = np.diff(graphs.node_offsets)[order]
    edges = 2 * np.diff(graphs.bond_offsets)[order]
    too_large = np.flatnonzero((nodes > shape.max_nodes) | (edges > shape.max_edges))
    if too_large.size:
        worst = too_large[0]
        raise ValueError(
            f"graph {order[worst]} has {nodes[worst]} nodes and {edges[worst]} edges, but a sub-batch of "
            f"{shape.graphs_per_sub_batch} graphs takes {shape.max_nodes} and {shape.max_edges}: "
            "raise the batch size or lower the number of sub-batches"
        )
    node_ends, edge_ends = np.cumsum(nodes), np.cumsum(edges)
    parts, start, nodes_before, edges_before = [], 0, 0, 0
    while start < len(order):
        end = min(
            start + shape.graphs_per_sub_batch,
            int(node_ends.searchsorted(nodes_before + shape.max_nodes, side="right")),
            int(edge_ends.searchsorted(edges_before + shape.max_edges, side="right")),
        )
        parts.append(order[start:end])
        start, nodes_before, edges_before = end, node_ends[end - 1], edge_ends[end - 1]
    return parts


def assemble(graphs: PackedGraphs, parts: Sequence[np.ndarray], shape: BatchShape) -> dict[str, Any]:
    """At most S planned sub-batches -> one batch; a missing sub-batch is all padding.

    `inputs`: GraphsTuple, features float32, indices int32. `targets`, `weights`: [S (B + 1), n_tasks]
    float32, both 0 where a label is missing or the graph is padding. The last graph owns the padding that the
    number of devices needs. Of several processes each fills only the sub-batches in which it has rows.
    """
    n_graphs, n_nodes, n_edges = shape.totals
    own = [shards.own_rows(n) for n in shape.totals]
    sizes = shape.graphs_per_sub_batch + 1, shape.max_nodes + 1, shape.max_edges
    batch = jraph.GraphsTuple(
        nodes=np.zeros((n_nodes, graphs.node_features.shape[1]), np.float32),
        edges=np.zeros((n_edges, graphs.bond_features.shape[1]), np.float32),
        senders=np.full(n_edges, n_nodes - 1, np.int32),
        receivers=np.full(n_edges, n_nodes - 1, np.int32),
        globals={},
        n_node=np.zeros(n_graphs, np.int32),
        n_edge=np.zeros(n_graphs, np.int32),
    )
    labels = np.full((n_graphs, graphs.labels.shape[1]), MISSING, np.int8)
    empty = np.zeros(0, np.int64)
    for index in range(shape.sub_batches):
        ids = parts[index] if index < len(parts) else empty
        graph, node, edge = (index * size for size in sizes)
        if not any(o.start < (index + 1) * size and index * size < o.stop for o, size in zip(own, sizes, strict=True)):
            continue
        labels[graph : graph + len(ids)] = graphs.labels[ids]
        _fill(batch, graphs, ids, shape, graph=graph, node=node, edge=edge)
    batch.n_node[-1] += n_nodes - shape.sub_batches * (shape.max_nodes + 1)
    batch.n_edge[-1] += n_edges - shape.sub_batches * shape.max_edges
    rows = {"inputs": batch, "targets": (labels == 1).astype(np.float32), "weights": (labels >= 0).astype(np.float32)}
    return shards.joined(jax.tree.map(lambda x: x[shards.own_rows(len(x))], rows))


def _fill(
    batch: jraph.GraphsTuple,
    graphs: PackedGraphs,
    ids: np.ndarray,
    shape: BatchShape,
    *,
    graph: int,
    node: int,
    edge: int,
) -> None:
    """Write one sub-batch into `batch`, in place, from the rows `graph`, `node` and `edge` on."""
    first_node, first_bond = graphs.node_offsets[ids], graphs.bond_offsets[ids]
    node_counts = graphs.node_offsets[ids + 1] - first_node
    bond_counts = graphs.bond_offsets[ids + 1] - first_bond
    used_nodes, used_edges = int(node_counts.sum()), 2 * int(bond_counts.sum())

    padding = graph + len(ids)
    batch.n_node[graph:padding], batch.n_edge[graph:padding] = node_counts, 2 * bond_counts
    batch.n_node[padding] = shape.max_nodes + 1 - used_nodes
    batch.n_edge[padding] = shape.max_edges - used_edges

    batch.nodes[node : node + used_nodes] = graphs.node_features.take(_ranges(first_node, node_counts), axis=0)
    # Each graph's bonds come twice: all in the stored direction, then all in the other.
    twice = np.repeat(bond_counts, 2)
    bonds = _ranges(np.repeat(first_bond, 2), twice)
    backward = np.repeat(np.tile(np.array([0, 1]), len(ids)), twice)
    shift = np.repeat((node + np.cumsum(node_counts) - node_counts).astype(np.int32), 2 * bond_counts)
    ends, tail = graphs.bond_ends.reshape(-1), 2 * bonds + backward
    real, spare = slice(edge, edge + used_edges), slice(edge + used_edges, edge + shape.max_edges)
    batch.edges[real] = graphs.bond_features.take(bonds, axis=0)
    batch.senders[real] = ends.take(tail) + shift
    batch.receivers[real] = ends.take(tail ^ 1) + shift
    batch.senders[spare] = batch.receivers[spare] = node + used_nodes


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[k], [k] -> the ranges start, start + 1, ... of each length, one after another."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def evaluation_batches(graphs: PackedGraphs, indices: np.ndarray, shape: BatchShape) -> Iterator[dict[str, Any]]:
    """Every graph of `indices` once, in that order; the last batch is filled up with empty sub-batches."""
    parts = plan(graphs, indices, shape)
    for start in range(0, len(parts), shape.sub_batches):
        yield assemble(graphs, parts[start : start + shape.sub_batches], shape)


class TrainingBatches:
    """Endless epochs; each holds every graph of `indices` exactly once, in an order drawn from (seed, epoch).

    The last batch of an epoch may be short. The state is (epoch, batches drawn in it).
    """

    def __init__(self, graphs: PackedGraphs, indices: np.ndarray, shape: BatchShape, *, seed: tuple[int, ...]) -> None:
        self._graphs, self._indices, self._shape, self._seed = graphs, indices, shape, seed
        self.set_state({"epoch": 0, "batch": 0})

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        start = self._batch * self._shape.sub_batches
        if start >= len(self._parts):
            self.set_state({"epoch": self._epoch + 1, "batch": 0})
            start = 0
        self._batch += 1
        return assemble(self._graphs, self._parts[start : start + self._shape.sub_batches], self._shape)

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        generator = np.random.default_rng((*self._seed, self._epoch))
        self._parts = plan(self._graphs, generator.permutation(self._indices), self._shape)
