import numpy as np
import pytest

from workloads.images import streaming
from workloads.images.streaming import StreamedImages


def _noisy(image, rng):
    """Channel 0 is the image's number; 1 and 2 are random in training."""
    pixels = np.full((2, 2, 3), image, np.uint8)
    if rng is not None:
        pixels[..., 1:] = rng.integers(0, 256, 2)
    return pixels


def _images(n=10, **options):
    examples = [{"image": i, "label": i % 3} for i in range(n)]
    return StreamedImages(examples, np.arange(n), 3, _noisy, **options)


def _queue(seed=5, **options):
    return _images(**options).training_batches(batch_size=4, seed=seed)


def _draw(queue, n):
    return [{name: np.asarray(value) for name, value in next(queue).items()} for _ in range(n)]


def _equal(left, right):
    for a, b in zip(left, right, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_epochs_are_permutations_and_each_example_is_changed_anew():
    batches = _draw(_queue(), 10)
    numbers = np.concatenate([batch["inputs"][:, 0, 0, 0] for batch in batches])
    epochs = numbers.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    changes = {tuple(row) for batch in batches for row in batch["inputs"][:, 0, 0, 1:].tolist()}
    assert len(changes) > 35


@pytest.mark.parametrize(("name", "value"), [("_N_THREADS", 1), ("_N_THREADS", 7), ("_CHUNK", 1), ("_CHUNK", 3)])
def test_the_number_of_threads_and_their_share_change_nothing(monkeypatch, name, value):
    several = _draw(_queue(mixup_alpha=0.2), 6)
    monkeypatch.setattr(streaming, name, value)
    _equal(_draw(_queue(mixup_alpha=0.2), 6), several)


def test_changes_come_from_seed_epoch_and_image_and_not_from_the_batch():
    def stream(batch_size, seed=5):
        queue = _images().training_batches(batch_size=batch_size, seed=seed)
        return np.concatenate([batch["inputs"] for batch in _draw(queue, 60 // batch_size)])

    np.testing.assert_array_equal(stream(4), stream(20))
    drawn = {tuple(image[0, 0]) for image in stream(4)}
    assert not drawn & {tuple(image[0, 0]) for image in stream(4, seed=6)}


@pytest.mark.parametrize("chunk", [3, 16])
def test_a_restored_queue_continues_bit_for_bit(monkeypatch, chunk):
    monkeypatch.setattr(streaming, "_CHUNK", chunk)
    reference = _queue(mixup_alpha=0.2)
    _draw(reference, 7)
    state, rest = reference.get_state(), _draw(reference, 4)
    restored = _queue(mixup_alpha=0.2)
    restored.set_state(state)
    _equal(_draw(restored, 4), rest)
    reference.set_state(state)
    _equal(_draw(reference, 4), rest)


@pytest.mark.parametrize("mixup_alpha", [None, 0.2])
@pytest.mark.parametrize("chunk", [2, 16])
def test_processes_share_out_the_batch(monkeypatch, mixup_alpha, chunk):
    monkeypatch.setattr(streaming, "_CHUNK", chunk)
    whole, evaluated = _draw(_queue(mixup_alpha=mixup_alpha), 3), list(_images().evaluation_batches(batch_size=4))
    for rows in (slice(0, 2), slice(2, 4)):
        monkeypatch.setattr(streaming.shards, "own_rows", lambda n_rows, rows=rows: rows)
        own = [{name: part[rows] for name, part in batch.items()} for batch in whole]
        _equal(_draw(_queue(mixup_alpha=mixup_alpha), 3), own)
        own = [{name: part[rows] for name, part in batch.items()} for batch in evaluated]
        _equal(list(_images().evaluation_batches(batch_size=4)), own)


@pytest.mark.parametrize("chunk", [3, 16])
def test_evaluation_sees_each_image_once_unchanged(monkeypatch, chunk):
    monkeypatch.setattr(streaming, "_CHUNK", chunk)
    batches = list(_images().evaluation_batches(batch_size=4))
    assert [batch["inputs"][:, 0, 0, 0][batch["weights"] > 0].tolist() for batch in batches] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert batches[2]["weights"].tolist() == [1, 1, 0, 0] and batches[2]["inputs"].shape == (4, 2, 2, 3)
    np.testing.assert_array_equal(batches[1]["targets"], np.eye(3)[[1, 2, 0, 1]])


def test_a_damaged_image_is_named():
    def broken(image, rng):
        if image == 7:
            raise ValueError("an image's data is damaged")
        return _noisy(image, rng)

    images = StreamedImages([{"image": i, "label": 0} for i in range(10)], np.arange(10), 3, broken)
    with pytest.raises(ValueError, match="image 7 of the data set cannot be read"):
        list(images.evaluation_batches(batch_size=4))
    with pytest.raises(ValueError, match="image 7 of the data set cannot be read"):
        _draw(images.training_batches(batch_size=4, seed=0), 5)
