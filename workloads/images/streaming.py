"""Batches of images that are read, decoded and augmented on demand, by grain's threads.

The order of the examples depends on (seed, epoch). An example's random numbers depend on (seed, epoch, its position in
the split). So the numbers of threads and of processes do not change what is drawn.
"""

import dataclasses
import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import joblib
import numpy as np

from workloads import shards
from workloads.images import augment, decode

_N_THREADS = max(2, joblib.cpu_count())  # of the cores that this process may use
_CHUNK = 16  # examples in one element of grain's stream, to spread grain's overhead per element
_PREFETCH = 512  # examples decoded in advance, besides those that the threads are decoding
_ON_DEVICE = 2  # batches copied to the devices in advance

Prepare = Callable[[Any, np.random.Generator | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class StreamedImages:
    """A split with random access.

    Attributes:
        examples: index -> {"image", "label"}.
        indices: of the examples that belong to the split.
        prepare: (encoded image, generator) -> uint8 [height, width, channels]; the generator, for random augmentation,
            is None in evaluation.
        mixup_alpha: of training batches; None for no mixup.
    """

    examples: Sequence[Mapping[str, Any]]
    indices: np.ndarray
    n_classes: int
    prepare: Prepare
    mixup_alpha: float | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, indices: np.ndarray) -> "StreamedImages":
        return dataclasses.replace(self, indices=self.indices[indices])

    def example(self, position: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
        """One prepared image and its label.

        Raises:
            ValueError: the image cannot be read; the message names it.
        """
        index = int(self.indices[position])
        try:
            example = self.examples[index]
            return self.prepare(example["image"], rng), int(example["label"])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"image {index} of the data set cannot be read ({error}): prepare it again") from error

    @functools.cached_property
    def _shape(self) -> tuple[int, ...]:
        return self.example(0, None)[0].shape

    def training_batches(self, *, batch_size: int, seed: int) -> "StreamedBatches":
        return StreamedBatches(self, batch_size=batch_size, seed=seed)

    def evaluation_batches(self, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Every image exactly once, in order; the last batch is padded with zeros of weight 0.

        Each of several processes reads its own rows.
        """
        import grain

        rows = shards.own_rows(batch_size)
        own_positions = [range(len(self))[start:][:batch_size][rows] for start in range(0, len(self), batch_size)]
        positions = list(itertools.chain.from_iterable(own_positions))

        def chunk(start: int) -> list[tuple[np.ndarray, int]]:
            return [self.example(position, None) for position in positions[start : start + _CHUNK]]

        chunks = grain.MapDataset.range(0, len(positions), _CHUNK).map(chunk)
        stream = itertools.chain.from_iterable(chunks.to_iter_dataset(_read_options(grain)))
        for part in own_positions:
            examples = list(itertools.islice(stream, len(part)))
            yield shards.global_arrays(_batch(examples, self._shape, self.n_classes, rows.stop - rows.start))


class StreamedBatches:
    """Endless full batches on the devices, every epoch in a new random order; the state is a batch number.

    Each of several processes draws its own rows of the global batch.

    Raises:
        ValueError: the devices of several processes do not divide the batch size.
    """

    def __init__(self, images: StreamedImages, *, batch_size: int, seed: int) -> None:
        import grain

        own_rows = shards.own_rows(batch_size)
        rows = np.arange(own_rows.start, own_rows.stop)
        self._size, self._n_before = len(rows), 0
        if images.mixup_alpha is not None and self._size < batch_size:
            self._n_before, rows = 1, np.r_[(own_rows.start - 1) % batch_size, rows]  # mixed with the first row
        self._images, self._n_drawn, self._seed = images, len(rows), seed
        n_chunks = self._n_chunks = -(-len(rows) // _CHUNK)  # of a batch
        # Number in the endless stream of epochs -> position in the split.
        positions = grain.MapDataset.range(len(images)).seed(seed).shuffle().repeat()
        key = np.random.SeedSequence(seed).spawn(1)[0].generate_state(2, np.uint64)

        def example(number: int) -> tuple[np.ndarray, int]:
            epoch, position = number // len(images), positions[number]
            # A counter-based generator: 2**64 blocks of numbers for each (epoch, position), and no cost of seeding.
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, epoch, position]))
            return images.example(position, rng)

        def chunk(number: int) -> list[tuple[np.ndarray, int]]:
            """Up to `_CHUNK` successive rows of a batch. Chunks are numbered batch by batch."""
            step, part = divmod(number, n_chunks)
            return [example(step * batch_size + int(row)) for row in rows[part * _CHUNK : (part + 1) * _CHUNK]]

        chunks = grain.MapDataset.range(sys.maxsize).map(chunk)
        self._chunks = iter(chunks.to_iter_dataset(_read_options(grain)))
        self._sharding = shards.over_devices("batch")
        self._sent: deque[dict[str, jax.Array]] = deque()
        self._step = 0

    def __iter__(self) -> "StreamedBatches":
        return self

    def __next__(self) -> dict[str, jax.Array]:
        while len(self._sent) <= _ON_DEVICE:
            self._sent.append(self._send(self._step + len(self._sent)))
        self._step += 1
        return self._sent.popleft()

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._step = int(state["step"])
        self._sent.clear()
        self._chunks.set_state({"next_index": self._step * self._n_chunks})

    def _send(self, step: int) -> dict[str, jax.Array]:
        examples = list(itertools.chain.from_iterable(itertools.islice(self._chunks, self._n_chunks)))
        batch = _batch(examples, examples[0][0].shape, self._images.n_classes, self._n_drawn)
        if self._images.mixup_alpha is not None:
            rng = np.random.default_rng((self._seed, step))
            mixed = augment.mixup(batch["inputs"], batch["targets"], rng, self._images.mixup_alpha)
            batch["inputs"], batch["targets"] = mixed
        own_rows = {name: array[self._n_before :] for name, array in batch.items()}
        return {name: jax.make_array_from_process_local_data(self._sharding, rows) for name, rows in own_rows.items()}


def prepare_jpeg(encoded: bytes, rng: np.random.Generator | None, *, size: int) -> np.ndarray:
    """ImageNet's preparation: a random crop, flip and RandAugment; without a generator, the central crop."""
    header = decode.read_header(encoded)
    if rng is None:
        return decode.crop(encoded, header, augment.central_box(header.height, header.width), size, exact=True)
    box = augment.random_box(header.height, header.width, rng) or augment.central_box(header.height, header.width)
    return augment.rand_augment(augment.random_flip(decode.crop(encoded, header, box, size), rng), rng)


def _batch(
    examples: Sequence[tuple[np.ndarray, int]], shape: tuple[int, ...], n_classes: int, size: int
) -> dict[str, np.ndarray]:
    inputs, targets = np.zeros((size, *shape), np.uint8), np.zeros((size, n_classes), np.float32)
    for row, (image, label) in enumerate(examples):
        inputs[row], targets[row, label] = image, 1
    return {"inputs": inputs, "targets": targets, "weights": (np.arange(size) < len(examples)).astype(np.float32)}


def _read_options(grain: Any) -> Any:
    return grain.ReadOptions(num_threads=_N_THREADS, prefetch_buffer_size=_N_THREADS + _PREFETCH // _CHUNK)
