import dataclasses

import jax
import jraph
import numpy as np
import pytest

from tests.workloads.graph_samples import as_jraph, random_graphs
from workloads.graphs.pipeline import BatchShape, TrainingBatches, assemble, evaluation_batches, plan
from workloads.graphs.store import pack

GRAPHS = random_graphs(60)
SHAPE = BatchShape(sub_batches=3, graphs_per_sub_batch=4)


def _equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def _fingerprints(batches):
    """The features of every real graph drawn, one bytes object each, in order."""
    found = []
    for batch in batches:
        graph = batch["inputs"]
        ends = np.cumsum(graph.n_node)
        real = batch["weights"].any(axis=1)
        for row in np.flatnonzero(real):
            found.append(graph.nodes[ends[row] - graph.n_node[row] : ends[row]].tobytes())
    return found


def _expected_fingerprints(graphs, indices):
    return [as_jraph(graphs, i).nodes.tobytes() for i in indices if (graphs.labels[i] >= 0).any()]


def test_sub_batches_are_what_jraph_makes_of_the_same_graphs():
    order = np.random.default_rng(1).permutation(len(GRAPHS.labels))
    blocks = list(
        jraph.dynamically_batch(
            (as_jraph(GRAPHS, i) for i in order),
            SHAPE.max_nodes + 1,
            SHAPE.max_edges,
            SHAPE.graphs_per_sub_batch + 1,
        )
    )
    parts = plan(GRAPHS, order, SHAPE)
    assert len(parts) == len(blocks) and len(blocks) > 2 * SHAPE.sub_batches
    for start in range(0, len(parts) - SHAPE.sub_batches + 1, SHAPE.sub_batches):
        batch = assemble(GRAPHS, parts[start : start + 3], SHAPE)["inputs"]
        _equal(batch, jraph.batch_np(blocks[start : start + 3]))


@pytest.mark.parametrize("devices", [2, 4, 7])
def test_rows_that_the_devices_do_not_divide_are_filled_up_at_the_end(devices):
    parts = plan(GRAPHS, np.arange(len(GRAPHS.labels)), SHAPE)[:3]
    one = assemble(GRAPHS, parts, SHAPE)
    many = assemble(GRAPHS, parts, dataclasses.replace(SHAPE, devices=devices))
    assert all(len(leaf) % devices == 0 for leaf in jax.tree.leaves(many))
    graph, alone = many["inputs"], one["inputs"]
    for name in ("nodes", "edges", "senders", "receivers"):
        rows = getattr(graph, name)
        _equal(rows[: len(getattr(alone, name))], getattr(alone, name))
    assert (graph.senders[len(alone.senders) :] == len(graph.nodes) - 1).all()
    # The last graph, which is padding, owns what is added.
    assert (graph.n_node.sum(), graph.n_edge.sum()) == (len(graph.nodes), len(graph.edges))
    for name in ("n_node", "n_edge"):
        _equal(getattr(graph, name)[: len(alone.n_node) - 1], getattr(alone, name)[:-1])
    assert many["weights"].sum() == one["weights"].sum() and not many["weights"][len(alone.n_node) - 1 :].any()


def test_labels_follow_their_graphs_and_padding_has_no_weight():
    parts = plan(GRAPHS, np.arange(len(GRAPHS.labels)), SHAPE)[:2]
    batch = assemble(GRAPHS, parts, SHAPE)
    rows = SHAPE.graphs_per_sub_batch + 1
    total = 0.0
    for index, ids in enumerate(parts):
        for offset, graph in enumerate(ids):
            label, row = GRAPHS.labels[graph], index * rows + offset
            np.testing.assert_array_equal(batch["weights"][row], [0.0 if x < 0 else 1.0 for x in label])
            np.testing.assert_array_equal(batch["targets"][row], [max(x, 0) for x in label])
            total += np.sum(label >= 0)
    assert batch["weights"].sum() == total


def test_edges_never_leave_their_sub_batch_and_spare_ones_stay_on_padding():
    for batch in evaluation_batches(GRAPHS, np.arange(len(GRAPHS.labels)), SHAPE):
        graph = batch["inputs"]
        graph_of_node = np.repeat(np.arange(len(graph.n_node)), graph.n_node)
        graph_of_edge = np.repeat(np.arange(len(graph.n_edge)), graph.n_edge)
        assert len(graph_of_node) == len(graph.nodes) and len(graph_of_edge) == len(graph.edges)
        np.testing.assert_array_equal(graph_of_node[graph.senders], graph_of_edge)
        np.testing.assert_array_equal(graph_of_node[graph.receivers], graph_of_edge)
        rows = SHAPE.graphs_per_sub_batch + 1
        np.testing.assert_array_equal(graph.n_node.reshape(-1, rows).sum(axis=1), SHAPE.max_nodes + 1)
        np.testing.assert_array_equal(graph.n_edge.reshape(-1, rows).sum(axis=1), SHAPE.max_edges)


def test_evaluation_sees_each_graph_once_in_order_with_one_shape():
    indices = GRAPHS.indices("validation")
    batches = list(evaluation_batches(GRAPHS, indices, SHAPE))
    assert _fingerprints(batches) == _expected_fingerprints(GRAPHS, indices)
    shapes = {str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), batch)) for batch in batches}
    assert len(batches) > 1 and len(shapes) == 1


def test_each_epoch_is_another_permutation_of_the_training_graphs():
    queue = TrainingBatches(GRAPHS, GRAPHS.indices("train"), SHAPE, seed=(1, 2))
    epochs = [[], []]
    while True:
        batch = next(queue)
        epoch = queue.get_state()["epoch"]
        if epoch == 2:
            break
        epochs[epoch].append(batch)
    first, second = map(_fingerprints, epochs)
    expected = sorted(_expected_fingerprints(GRAPHS, GRAPHS.indices("train")))
    assert sorted(first) == expected and sorted(second) == expected and first != second


def test_seed_decides_and_a_restored_queue_continues():
    def queue(seed):
        return TrainingBatches(GRAPHS, GRAPHS.indices("train"), SHAPE, seed=seed)

    reference = queue((7,))
    batches = [next(reference) for _ in range(12)]
    for n_drawn in (0, 1, 5, 9):
        drawn = queue((7,))
        for _ in range(n_drawn):
            next(drawn)
        restored = queue((7,))
        restored.set_state(drawn.get_state())
        for batch in batches[n_drawn:]:
            _equal(next(restored), batch)
    assert _fingerprints([next(queue((8,)))]) != _fingerprints(batches[:1])


def test_a_graph_over_the_budget_is_named():
    sizes = (3, 60, 2)
    graphs = pack(
        [(np.zeros((n, 9)), np.zeros((1, 3)), np.zeros((1, 2))) for n in sizes], np.zeros((3, 1)), np.zeros(3)
    )
    with pytest.raises(ValueError, match="graph 1 has 60 nodes and 2 edges.*raise the batch size"):
        plan(graphs, np.arange(3), BatchShape(1, 2))
    with pytest.raises(ValueError, match="graph 1 has 60 nodes"):
        evaluation_batches(graphs, np.arange(3), BatchShape(1, 2))  # before the first batch is drawn


def test_batch_size_must_divide_into_sub_batches():
    with pytest.raises(ValueError, match="multiple of the 3 sub-batches, not 64"):
        BatchShape.of(global_batch_size=64, sub_batches=3)
