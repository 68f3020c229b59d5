"""The base of the image workloads: loss, metric and batches.

A subclass adds model, data, sizes and a target. Images are copied to the device as bytes and normalised there.
"""

import abc
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from workloads import shards
from workloads.evaluation import Predictions
from workloads.flax_workload import SoftmaxWorkload
from workloads.images.memory import LabelledImages
from workloads.images.streaming import StreamedImages
from workloads.random_keys import host_seed
from workloads.spec import TrainingQueue
from workloads.splits import fixed_part

Images = LabelledImages | StreamedImages


class ImageWorkload(SoftmaxWorkload):
    """Single-label classification of images."""

    model: nn.Module  # with `num_classes`
    image_shape: tuple[int, int, int]  # height, width, channels
    # A pixel becomes (pixel / 255 - mean) / stddev, with one number for all channels or one per channel.
    pixel_mean: float | tuple[float, ...]
    pixel_stddev: float | tuple[float, ...]

    @abc.abstractmethod
    def _load_splits(self, data_dir: str | None) -> Mapping[str, Images]:
        """The splits "train", "validation" and "test"."""

    def _smallest_inputs(self) -> jax.Array:
        return jnp.zeros((1, *self.image_shape))

    def _model_inputs(self, inputs: jax.Array) -> jax.Array:
        """uint8 [batch, height, width, channels] -> float32."""
        pixels = inputs.astype(jnp.float32) / 255
        return (pixels - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_stddev)

    def _training_batches(self, seed: tuple[int, ...], data_dir: str | None, batch_size: int) -> TrainingQueue:
        grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])  # grain's seed is one integer
        return self._loaded(data_dir)["train"].training_batches(batch_size=batch_size, seed=grain_seed)

    def _evaluation_batches(self, split: str, data_dir: str | None, batch_size: int) -> Iterator[dict[str, Any]]:
        return self._loaded(data_dir)[split].evaluation_batches(batch_size=batch_size)

    def _load(self, data_dir: str | None) -> dict[str, Images]:
        splits = self._load_splits(data_dir)
        part = fixed_part(np.arange(len(splits["train"])), self.num_eval_train_examples)
        return {**splits, "eval_train": splits["train"].select(part)}

    def synthetic_queue(self, data_rng: Any, global_batch_size: int) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng(host_seed(data_rng))
        pixels = generator.integers(0, 256, (global_batch_size, *self.image_shape), np.uint8)
        labels = generator.integers(0, self.model.num_classes, global_batch_size, np.int32)
        images = LabelledImages(pixels, labels, self.model.num_classes)
        return repeat(shards.batch(images.batch, np.arange(global_batch_size), global_batch_size))

    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        return {"accuracy": accuracy(predictions.targets, predictions.logits, predictions.weights)}


def accuracy(targets: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    """Fraction of the images whose largest logit is the label's, among those with a positive weight.

    It is NaN if a logit is not finite. Targets (one-hot) and logits are [n, n_classes], weights [n].
    """
    present = weights > 0
    if not present.any() or not np.isfinite(logits[present]).all():
        return float("nan")
    return float((logits[present].argmax(axis=1) == targets[present].argmax(axis=1)).mean())
