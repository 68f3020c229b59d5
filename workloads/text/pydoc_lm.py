"""`pydoc_lm`: a small causal transformer predicts the next character of Python's language reference.

Data: 273,308 characters in 1,760 paragraphs, which come with this package (`workloads.text.corpus`). The paragraphs
are divided at random: nine tenths of the characters train, and a twentieth each are for validation and test.
The metric is the cross-entropy per character in nats, where lower is better. Each character is predicted from at most
the 64 before it.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from workloads import shards
from workloads.evaluation import Predictions
from workloads.flax_workload import SoftmaxWorkload
from workloads.random_keys import host_seed
from workloads.spec import Budget, Direction, SplitSizes, Target
from workloads.text import corpus
from workloads.text.model import CharacterTransformer
from workloads.text.windows import Text, TrainingBatches

_LENGTH = 64
_SPLIT_SEED = 0


class PydocLmWorkload(SoftmaxWorkload):
    model = CharacterTransformer(vocabulary=103, width=64, depth=2, num_heads=2, mlp_dim=128)
    training_batch_size = 16
    validation_target = Target("loss", 1.56254, Direction.LOWER_IS_BETTER)
    test_target = Target("loss", 1.63248, Direction.LOWER_IS_BETTER)
    budget = Budget(step_hint=1500, max_allowed_runtime_s=1200, eval_period_s=1200, eval_period_steps=20)
    eval_batch_size = 32
    # Windows of 64 characters.
    split_sizes = SplitSizes(train=3841, eval_train=50, validation=214, test=216)

    def _smallest_inputs(self) -> jax.Array:
        return jnp.zeros((1, _LENGTH), jnp.int32)

    def _training_batches(self, seed: tuple[int, ...], data_dir: str | None, batch_size: int) -> TrainingBatches:
        return TrainingBatches(self._loaded(data_dir)["train"], batch_size=batch_size, seed=seed)

    def _evaluation_batches(self, split: str, data_dir: str | None, batch_size: int) -> Iterator[dict[str, Any]]:
        return self._loaded(data_dir)[split].evaluation_batches(batch_size=batch_size)

    def _load(self, data_dir: str | None) -> dict[str, Text]:
        """The text comes with this package, so no data folder is read; raises as `corpus.paragraphs`."""
        splits = split_paragraphs(corpus.paragraphs(), _SPLIT_SEED)
        return splits | {"eval_train": splits["train"].part(self.num_eval_train_examples)}

    def synthetic_queue(self, data_rng: Any, global_batch_size: int) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng(host_seed(data_rng))
        text = Text(generator.integers(0, self.model.vocabulary, _LENGTH + global_batch_size, np.int32), _LENGTH)
        return repeat(shards.batch(text.batch, np.arange(global_batch_size), global_batch_size))

    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        return {}  # the loss is the metric


def split_paragraphs(paragraphs: list[str], seed: int) -> dict[str, Text]:
    """The paragraphs in random order; the first twentieth of their characters is "validation", the next one "test"."""
    shuffled = [paragraphs[i] + "\n" for i in np.random.default_rng(seed).permutation(len(paragraphs))]
    characters = np.array(list("".join(shuffled)))
    _, codes = np.unique(characters, return_inverse=True)
    ends = np.cumsum([len(paragraph) for paragraph in shuffled])
    twentieths = [int(ends[ends.searchsorted(len(codes) * share)]) for share in (0.05, 0.1)]
    parts = np.split(codes.astype(np.int32), twentieths)
    return {name: Text(part, _LENGTH) for name, part in zip(("validation", "test", "train"), parts, strict=True)}
