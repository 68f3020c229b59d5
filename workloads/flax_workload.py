"""The base of all workloads here: a stateless Flax model, trained with dropout and evaluated over whole splits."""

import abc
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from workloads import parameters
from workloads.evaluation import Predictions, Predictor
from workloads.random_keys import host_seed
from workloads.spec import ForwardPassMode, LossType, TrainingQueue, Workload


def loss_sums(losses: jax.Array, is_present: jax.Array) -> dict[str, jax.Array]:
    """The return value of `loss_fn`, from the loss of each term and whether the term counts, both [batch, ...]."""
    losses = jnp.where(is_present, losses, 0.0)
    return {
        "summed": losses.sum(),
        "n_valid_examples": is_present.sum().astype(jnp.float32),
        "per_example": losses.reshape(len(losses), -1).sum(axis=1),
    }


class FlaxWorkload(Workload):
    """A model called as `model(inputs, train=…, dropout_rate=…)`. A subclass adds data, loss and metric."""

    model: nn.Module
    dropout_rate: float  # used if a submission sets none

    def __init__(self) -> None:
        super().__init__()
        self._predictor = Predictor(self)
        self._data: dict[str | None, Any] = {}  # folder -> what `_load` returned

    @abc.abstractmethod
    def _load(self, data_dir: str | None) -> Any:
        """The data of all splits; called once per folder."""

    def _loaded(self, data_dir: str | None) -> Any:
        if data_dir not in self._data:
            self._data[data_dir] = self._load(data_dir)
        return self._data[data_dir]

    @abc.abstractmethod
    def _smallest_inputs(self) -> Any:
        """The model's inputs for one example, from which the shapes of the parameters follow."""

    @abc.abstractmethod
    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        """The metrics of a split, without the loss."""

    @abc.abstractmethod
    def _training_batches(self, seed: tuple[int, ...], data_dir: str | None, batch_size: int) -> TrainingQueue:
        """Endless batches of the training split."""

    @abc.abstractmethod
    def _evaluation_batches(self, split: str, data_dir: str | None, batch_size: int) -> Iterator[dict[str, Any]]:
        """Every example of a split once, in a fixed order; the last batch is padded."""

    def _model_inputs(self, inputs: Any) -> Any:
        """Converts a batch's inputs to the model's inputs."""
        return inputs

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
        if split == "train":
            return self._training_batches(host_seed(data_rng), data_dir, global_batch_size)
        return islice(self._evaluation_batches(split, data_dir, global_batch_size), num_batches)

    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        inputs = self._smallest_inputs()
        init = jax.jit(lambda key: self.model.init(key, inputs, train=False, dropout_rate=0.0)["params"])
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
        dropout_rate: float | None = None,
    ) -> tuple[jax.Array, None]:
        """-> (logits [examples, *positions, outputs], None); there is no state. `rng` is unused in EVAL mode."""
        del model_state, update_batch_norm
        train = mode == ForwardPassMode.TRAIN
        logits: Any = self.model.apply(
            {"params": params},
            self._model_inputs(augmented_and_preprocessed_input_batch["inputs"]),
            train=train,
            dropout_rate=self.dropout_rate if dropout_rate is None else dropout_rate,
            rngs={"dropout": rng} if train else {},
        )
        return logits, None

    def _loss_and_metrics(self, params: Any, model_state: Any, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        predictions = self._predictor(params, model_state, batches)
        return {"loss": predictions.mean_loss, **self._metrics(predictions)}


class SoftmaxWorkload(FlaxWorkload):
    """Classification of examples, or of each of their positions. The model's output layer is called "head"."""

    loss_type = LossType.SOFTMAX_CROSS_ENTROPY
    dropout_rate = 0.0

    def is_output_params(self, param_key: str) -> bool:
        return param_key == "head"

    def loss_fn(
        self,
        label_batch: jax.Array,
        logits_batch: jax.Array,
        mask_batch: jax.Array | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, jax.Array]:
        """Softmax cross-entropy of every term [...], for logits [..., n_classes] and a mask [...].

        Labels are integers [...], or one-hot (or mixed) [..., n_classes]. `n_valid_examples` is the number of terms
        with a positive mask; `per_example` [batch] sums over an example's terms.
        """
        if label_batch.ndim < logits_batch.ndim:
            label_batch = jax.nn.one_hot(label_batch, logits_batch.shape[-1])
        losses = optax.softmax_cross_entropy(logits_batch, optax.smooth_labels(label_batch, label_smoothing))
        return loss_sums(losses, jnp.ones(losses.shape, bool) if mask_batch is None else mask_batch > 0)
