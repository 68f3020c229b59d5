"""Batches of images in memory. The batch of any step can be computed directly."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from workloads import shards
from workloads.spec import TrainingQueue


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

    def training_batches(self, *, batch_size: int, seed: int) -> TrainingQueue:
        """Endless full batches, by a grain iterator, which has `get_state` and `set_state`.

        An epoch is `len(self)` examples: all images once, in a new random order. A batch may contain the end of one
        epoch and the start of the next.
        """
        import grain

        # Only indices go through grain. Gathering a batch's images in one step is faster than one by one, and needs no
        # threads.
        indices = grain.MapDataset.range(len(self)).seed(seed).shuffle().repeat().batch(batch_size, batch_fn=np.array)
        batches = indices.map(lambda ids: shards.batch(self.batch, ids, batch_size))
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def evaluation_batches(self, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Every image exactly once, in stored order; the last batch is padded."""
        for start in range(0, len(self), batch_size):
            yield shards.batch(self.batch, np.arange(start, min(start + batch_size, len(self))), batch_size)
