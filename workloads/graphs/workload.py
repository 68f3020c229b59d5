"""The base of the graph workloads: model, loss, metric and batches.

A subclass adds data, sizes and a target.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax

from workloads.evaluation import Predictions
from workloads.flax_workload import FlaxWorkload, loss_sums
from workloads.graphs.metrics import mean_average_precision
from workloads.graphs.model import GraphNetworkModel
from workloads.graphs.pipeline import BatchShape, TrainingBatches, evaluation_batches
from workloads.graphs.store import PackedGraphs
from workloads.graphs.synthetic import synthetic_molecules
from workloads.random_keys import host_seed
from workloads.spec import LossType
from workloads.splits import fixed_part


class GraphWorkload(FlaxWorkload):
    """Binary tasks on molecules, labels possibly missing."""

    model: GraphNetworkModel
    loss_type = LossType.SIGMOID_CROSS_ENTROPY
    dropout_rate = 0.1
    node_feature_dim: int = 9
    edge_feature_dim: int = 3
    pads_batches = True
    sub_batches: int = 1  # not the number of devices, so that any number of devices has the same batches
    smoothing_classes: int = 2  # label smoothing a moves 0 to a / classes, and 1 to 1 - a + a / classes

    def is_output_params(self, param_key: str) -> bool:
        return param_key == self.model.output_layer_name

    def _smallest_inputs(self) -> jraph.GraphsTuple:
        return jraph.GraphsTuple(
            nodes=jnp.ones((1, self.node_feature_dim)),
            edges=jnp.ones((1, self.edge_feature_dim)),
            senders=jnp.zeros(1, jnp.int32),
            receivers=jnp.zeros(1, jnp.int32),
            globals={},
            n_node=jnp.ones(1, jnp.int32),
            n_edge=jnp.ones(1, jnp.int32),
        )

    def loss_fn(
        self,
        label_batch: jax.Array,
        logits_batch: jax.Array,
        mask_batch: jax.Array | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, jax.Array]:
        """Sigmoid cross-entropy over labelled (graph, task) pairs; all arrays [n_graphs, n_tasks].

        NaN labels count as missing. `n_valid_examples` is the number of pairs, `per_example` [n_graphs] sums
        tasks.
        """
        present = ~jnp.isnan(label_batch)
        if mask_batch is not None:
            present &= mask_batch > 0
        labels = jnp.where(present, label_batch, 0.0)
        labels = (1 - label_smoothing) * labels + label_smoothing / self.smoothing_classes
        return loss_sums(optax.sigmoid_binary_cross_entropy(logits_batch, labels), present)

    def _training_batches(self, seed: tuple[int, ...], data_dir: str | None, batch_size: int) -> TrainingBatches:
        shape, graphs = self._shape(batch_size), self._loaded(data_dir)
        return TrainingBatches(graphs, graphs.indices("train"), shape, seed=seed)

    def _evaluation_batches(self, split: str, data_dir: str | None, batch_size: int) -> Iterator[dict[str, Any]]:
        shape, graphs = self._shape(batch_size), self._loaded(data_dir)
        return evaluation_batches(graphs, self._evaluated(graphs, split), shape)

    def synthetic_queue(self, data_rng: Any, global_batch_size: int) -> TrainingBatches:
        shape = self._shape(global_batch_size)
        seed = host_seed(data_rng)
        graphs = synthetic_molecules(
            4 * global_batch_size,
            n_tasks=self.model.num_outputs,
            node_feature_dim=self.node_feature_dim,
            bond_feature_dim=self.edge_feature_dim,
            seed=seed,
        )
        return TrainingBatches(graphs, graphs.indices("train"), shape, seed=seed)

    def _shape(self, global_batch_size: int) -> BatchShape:
        return BatchShape.of(
            global_batch_size=global_batch_size, sub_batches=self.sub_batches, devices=jax.device_count()
        )

    def _evaluated(self, graphs: PackedGraphs, split: str) -> np.ndarray:
        """Indices of a split's graphs; "eval_train" is the same random part of "train" in every run."""
        if split != "eval_train":
            return graphs.indices(split)
        return fixed_part(graphs.indices("train"), self.num_eval_train_examples)

    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        precision = mean_average_precision(predictions.targets, predictions.logits, predictions.weights)
        return {"mean_average_precision": precision}
