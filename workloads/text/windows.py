"""Batches of windows of a text. Each character of a window is predicted from the characters before it."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from workloads import shards


@dataclasses.dataclass(frozen=True)
class Text:
    """A split: the codes of its characters, in successive windows of `length` characters.

    Attributes:
        codes: [n_characters] int32.
    """

    codes: np.ndarray
    length: int

    def __len__(self) -> int:
        """Number of windows that predict every character but the first. The last window may be partly empty."""
        return -(-(len(self.codes) - 1) // self.length)

    def batch(self, starts: np.ndarray, *, size: int) -> dict[str, np.ndarray]:
        """The windows that begin at `starts`, padded to `size` windows by windows of weight 0.

        `inputs`, `targets` int32 and `weights` float32 are [size, length]. A target is the character after its input;
        its weight is 0 beyond the end of the text.
        """
        positions = np.full(size, len(self.codes))
        positions[: len(starts)] = starts
        positions = positions[:, None] + np.arange(self.length)
        last = len(self.codes) - 1
        return {
            "inputs": self.codes[np.minimum(positions, last)],
            "targets": self.codes[np.minimum(positions + 1, last)],
            "weights": (positions < last).astype(np.float32),
        }

    def part(self, n_windows: int) -> "Text":
        """The first `n_windows` windows."""
        return dataclasses.replace(self, codes=self.codes[: n_windows * self.length + 1])

    def evaluation_batches(self, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Every character but the first is a target once, in order."""
        starts = np.arange(len(self)) * self.length
        for first in range(0, len(starts), batch_size):
            yield shards.batch(self.batch, starts[first : first + batch_size], batch_size)


class TrainingBatches:
    """Endless full batches. An epoch has each whole window once, except windows that do not fill a batch.

    The offset of the windows and their order are drawn from (seed, epoch). The state is (epoch, number of its batches
    drawn so far).

    Raises:
        ValueError: the text does not fill a batch.
    """

    def __init__(self, text: Text, *, batch_size: int, seed: tuple[int, ...]) -> None:
        self._text, self._batch_size, self._seed = text, batch_size, seed
        self._n_windows = (len(text.codes) - text.length) // text.length
        self._n_batches = self._n_windows // batch_size
        if self._n_batches < 1:
            raise ValueError(f"the text has {self._n_windows} windows: use a batch size of at most {self._n_windows}")
        self.set_state({"epoch": 0, "batch": 0})

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batch >= self._n_batches:
            self.set_state({"epoch": self._epoch + 1, "batch": 0})
        first = self._batch * self._batch_size
        self._batch += 1
        return shards.batch(self._text.batch, self._starts[first : first + self._batch_size], self._batch_size)

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        generator = np.random.default_rng((*self._seed, self._epoch))
        shift = generator.integers(self._text.length)
        self._starts = shift + self._text.length * generator.permutation(self._n_windows)
