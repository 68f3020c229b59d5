"""A part of a batch's examples, with constant shapes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


def one_example_in(batch: Mapping[str, Any], n: int) -> dict[str, Any]:
    """About one in `n` of a batch's examples: every n-th, or of packed graphs (a `jraph.GraphsTuple`) the first ones.

    Args:
        batch: `inputs`, `targets` and perhaps `weights`, with examples (in `inputs`, nodes, edges and graphs) leading.
    """
    if not hasattr(batch["inputs"], "n_node"):
        return {name: jax.tree.map(lambda x: x[::n], value) for name, value in batch.items()}
    graphs, is_kept = _first_graphs(batch["inputs"], n)
    n_graphs = len(is_kept)
    rest = {name: value[:n_graphs] for name, value in batch.items() if name != "inputs"}
    if "weights" in rest:
        keep = is_kept.reshape(-1, *[1] * (rest["weights"].ndim - 1))
        rest["weights"] = jnp.where(keep, rest["weights"], 0)
    return {"inputs": graphs, **rest}


def _first_graphs(graphs: Any, n: int) -> tuple[Any, Array]:
    """The graphs that fit into the first n-th of the nodes, edges and graphs, and which of these are kept.

    The graph after the last kept one becomes padding, and owns all remaining nodes and edges.
    """
    n_graphs, n_nodes, n_edges = (len(x) // n for x in (graphs.n_node, graphs.nodes, graphs.senders))
    n_node, n_edge = graphs.n_node[:n_graphs], graphs.n_edge[:n_graphs]
    fits = (jnp.cumsum(n_node) < n_nodes) & (jnp.cumsum(n_edge) <= n_edges) & (jnp.arange(n_graphs) < n_graphs - 1)
    n_node, n_edge = jnp.where(fits, n_node, 0), jnp.where(fits, n_edge, 0)
    is_edge = jnp.arange(n_edges) < n_edge.sum()
    first = {"nodes": n_nodes, "edges": n_edges, "globals": n_graphs}
    return graphs._replace(
        **{name: jax.tree.map(lambda x, k=k: x[:k], getattr(graphs, name)) for name, k in first.items()},
        senders=jnp.where(is_edge, graphs.senders[:n_edges], n_nodes - 1),
        receivers=jnp.where(is_edge, graphs.receivers[:n_edges], n_nodes - 1),
        n_node=n_node.at[fits.sum()].set(n_nodes - n_node.sum()),
        n_edge=n_edge.at[fits.sum()].set(n_edges - n_edge.sum()),
    ), fits
