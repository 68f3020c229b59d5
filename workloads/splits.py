"""Random splits of a data set."""

import numpy as np


def stratified_split(
    labels: np.ndarray, *, validation: int, test: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (ascending) of training, validation and test examples, in which every class keeps its share.

    Args:
        labels: class of each example [n].
        validation, test: number of examples of each split; all others are for training.
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    train, held_out = train_test_split(everything, test_size=validation + test, stratify=labels, random_state=seed)
    validation_ids, test_ids = train_test_split(held_out, test_size=test, stratify=labels[held_out], random_state=seed)
    return np.sort(train), np.sort(validation_ids), np.sort(test_ids)


def fixed_part(indices: np.ndarray, n: int) -> np.ndarray:
    """`n` of the indices (ascending), drawn at random, and the same ones in every run: the split "eval_train"."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:n])
