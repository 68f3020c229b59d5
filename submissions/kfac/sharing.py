"""Weight sharing: from the shared positions of a layer to the rows of a Kronecker factor.

Axes: a layer's inputs and output gradients are `[lead, *sites, d]`. A *row* is one position at which the weights are
used. The leading axis belongs to examples one by one (a batch of images), or many rows to an example (the nodes of a
graph); the `sites` are further positions of the same example (tokens, pixels).

Source: Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures", 2023.
"""

import enum
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Sharing(enum.Enum):
    """How the shared positions of one example enter a factor."""

    EXPAND = "expand"  # every position is a row of its own
    REDUCE = "reduce"  # one row an example: the mean of its inputs, the sum of its output gradients


class Rows(NamedTuple):
    """Which example each entry of a leading axis belongs to.

    Attributes:
        n_examples: examples in the batch, padding included.
        example_of: `[lead]` int32, the example of each entry; None where entry i is example i.
        is_example: `[n_examples]` 1 for an example and 0 for padding; None where all are examples.
    """

    n_examples: int
    example_of: Array | None = None
    is_example: Array | None = None


class Layout(NamedTuple):
    """The leading axes that a batch has: how long each is, and which examples its entries belong to.

    Attributes:
        by_length: length of a leading axis -> its rows; None where two axes have that length.
    """

    by_length: Mapping[int, Rows | None]

    def rows(self, length: int, layer: str) -> Rows:
        """The rows of a leading axis of `length`.

        Raises:
            ValueError: no axis, or more than one, has that length.
        """
        if length not in self.by_length:
            known = ", ".join(str(known) for known in sorted(self.by_length))
            raise ValueError(
                f"layer {layer}: its input's leading axis has length {length}, which is none of the batch's ({known}); "
                "keep examples (or nodes, edges, graphs) on the leading axis"
            )
        rows = self.by_length[length]
        if rows is None:
            raise ValueError(
                f"layer {layer}: two axes of the batch have length {length}, so its rows are ambiguous; "
                "change the padding so that nodes, edges and graphs differ in number"
            )
        return rows


def batch_layout(n_examples: int, is_example: Array | None = None) -> Layout:
    """The layout of a batch whose leading axis is the example, `is_example [n_examples]` being its mask."""
    return Layout({n_examples: Rows(n_examples, None, is_example)})


def graph_layout(n_node: Array, n_edge: Array, total_nodes: int, total_edges: int, is_example: Array) -> Layout:
    """The layout of packed graphs: rows are nodes, edges or graphs; an example is a graph.

    Args:
        n_node, n_edge: `[n_graphs]` nodes and edges of each graph, padding graphs included wherever they stand.
        total_nodes, total_edges: lengths of the node and edge axes.
        is_example: `[n_graphs]` 0 for padding graphs.
    """
    n_graphs = n_node.shape[0]
    graphs = jnp.arange(n_graphs)
    axes = [
        (total_nodes, jnp.repeat(graphs, n_node, total_repeat_length=total_nodes)),
        (total_edges, jnp.repeat(graphs, n_edge, total_repeat_length=total_edges)),
        (n_graphs, None),
    ]
    by_length: dict[int, Rows | None] = {}
    for length, example_of in axes:
        by_length[length] = None if length in by_length else Rows(n_graphs, example_of, is_example)
    return Layout(by_length)


def expand(x: Array, rows: Rows) -> tuple[Array, Array]:
    """`[lead, *sites, d]` -> (`[lead·sites, d]`, padding set to zero; 1 for the real rows `[lead·sites]`)."""
    flat = x.reshape(-1, x.shape[-1])
    if rows.is_example is None:
        return flat, jnp.ones(len(flat), x.dtype)
    is_real = rows.is_example.astype(x.dtype)
    if rows.example_of is not None:
        is_real = is_real[rows.example_of]
    is_real = jnp.repeat(is_real, len(flat) // x.shape[0])
    # `where`, not a product: padding may hold anything, infinities included.
    return jnp.where(is_real[:, None] > 0, flat, 0), is_real


def example_sums(x: Array, rows: Rows) -> tuple[Array, Array]:
    """`[lead, *sites, d]` -> (sum over each example's positions `[n_examples, d]`, their number `[n_examples]`).

    Padding has sum zero and number zero.
    """
    sums = x.reshape(x.shape[0], -1, x.shape[-1]).sum(1)
    return combine_entries(sums, math.prod(x.shape[1:-1]), rows)


def combine_entries(sums: Array, n_sites: int, rows: Rows) -> tuple[Array, Array]:
    """As `example_sums`, from `sums [lead, d]` over the `n_sites` positions of each entry of the leading axis."""
    counts = jnp.full(sums.shape[0], n_sites, sums.dtype)
    if rows.example_of is not None:
        sums, counts = (jax.ops.segment_sum(v, rows.example_of, rows.n_examples) for v in (sums, counts))
    if rows.is_example is not None:
        keep = rows.is_example > 0
        sums, counts = jnp.where(keep[:, None], sums, 0), jnp.where(keep, counts, 0)
    return sums, counts
