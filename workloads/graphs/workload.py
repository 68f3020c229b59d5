"""What the graph workloads share: model, loss, metric and batches.

A concrete one brings data, sizes and a target.
"""

import abc
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax

from workloads import parameters
from workloads.evaluation import Predictor
from workloads.graphs.metrics import mean_average_precision
from workloads.graphs.model import GraphNetworkModel
from workloads.graphs.pipeline import BatchShape, TrainingBatches, evaluation_batches
from workloads.graphs.store import PackedGraphs
from workloads.random_keys import host_seed
from workloads.spec import ForwardPassMode, LossType, Workload

DROPOUT_RATE = 0.1
_EVAL_TRAIN_SEED = 0


class GraphWorkload(Workload):
    """Binary tasks on molecules, labels possibly missing."""

    model: GraphNetworkModel
    node_feature_dim: int = 9
    edge_feature_dim: int = 3
    sub_batches: int = 1  # independent of the number of devices, so that one and many see the same batches

    def __init__(self) -> None:
        super().__init__()
        self._predictor = Predictor(self)
        self._graphs: dict[str | None, PackedGraphs] = {}

    @abc.abstractmethod
    def _load_graphs(self, data_dir: str | None) -> PackedGraphs:
        """All splits' graphs; called once per folder."""

    @property
    def loss_type(self) -> LossType:
        return LossType.SIGMOID_CROSS_ENTROPY

    def is_output_params(self, param_key: str) -> bool:
        return param_key == self.model.output_layer_name

    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        graph = jraph.GraphsTuple(
            nodes=jnp.ones((1, self.node_feature_dim)),
            edges=jnp.ones((1, self.edge_feature_dim)),
            senders=jnp.zeros(1, jnp.int32),
            receivers=jnp.zeros(1, jnp.int32),
            globals={},
            n_node=jnp.ones(1, jnp.int32),
            n_edge=jnp.ones(1, jnp.int32),
        )
        init = jax.jit(lambda key: self.model.init(key, graph, train=False, dropout_rate=0.0)["params"])
        params = init(rng)
        self._param_shapes = parameters.param_shapes(params)
        self._param_types = parameters.param_types(params)
        return params, None

    def model_fn(
        self,
        params: Any,
        augmented_and_preprocessed_input_batch: Mapping[str, Any],
        model_state: Any,
        mode: ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = DROPOUT_RATE,
    ) -> tuple[jax.Array, None]:
        """-> (logits [n_graphs, n_tasks], None); there is no state. `rng` is unused in EVAL mode."""
        del model_state, update_batch_norm
        train = mode == ForwardPassMode.TRAIN
        logits = self.model.apply(
            {"params": params},
            augmented_and_preprocessed_input_batch["inputs"],
            train=train,
            dropout_rate=dropout_rate,
            rngs={"dropout": rng} if train else {},
        )
        return logits, None

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
        labels = optax.smooth_labels(jnp.where(present, label_batch, 0.0), label_smoothing)
        losses = jnp.where(present, optax.sigmoid_binary_cross_entropy(logits_batch, labels), 0.0)
        return {
            "summed": losses.sum(),
            "n_valid_examples": present.sum().astype(jnp.float32),
            "per_example": losses.sum(axis=1),
        }

    def _build_input_queue(
        self,
        data_rng: Any,
        split: str,
        data_dir: str | None,
        global_batch_size: int,
        cache: bool | None = None,
        repeat_final_dataset: bool | None = None,
        num_batches: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        del cache, repeat_final_dataset
        shape = BatchShape.of(global_batch_size=global_batch_size, sub_batches=self.sub_batches)
        if data_dir not in self._graphs:
            self._graphs[data_dir] = self._load_graphs(data_dir)
        graphs = self._graphs[data_dir]
        if split == "train":
            return TrainingBatches(graphs, graphs.indices("train"), shape, seed=host_seed(data_rng))
        return islice(evaluation_batches(graphs, self._evaluated(graphs, split), shape), num_batches)

    def _evaluated(self, graphs: PackedGraphs, split: str) -> np.ndarray:
        """Graph ids of a split; "eval_train" is the same random part of "train" in every run."""
        if split != "eval_train":
            return graphs.indices(split)
        shuffled = np.random.default_rng(_EVAL_TRAIN_SEED).permutation(graphs.indices("train"))
        return np.sort(shuffled[: self.num_eval_train_examples])

    def _eval_model_on_split(
        self,
        split: str,
        num_examples: int,
        global_batch_size: int,
        params: Any,
        model_state: Any,
        rng: Any,
        data_dir: str | None,
        global_step: int = 0,
    ) -> dict[str, float]:
        del num_examples, global_step
        batches = self._build_input_queue(rng, split, data_dir, global_batch_size)
        result = self._predictor(params, model_state, batches)
        precision = mean_average_precision(result.targets, result.logits, result.weights)
        return {"loss": result.mean_loss, "mean_average_precision": precision}
