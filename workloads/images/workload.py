"""What the image workloads share: loss, metric and batches.

A concrete one brings model, data, sizes and a target.
"""

import abc
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from workloads import parameters
from workloads.evaluation import Predictor
from workloads.images.pipeline import LabelledImages, TrainingBatches, evaluation_batches
from workloads.images.vit import ViT
from workloads.random_keys import host_seed
from workloads.spec import ForwardPassMode, LossType, Workload

DROPOUT_RATE = 0.0
_EVAL_TRAIN_SEED = 0


class ImageWorkload(Workload):
    """Single-label classification of images."""

    model: ViT
    image_shape: tuple[int, int, int]  # height, width, channels

    def __init__(self) -> None:
        super().__init__()
        self._predictor = Predictor(self)
        self._splits: dict[str | None, dict[str, LabelledImages]] = {}

    @abc.abstractmethod
    def _load_splits(self, data_dir: str | None) -> dict[str, LabelledImages]:
        """ "train", "validation" and "test"; called once per folder."""

    @property
    def loss_type(self) -> LossType:
        return LossType.SOFTMAX_CROSS_ENTROPY

    def is_output_params(self, param_key: str) -> bool:
        return param_key == "head"

    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        images = jnp.zeros((1, *self.image_shape))
        init = jax.jit(lambda key: self.model.init(key, images, train=False, dropout_rate=0.0)["params"])
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
        """-> (logits [batch, n_classes], None); there is no state. `rng` is unused in EVAL mode."""
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
        """Softmax cross-entropy; labels one-hot (or mixed) and logits [batch, n_classes], mask [batch].

        `n_valid_examples` is the number of images with a positive mask, `per_example` is [batch].
        """
        labels = optax.smooth_labels(label_batch, label_smoothing)
        losses = optax.softmax_cross_entropy(logits_batch, labels)
        present = jnp.ones(losses.shape, bool) if mask_batch is None else mask_batch > 0
        losses = jnp.where(present, losses, 0.0)
        return {
            "summed": losses.sum(),
            "n_valid_examples": present.sum().astype(jnp.float32),
            "per_example": losses,
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
        if data_dir not in self._splits:
            self._splits[data_dir] = self._with_eval_train(self._load_splits(data_dir))
        images = self._splits[data_dir][split]
        if split == "train":
            seed = int(np.random.SeedSequence(host_seed(data_rng)).generate_state(1)[0])
            return TrainingBatches(images, batch_size=global_batch_size, seed=seed)
        return islice(evaluation_batches(images, batch_size=global_batch_size), num_batches)

    def _with_eval_train(self, splits: dict[str, LabelledImages]) -> dict[str, LabelledImages]:
        """Adds "eval_train", the same random part of "train" in every run."""
        shuffled = np.random.default_rng(_EVAL_TRAIN_SEED).permutation(len(splits["train"]))
        return splits | {
            "eval_train": splits["train"].select(np.sort(shuffled[: self.num_eval_train_examples]))
        }

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
        return {"loss": result.mean_loss, "accuracy": accuracy(result.targets, result.logits, result.weights)}


def accuracy(targets: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    """Fraction of weighted images whose largest logit is at the label; NaN if one of those is not finite.

    Targets one-hot and logits [n, n_classes], weights [n].
    """
    present = weights > 0
    if not present.any() or not np.isfinite(logits[present]).all():
        return float("nan")
    return float((logits[present].argmax(axis=1) == targets[present].argmax(axis=1)).mean())
