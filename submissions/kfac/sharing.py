"""Weight sharing: from the shared positions of a layer to the rows of a Kronecker factor.

Axes: a layer's inputs and output gradients are `[lead, *sites, d]`. A *row* is one position at which the weights are
used. An entry of the leading axis is one example (a batch of images), or one of several rows of an example (the nodes
of a graph); the `sites` are further positions of the same example (tokens, pixels).

For example, a dense layer on 8 images of 16 tokens has inputs `[8, 16, d]`: 128 rows for expand, 8 for reduce. One on
the 30 nodes of 8 packed graphs has inputs `[30, d]`, which are 30 rows and 8.

Source: Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures", 2023.
"""

import enum
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
        is_real: `[lead]` 1 for a real entry and 0 for padding; None where all are real.
        is_shared: whether every entry is used by all examples, such as a learned position embedding.
    """

    n_examples: int
    example_of: Array | None = None
    is_example: Array | None = None
    is_real: Array | None = None
    is_shared: bool = False


class LayoutError(ValueError):
    """The layout does not say which example each row of a layer's input belongs to."""


class Layout(NamedTuple):
    """The leading axes that a batch has: how long they are, and which examples their entries belong to.

    Attributes:
        by_shape: lengths of one or more leading axes -> their rows; None where two kinds of rows have these lengths.
            Rows of several axes are those of the axes merged into one.
        example_axis: where the examples lie among the leading axes of a layer's input, if it has more than one: 0, or 1
            for time-major data. None means 0, with a warning if both axes have the batch's length.
    """

    by_shape: Mapping[tuple[int, ...], Rows | None]
    example_axis: int | None = None

    @property
    def n_examples(self) -> int:
        """Examples in the batch, padding included."""
        return next(rows.n_examples for rows in self.by_shape.values() if rows is not None and not rows.is_shared)

    def rows(self, shape: Sequence[int]) -> tuple[Rows, int]:
        """The rows of a layer with positions `shape [lead, *sites]`, and how many of these axes they describe.

        Raises:
            LayoutError: no rows, or more than one kind, have these leading axes.
        """
        known = [key for key in self.by_shape if tuple(shape[: len(key)]) == key]
        if not known:
            listed = ", ".join("x".join(map(str, key)) for key in sorted(self.by_shape))
            raise LayoutError(
                f"its input's leading axes are {'x'.join(map(str, shape))}, which are none of the layout's ({listed}); "
                "say by `row_layout` which example each row belongs to"
            )
        key = max(known, key=len)
        rows = self.by_shape[key]
        if rows is None:
            raise LayoutError(
                f"two axes of the batch have length {key[0]}, so its rows are ambiguous; "
                "change the padding so that nodes, edges and graphs differ in number"
            )
        return rows, len(key)

    def is_ambiguous(self, shape: Sequence[int]) -> bool:
        """Whether two leading axes have the batch's length, and the layout does not say which has the examples."""
        known = self.example_axis is None and len(shape) > 1 and shape[0] == shape[1] > 1
        return known and (shape[0],) in self.by_shape and tuple(shape[:2]) not in self.by_shape

    def lacks_positions(self, shape: Sequence[int]) -> bool:
        """Whether the layout has masks for other numbers of positions, but none for `shape [lead, *sites]`."""
        described = [key for key in self.by_shape if len(key) > 1 and key[0] == shape[0]]
        return (
            bool(described) and len(shape) > 1 and shape[1] > 1 and all(shape[: len(key)] != key for key in described)
        )


def batch_layout(
    n_examples: int,
    is_example: Array | None = None,
    *,
    is_token: Array | None = None,
    example_axis: int | None = None,
) -> Layout:
    """The layout of a batch whose leading axis is the example.

    Args:
        is_example: `[n_examples]` 1 for an example and 0 for padding. None: those with a real token are examples, and
            without `is_token` all.
        is_token: `[n_examples, positions]` 1 for a real token and 0 for padding: a layer whose input begins with these
            two axes has the padding left out of its factors, and reduce's means are over the real tokens. Of a layer
            with another number of positions all count, and a warning says so; `row_layout` describes several numbers.
        example_axis: 1 for time-major inputs `[positions, n_examples, ...]`; `is_token` keeps the examples first.
            An input with a single leading axis always has the examples there. 0 says that inputs are not time-major,
            so that there is no warning where there are as many positions as examples.

    Raises:
        ValueError: `is_example` or `is_token` has another shape, `n_examples` is no int, or `example_axis` is not 0, 1
            or None.
    """
    if not isinstance(n_examples, int | np.integer):
        raise ValueError(f"n_examples is a {type(n_examples).__name__}; it must be an int, as len(images)")
    if is_example is not None and is_example.shape != (n_examples,):
        raise ValueError(f"is_example must be [{n_examples}]; its shape is {list(is_example.shape)}")
    _check_example_axis(example_axis)
    if is_token is None:
        return Layout({(n_examples,): Rows(n_examples, None, is_example)}, example_axis)
    is_token = jnp.asarray(is_token)
    if is_token.ndim != 2 or is_token.shape[0] != n_examples:
        raise ValueError(f"is_token must be [{n_examples}, positions]; its shape is {is_token.shape}")
    if is_example is None:
        is_example = (is_token > 0).any(1)
    example_of = jnp.repeat(jnp.arange(n_examples), is_token.shape[1])
    tokens = Rows(n_examples, example_of, is_example, is_token.reshape(-1))
    return Layout({(n_examples,): Rows(n_examples, None, is_example), is_token.shape: tokens}, example_axis)


def row_layout(
    n_examples: int,
    examples: Sequence[Array] = (),
    *,
    is_example: Array | None = None,
    shared: Sequence[int] = (),
    example_axis: int | None = None,
) -> Layout:
    """A layout for inputs whose rows are not one per example: it says which example each row belongs to.

    `row_layout(8, [jnp.repeat(jnp.arange(8), 5)])` describes `[8·5, d]` made of `[8, 5, d]` by a reshape. Windows of an
    image or tokens sent to experts are described in the same way.

    Args:
        n_examples: examples in the batch; a leading axis of this length is the examples, as in `batch_layout`.
        examples: int arrays `[*lead]`, each for layers whose inputs have these leading axes: the example of each entry,
            or below 0 for padding.
        is_example, example_axis: as for `batch_layout`; with 1, `examples` keep the examples first.
        shared: lengths of leading axes whose entries belong to all examples, such as a table of positions. Such a
            layer's factors need the sampled Fisher, in which examples are independent.

    Raises:
        ValueError: two of these have the same leading axes, or `examples` is no sequence.
    """
    _check_example_axis(example_axis)
    if hasattr(examples, "shape"):
        raise ValueError("examples is one array: give a sequence of them, as [example_of_each_row]")
    by_shape: dict[tuple[int, ...], Rows | None] = {(n_examples,): Rows(n_examples, None, is_example)}
    described = [(tuple(own.shape), own.reshape(-1)) for own in map(jnp.asarray, examples)]
    rows = [(shape, Rows(n_examples, jnp.maximum(own, 0), is_example, own >= 0)) for shape, own in described]
    for shape, own in [*rows, *(((length,), Rows(length, is_shared=True)) for length in shared)]:
        if shape in by_shape:
            raise ValueError(f"two kinds of rows have the leading axes {'x'.join(map(str, shape))}")
        by_shape[shape] = own
    return Layout(by_shape, example_axis)


def _check_example_axis(example_axis: int | None) -> None:
    if example_axis not in (None, 0, 1):
        raise ValueError(f"example_axis is {example_axis}; it must be 0, 1 or None")


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
    by_shape: dict[tuple[int, ...], Rows | None] = {}
    for length, example_of in axes:
        by_shape[length,] = None if (length,) in by_shape else Rows(n_graphs, example_of, is_example)
    return Layout(by_shape, example_axis=0)


def expand(x: Array, rows: Rows) -> tuple[Array, Array]:
    """`[lead, *sites, d]` -> (`[lead·sites, d]`, padding set to zero; 1 for the real rows `[lead·sites]`)."""
    flat = x.reshape(-1, x.shape[-1])
    is_real = real_entries(rows)
    if is_real is None:
        return flat, jnp.ones(len(flat), x.dtype)
    is_real = jnp.repeat(is_real.astype(x.dtype), len(flat) // x.shape[0])
    # `where`, not a product: padding may hold anything, infinities included.
    return jnp.where(is_real[:, None] > 0, flat, 0), is_real


def real_entries(rows: Rows) -> Array | None:
    """`[lead]` 1 for the entries of real examples that are real themselves; None where all are."""
    if rows.is_example is None or rows.example_of is None:
        masks = [rows.is_example, rows.is_real]
    else:
        masks = [jnp.asarray(rows.is_example)[rows.example_of], rows.is_real]
    known = [mask > 0 for mask in masks if mask is not None]
    return functools.reduce(jnp.logical_and, known) if known else None


def example_sums(x: Array, rows: Rows) -> tuple[Array, Array]:
    """`[lead, *sites, d]` -> (sum over each example's positions `[n_examples, d]`, their number `[n_examples]`).

    Padding has sum zero and number zero.
    """
    sums = x.reshape(x.shape[0], -1, x.shape[-1]).sum(1)
    return combine_entries(sums, math.prod(x.shape[1:-1]), rows)


def combine_entries(sums: Array, n_sites: int, rows: Rows) -> tuple[Array, Array]:
    """As `example_sums`, from `sums [lead, d]` over the `n_sites` positions of each entry of the leading axis."""
    counts = jnp.full(sums.shape[0], n_sites, sums.dtype)
    if rows.is_real is not None:
        is_real = rows.is_real > 0
        sums, counts = jnp.where(is_real[:, None], sums, 0), jnp.where(is_real, counts, 0)
    if rows.example_of is not None:
        sums, counts = (jax.ops.segment_sum(v, rows.example_of, rows.n_examples) for v in (sums, counts))
    if rows.is_example is not None:
        keep = rows.is_example > 0
        sums, counts = jnp.where(keep[:, None], sums, 0), jnp.where(keep, counts, 0)
    return sums, counts
