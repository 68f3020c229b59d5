import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.workloads.graph_samples import as_jraph, random_graphs
from workloads.graphs.b3db import B3dbWorkload
from workloads.graphs.metrics import mean_average_precision
from workloads.graphs.model import GraphNetworkModel
from workloads.graphs.ogbg import OgbgWorkload
from workloads.graphs.pipeline import BatchShape, assemble, plan
from workloads.spec import ForwardPassMode, LossType


def _init(model):
    graph = as_jraph(random_graphs(1), 0)
    init = jax.jit(lambda key: model.init(key, graph, train=False, dropout_rate=0.0)["params"])
    return init(jax.random.PRNGKey(0))


def test_ogbg_sizes_give_algoperfs_parameters():
    shapes = jax.eval_shape(lambda: _init(GraphNetworkModel(num_outputs=128)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 3_554_176
    expected = {"node_embedding", "edge_embedding"}
    expected |= {f"Dense_{i}" for i in range(16)} | {f"LayerNorm_{i}" for i in range(15)}
    assert set(shapes) == expected
    assert shapes[GraphNetworkModel(num_outputs=128).output_layer_name]["kernel"].shape == (256, 128)


def test_padded_batch_equals_graphs_one_by_one():
    graphs = random_graphs(4, seed=3)
    model = GraphNetworkModel(num_outputs=3, latent_dim=8, hidden_dims=(8,), num_message_passing_steps=2)
    params = _init(model)

    @jax.jit
    def logits(graph):
        return model.apply({"params": params}, graph, train=False, dropout_rate=0.0)

    shape = BatchShape(4, 2)
    parts = plan(graphs, np.arange(4), shape)
    assert 1 < len(parts) < 5
    batched = logits(assemble(graphs, parts, shape)["inputs"]).reshape(4, 3, 3)
    for index, ids in enumerate(parts):
        for offset, graph in enumerate(ids):
            alone = logits(as_jraph(graphs, graph))[0]
            np.testing.assert_allclose(batched[index, offset], alone, rtol=2e-4, atol=2e-5)


def _naive_loss(labels, logits, weights, smoothing):
    summed, count = 0.0, 0
    for row in range(labels.shape[0]):
        for task in range(labels.shape[1]):
            if weights[row, task] > 0 and not np.isnan(labels[row, task]):
                p = 1 / (1 + np.exp(-float(logits[row, task])))
                y = labels[row, task] * (1 - smoothing) + smoothing / 2
                summed -= y * np.log(p) + (1 - y) * np.log(1 - p)
                count += 1
    return summed, count


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_masked_sum_over_labelled_pairs(smoothing):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (6, 4)).astype(np.float32)
    weights = (rng.random((6, 4)) < 0.6).astype(np.float32)
    labels[0, 0], weights[0, 0], weights[1, 1] = np.nan, 1.0, 1.0
    logits = rng.normal(size=(6, 4)).astype(np.float32) * 3
    workload = B3dbWorkload()
    loss = workload.loss_fn(labels, logits, weights, smoothing)
    summed, count = _naive_loss(labels, logits, weights, smoothing)
    np.testing.assert_allclose(loss["summed"], summed, rtol=1e-5)
    assert loss["n_valid_examples"] == count and loss["per_example"].shape == (6,)
    np.testing.assert_allclose(loss["per_example"].sum(), summed, rtol=1e-5)
    gradient = jax.grad(lambda x: workload.loss_fn(labels, x, weights)["summed"])(jnp.asarray(logits))
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[weights == 0] == 0).all() and gradient[0, 0] == 0
    assert workload.loss_type is LossType.SIGMOID_CROSS_ENTROPY


@pytest.mark.parametrize(("workload", "low"), [(B3dbWorkload(), 0.2 / 2), (OgbgWorkload(), 0.2 / 128)])
def test_smoothed_labels_lie_between_the_two_outcomes_or_are_upstreams(workload, low):
    """One binary task's 0 and 1 become 0.1 and 0.9; AlgoPerf's `ogbg` takes its 128 tasks for classes."""
    logits = np.array([[0.7], [-1.3]])
    targets = np.array([[low], [0.8 + low]])
    expected = np.logaddexp(0, logits) - targets * logits
    loss = workload.loss_fn(np.array([[0.0], [1.0]]), logits, None, label_smoothing=0.2)
    np.testing.assert_allclose(loss["per_example"], expected[:, 0], rtol=1e-6)


def test_dropout_acts_in_train_mode_only_and_takes_a_traced_rate():
    workload, graphs = B3dbWorkload(), random_graphs(6, n_tasks=1)
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    batch = assemble(graphs, plan(graphs, np.arange(6), BatchShape(1, 8)), BatchShape(1, 8))

    @jax.jit
    def train(key, rate):
        return workload.model_fn(params, batch, state, ForwardPassMode.TRAIN, key, False, dropout_rate=rate)[0]

    first, second = jax.random.PRNGKey(1), jax.random.PRNGKey(2)
    plain = workload.model_fn(params, batch, state, ForwardPassMode.EVAL, None, False)[0]
    assert not np.allclose(train(first, 0.1), train(second, 0.1))
    np.testing.assert_allclose(train(first, 0.0), plain, rtol=1e-5, atol=1e-6)
    assert train._cache_size() == 1


def test_average_precision_by_hand():
    # Ranking + - + : precision 1 at recall 1/2, 2/3 at recall 1 -> 1/2 + 1/3 = 5/6. Ranking - + : 1/2.
    labels = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 1, 0]], np.float32)
    scores = np.array([[0.9, 0.8, 0.1], [0.5, 0.3, 0.2], [0.1, 9.0, 0.3], [0.7, 7.0, 9.9]], np.float32)
    weights = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0]], np.float32)
    assert mean_average_precision(labels, scores, weights) == pytest.approx((5 / 6 + 1 / 2) / 2)


def test_average_precision_without_a_usable_task_or_with_a_bad_score_is_nan():
    labels, ones = np.array([[1.0], [1.0]]), np.ones((2, 1))
    assert np.isnan(mean_average_precision(labels, ones, ones))
    mixed = np.array([[1.0], [0.0]])
    assert np.isnan(mean_average_precision(mixed, np.array([[np.nan], [0.0]]), ones))
    with pytest.raises(ValueError, match="differ in shape"):
        mean_average_precision(mixed, ones[:1], ones)
