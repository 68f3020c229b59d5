"""Factors of both flavours against slow loops over examples and positions, on forward passes written out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from submissions.kfac import Geometry, LossKind, Sharing, batch_layout, estimate, find_layers, graph_layout
from submissions.kfac.fisher import sample_cotangent
from tests.submissions.slow_factors import assert_close, slow_factors

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)


def rows_and_gradients(forward, shapes, cotangent):
    """`forward(perturbations) -> (outputs, inputs)` of one example -> its input rows and output gradient rows."""

    @jax.jit
    def run(zeros):
        _, vjp, inputs = jax.vjp(forward, zeros, has_aux=True)
        return inputs, vjp(cotangent)[0]

    return run({name: jnp.zeros(shape) for name, shape in shapes.items()})


class AttentionNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.DenseGeneral((2, 3), name=name)(x) for name in ("query", "key", "value"))
        x = nn.DenseGeneral(4, axis=(-2, -1), name="out")(nn.dot_product_attention(q, k, v))
        return nn.Dense(3, name="head")(jnp.tanh(x).mean(1))


def attention_by_hand(params, x, perturbations):
    """One example `[positions, 5]` -> logits `[3]` and the input rows of every layer."""

    def dense(name, rows):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return rows @ kernel.reshape(rows.shape[-1], -1) + bias.reshape(-1) + perturbations[name]

    q, k, v = (dense(name, x).reshape(-1, 2, 3) for name in ("query", "key", "value"))
    heads = [jax.nn.softmax(q[:, h] @ k[:, h].T / jnp.sqrt(3.0)) @ v[:, h] for h in range(2)]
    mixed = jnp.concatenate(heads, axis=1)
    pooled = jnp.tanh(dense("out", mixed)).mean(0, keepdims=True)
    inputs = {"query": x, "key": x, "value": x, "out": mixed, "head": pooled}
    return dense("head", pooled)[0], inputs


@pytest.mark.parametrize("sharing", Sharing)
def test_attention_net_with_not_a_number_in_padding(randomized, sharing):
    x = jnp.asarray(RNG.normal(size=(4, 6, 5)), jnp.float32).at[2].set(jnp.nan)
    is_example = jnp.asarray([1.0, 1.0, 0.0, 1.0])
    weights = is_example * jnp.asarray([1.0, 0.5, 1.0, 2.0])
    params = randomized(AttentionNet(), x)
    geometry = Geometry(LossKind.SOFTMAX)
    logits = AttentionNet().apply({"params": params}, x)
    cotangent = sample_cotangent(geometry, logits, weights, KEY)
    shapes = {"query": (6, 6), "key": (6, 6), "value": (6, 6), "out": (6, 4), "head": (1, 3)}
    examples = [
        rows_and_gradients(lambda e, n=n: attention_by_hand(params, x[n], e), shapes, cotangent[n]) for n in (0, 1, 3)
    ]
    layers = find_layers(params)
    factors = jax.jit(
        lambda params: (
            estimate(
                lambda p: (AttentionNet().apply({"params": p}, x), None),
                lambda z: (jnp.where(is_example > 0, z.sum(1), 0).sum(), weights.sum()),
                params,
                layers=layers,
                layout=batch_layout(4, is_example),
                sharing=sharing,
                geometry=geometry,
                weights=weights,
                key=KEY,
            ).factors
        )
    )(params)
    assert set(factors) == set(shapes)
    assert_close(factors, slow_factors(examples, sharing, 3.5))
    if sharing is Sharing.REDUCE:
        # One vector added to every key shifts a query's scores alike, which softmax ignores.
        assert np.abs(factors["key"][1]).max() < 1e-10 < np.abs(factors["query"][1]).max()


# Graph 1 has no edges, graph 2 is padding between real graphs, graphs 4 and 5 are padding at the end.
N_NODE, N_EDGE = np.array([3, 1, 2, 4, 3, 0]), np.array([4, 0, 1, 6, 4, 0])
IS_EXAMPLE = np.array([1, 1, 0, 1, 0, 0], np.float32)


class GraphNet(nn.Module):
    @nn.compact
    def __call__(self, graph):
        def mlp(name):
            def update(*inputs):
                x = jnp.concatenate(inputs, axis=-1)
                return jnp.tanh(nn.Dense(3, name=f"{name}_out")(nn.relu(nn.Dense(4, name=f"{name}_in")(x))))

            return update

        graph = jraph.GraphNetwork(mlp("edge"), mlp("node"), mlp("global"))(graph)
        return nn.Dense(2, name="head")(graph.globals)


def graph_by_hand(params, nodes, edges, senders, receivers, globals_, perturbations):
    """One graph -> logits `[2]` and the input rows of every layer."""
    inputs = {}

    def dense(name, rows):
        inputs[name] = rows
        return rows @ params[name]["kernel"] + params[name]["bias"] + perturbations[name]

    def mlp(name, rows):
        return jnp.tanh(dense(f"{name}_out", jax.nn.relu(dense(f"{name}_in", rows))))

    shared = globals_[None]
    new_edges = mlp(
        "edge",
        jnp.concatenate([edges, nodes[senders], nodes[receivers], jnp.repeat(shared, len(edges), 0)], axis=1),
    )

    def sums(ends):
        edges_of = [np.flatnonzero(ends == node) for node in range(len(nodes))]
        return jnp.stack([sum((new_edges[e] for e in own), jnp.zeros(3)) for own in edges_of])

    sent, received = sums(senders), sums(receivers)
    new_nodes = mlp("node", jnp.concatenate([nodes, sent, received, jnp.repeat(shared, len(nodes), 0)], axis=1))
    new_globals = mlp("global", jnp.concatenate([new_nodes.sum(0), new_edges.sum(0), globals_])[None])
    return dense("head", new_globals)[0], inputs


def packed_graphs() -> jraph.GraphsTuple:
    """Features of padding are not a number; edges stay inside their graph."""
    first_node = np.cumsum(N_NODE) - N_NODE
    graph_of = [np.repeat(np.arange(6), n) for n in (N_NODE, N_EDGE)]
    nodes, edges = (np.asarray(RNG.normal(size=(len(of), 3)), np.float32) for of in graph_of)
    globals_ = np.asarray(RNG.normal(size=(6, 2)), np.float32)
    for values, of in zip((nodes, edges, globals_), (*graph_of, np.arange(6)), strict=True):
        values[IS_EXAMPLE[of] == 0] = np.nan
    ends = [first_node[graph_of[1]] + RNG.integers(0, N_NODE[graph_of[1]]) for _ in range(2)]
    return jraph.GraphsTuple(
        nodes=nodes,
        edges=edges,
        senders=ends[0],
        receivers=ends[1],
        globals=globals_,
        n_node=N_NODE,
        n_edge=N_EDGE,
    )


@pytest.mark.parametrize("sharing", Sharing)
def test_graph_net_with_not_a_number_in_padding(randomized, sharing):
    graph = packed_graphs()
    weights = jnp.asarray(IS_EXAMPLE[:, None] * np.array([[1, 0], [1, 1], [1, 1], [0, 1], [1, 1], [1, 1]]), jnp.float32)
    params = randomized(GraphNet(), graph)
    geometry = Geometry(LossKind.SIGMOID)
    logits = GraphNet().apply({"params": params}, graph)
    cotangent = sample_cotangent(geometry, logits, weights, KEY)
    stops = np.cumsum(N_NODE), np.cumsum(N_EDGE)
    examples = []
    for n in (0, 1, 3):
        node, edge = (slice(stop[n] - count[n], stop[n]) for stop, count in zip(stops, (N_NODE, N_EDGE), strict=True))
        ends = [np.asarray(e[edge]) - node.start for e in (graph.senders, graph.receivers)]
        sizes = {"edge": N_EDGE[n], "node": N_NODE[n], "global": 1}
        shapes = {f"{name}_{end}": (r, d) for name, r in sizes.items() for end, d in (("in", 4), ("out", 3))}

        def forward(e, n=n, node=node, edge=edge, ends=ends):
            return graph_by_hand(params, graph.nodes[node], graph.edges[edge], *ends, graph.globals[n], e)

        examples.append(rows_and_gradients(forward, {**shapes, "head": (1, 2)}, cotangent[n]))
    layers = find_layers(params)
    factors = jax.jit(
        lambda params: (
            estimate(
                lambda p: (GraphNet().apply({"params": p}, graph), None),
                lambda z: (jnp.where(weights > 0, z, 0).sum(), weights.sum()),
                params,
                layers=layers,
                layout=graph_layout(jnp.asarray(N_NODE), jnp.asarray(N_EDGE), 13, 15, jnp.asarray(IS_EXAMPLE)),
                sharing=sharing,
                geometry=geometry,
                weights=weights,
                key=KEY,
            ).factors
        )
    )(params)
    assert set(factors) == {*shapes, "head"}
    assert_close(factors, slow_factors(examples, sharing, 4.0))
