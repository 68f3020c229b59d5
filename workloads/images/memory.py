"""Batches of images in memory. The batch of any step can be computed directly."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from workloads import shards


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """A split in memory."""

    pixels: np.ndarray  # [n, height, width, channels] uint8
    labels: np.ndarray  # [n] int32
    n_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, *, size: int) -> dict[str, np.ndarray]:
        """The given examples, padded to `size` rows with zeros of weight 0.

        `inputs` [size, height, width, channels] uint8, `targets` one-hot [size, n_classes] and `weights` [size]
        float32.
        """
        n_real = len(indices)
        inputs = np.zeros((size, *self.pixels.shape[1:]), np.uint8)
        inputs[:n_real] = self.pixels[indices]
        targets = np.zeros((size, self.n_classes), np.float32)
        targets[np.arange(n_real), self.labels[indices]] = 1
        weights = (np.arange(size) < n_real).astype(np.float32)
        return {"inputs": inputs, "targets": targets, "weights": weights}

    def select(self, indices: np.ndarray) -> "LabelledImages":
        return dataclasses.replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def training_batches(self, *, batch_size: int, seed: int) -> "TrainingBatches":
        return TrainingBatches(self, batch_size=batch_size, seed=seed)

    def evaluation_batches(self, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Every image exactly once, in stored order; the last batch is padded."""
        for start in range(0, len(self), batch_size):
            yield shards.batch(self.batch, np.arange(start, min(start + batch_size, len(self))), batch_size)


class TrainingBatches:
    """Endless full batches.

    An epoch is `len(images)` examples: all images once, in a new random order. A batch may contain the end of one
    epoch and the start of the next. The state is the number of batches drawn.

    Raises:
        ImportError: grain is not installed.
    """

    def __init__(self, images: LabelledImages, *, batch_size: int, seed: int) -> None:
        try:
            import grain
        except ImportError as error:
            raise ImportError("training on images needs grain: run `pip install grain`") from error
        # Only indices go through grain. Gathering a batch's images in one step is faster than one by one.
        indices = grain.MapDataset.range(len(images)).seed(seed).shuffle().repeat().batch(batch_size, batch_fn=np.array)
        self._batches = indices.map(lambda batch: shards.batch(images.batch, batch, batch_size))
        self._step = 0

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._batches[self._step]
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._step = int(state["step"])
