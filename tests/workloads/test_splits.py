import numpy as np

from workloads.splits import stratified_split


def test_every_part_has_the_classes_shares_and_every_example_is_in_one_part():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [700, 300]))
    parts = stratified_split(labels, validation=200, test=100, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert [(len(part), int(labels[part].sum())) for part in parts] == [(700, 210), (200, 60), (100, 30)]
    assert all((np.diff(part) > 0).all() for part in parts)


def test_a_split_is_a_function_of_its_seed():
    labels = np.arange(60) % 3
    first, again, other = (stratified_split(labels, validation=9, test=6, seed=seed) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[1] != other[1]).any()
