"""Batches of packed graphs with fixed shapes; an epoch's batches are planned in advance.

A batch is a sequence of S sub-batches. A sub-batch of nominal size B holds at most B graphs, 26 B nodes and 56 B
directed edges. It is padded to B + 1 graphs, 26 B + 1 nodes and 56 B edges: one graph owns the spare nodes and edges
(all edges at its first node), and empty graphs follow. `jraph.dynamically_batch` gives the same for the same graphs in
the same order. No edge leaves its sub-batch. The numbers 26 and 56 are AlgoPerf's: the mean numbers of nodes and edges
in molpcba. If the number of devices does not divide the number of graphs, nodes or edges, the end of the batch is
padded. No real row moves, so that any number of devices draws the same dropout masks.
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
    """Cuts `order` (graph ids) into consecutive sub-batches, each as long as the budget of nodes and edges allows.

    Raises:
        ValueError: a single graph exceeds the budget; the message names it.
    """
    nodes = np.diff(graphs.node_offsets)[order]
    edges = 2 * np.diff(graphs.bond_offsets)[order]
    too_large = np.flatnonzero((nodes > shape.max_nodes) | (edges > shape.max_edges))
    if too_large.size:
        first = too_large[0]
        raise ValueError(
            f"graph {order[first]} has {nodes[first]} nodes and {edges[first]} edges, but a sub-batch of "
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
    """One batch of at most S planned sub-batches; a missing sub-batch is all padding.

    `inputs` is a GraphsTuple with float32 features and int32 indices. `targets` and `weights` are float32
    [S (B + 1), n_tasks]; both are 0 if a label is missing or the graph is padding. The last graph owns the padding that
    the number of devices requires. Each of several processes fills only the sub-batches that contain its rows.
    """
    n_graphs, n_nodes, n_edges = shape.totals
    own_rows = [shards.own_rows(n) for n in shape.totals]
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
        ranges = zip(own_rows, sizes, strict=True)
        if not any(rows.start < (index + 1) * size and index * size < rows.stop for rows, size in ranges):
            continue
        labels[graph : graph + len(ids)] = graphs.labels[ids]
        _fill(batch, graphs, ids, shape, graph=graph, node=node, edge=edge)
    batch.n_node[-1] += n_nodes - shape.sub_batches * (shape.max_nodes + 1)
    batch.n_edge[-1] += n_edges - shape.sub_batches * shape.max_edges
    arrays = {"inputs": batch, "targets": (labels == 1).astype(np.float32), "weights": (labels >= 0).astype(np.float32)}
    return shards.global_arrays(jax.tree.map(lambda x: x[shards.own_rows(len(x))], arrays))


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
    """Writes one sub-batch into `batch`, in place, beginning at the rows `graph`, `node` and `edge`."""
    first_node, first_bond = graphs.node_offsets[ids], graphs.bond_offsets[ids]
    node_counts = graphs.node_offsets[ids + 1] - first_node
    bond_counts = graphs.bond_offsets[ids + 1] - first_bond
    used_nodes, used_edges = int(node_counts.sum()), 2 * int(bond_counts.sum())

    padding = graph + len(ids)
    batch.n_node[graph:padding], batch.n_edge[graph:padding] = node_counts, 2 * bond_counts
    batch.n_node[padding] = shape.max_nodes + 1 - used_nodes
    batch.n_edge[padding] = shape.max_edges - used_edges

    batch.nodes[node : node + used_nodes] = graphs.node_features.take(_ranges(first_node, node_counts), axis=0)
    # Each graph has its bonds twice: all in the stored direction, then all in the opposite one.
    counts_per_direction = np.repeat(bond_counts, 2)
    bonds = _ranges(np.repeat(first_bond, 2), counts_per_direction)
    is_reversed = np.repeat(np.tile(np.array([0, 1]), len(ids)), counts_per_direction)
    shift = np.repeat((node + np.cumsum(node_counts) - node_counts).astype(np.int32), 2 * bond_counts)
    ends, tail = graphs.bond_ends.reshape(-1), 2 * bonds + is_reversed
    real, spare = slice(edge, edge + used_edges), slice(edge + used_edges, edge + shape.max_edges)
    batch.edges[real] = graphs.bond_features.take(bonds, axis=0)
    batch.senders[real] = ends.take(tail) + shift
    batch.receivers[real] = ends.take(tail ^ 1) + shift
    batch.senders[spare] = batch.receivers[spare] = node + used_nodes


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[k], [k] -> the concatenated ranges start, start + 1, ..., each with its own length."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def evaluation_batches(graphs: PackedGraphs, indices: np.ndarray, shape: BatchShape) -> Iterator[dict[str, Any]]:
    """Every graph of `indices` once, in that order; empty sub-batches complete the last batch. It raises as `plan`."""
    parts = plan(graphs, indices, shape)  # at the call and not at the first batch
    starts = range(0, len(parts), shape.sub_batches)
    return (assemble(graphs, parts[start : start + shape.sub_batches], shape) for start in starts)


class TrainingBatches:
    """Endless epochs; each holds every graph of `indices` exactly once, in an order drawn from (seed, epoch).

    The last batch of an epoch may have fewer graphs. The state is (epoch, number of its batches drawn so far).
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
