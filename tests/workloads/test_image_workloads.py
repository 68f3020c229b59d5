import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workloads import registry
from workloads.images.memory import LabelledImages
from workloads.images.mnist_vit import MnistVitWorkload
from workloads.images.vit import ViT, position_embedding
from workloads.images.wide_resnet import WideResNet
from workloads.images.workload import accuracy

S16 = {
    "num_classes": 1000,
    "patch_size": (16, 16),
    "width": 384,
    "depth": 12,
    "mlp_dim": 1536,
    "num_heads": 6,
}


def _images(n):
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1))
    return LabelledImages(pixels, (np.arange(n) % 3).astype(np.int32), n_classes=3)


def _ids(batch):
    """Pixel values, that is image numbers, of the real rows."""
    return batch["inputs"][:, 0, 0, 0][batch["weights"] > 0].tolist()


def _shapes(**options):
    def init():
        images = jnp.zeros((1, 224, 224, 3))
        return ViT(**S16, **options).init(jax.random.PRNGKey(0), images, train=False, dropout_rate=0.0)["params"]

    return jax.eval_shape(init)


def _count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_s16_has_algoperfs_parameters_and_names():
    shapes = _shapes()
    assert _count(shapes) == 22_122_472
    assert set(shapes) == {"conv_patch_extract", "Transformer", "pre_logits", "head"}
    blocks = {f"encoderblock_{i}" for i in range(12)}
    assert set(shapes["Transformer"]) == blocks | {"encoder_layernorm"}
    block = shapes["Transformer"]["encoderblock_0"]
    assert set(block) == {"LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"}
    assert set(block["MlpBlock_3"]) == {"Dense_0", "Dense_1"}


def test_variants_differ_by_their_own_layers():
    gated = 12 * (1536 * 1536 + 1536)
    pooled = 384 + 4 * (384 * 384 + 384) + 2 * 384 + 2 * 384 * 1536 + 1536 + 384
    assert _count(_shapes(is_gated=True)) == 22_122_472 + gated
    assert _count(_shapes(norm_after=True)) == 22_122_472 - 2 * 384
    assert _count(_shapes(pools_by_attention=True)) == 22_122_472 + pooled


def test_position_embedding_by_hand():
    table = np.asarray(position_embedding(2, 3, 8))
    assert table.shape == (1, 6, 8)
    x, y, slow = 2.0, 1.0, 1e-4  # the last of 2 x 3 positions, the lower of two frequencies
    parts = [(np.sin, x), (np.cos, x), (np.sin, y), (np.cos, y)]
    np.testing.assert_allclose(table[0, 5], [f(v * w) for f, v in parts for w in (1.0, slow)], atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        position_embedding(2, 2, 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_masked_sum(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    labels, weights = np.eye(4, dtype=np.float32)[[0, 3, 1, 2, 2]], np.array([1, 1, 0, 1, 0], np.float32)
    expected = []
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        target = label * (1 - smoothing) + smoothing / 4
        expected.append(-np.sum(target * (row - np.log(np.exp(row).sum()))))
    loss = MnistVitWorkload().loss_fn(labels, logits, weights, smoothing)
    np.testing.assert_allclose(loss["per_example"], np.array(expected) * weights, rtol=1e-5)
    np.testing.assert_allclose(loss["summed"], np.dot(expected, weights), rtol=1e-5)
    assert loss["n_valid_examples"] == 3


def test_accuracy_counts_real_images_only():
    targets, logits = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 2, 2, 1]]
    assert accuracy(targets, logits, np.array([1, 1, 1, 0])) == pytest.approx(2 / 3)
    logits[0, 0] = np.nan
    assert np.isnan(accuracy(targets, logits, np.ones(4)))


def test_evaluation_sees_each_image_once_and_pads_with_zero_weight():
    batches = list(_images(10).evaluation_batches(batch_size=4))
    assert [i for batch in batches for i in _ids(batch)] == list(range(10))
    assert [batch["weights"].tolist() for batch in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    for batch in batches:
        assert batch["inputs"].shape == (4, 2, 2, 1) and batch["inputs"].dtype == np.uint8
        assert batch["targets"].shape == (4, 3)
    np.testing.assert_array_equal(batches[1]["targets"], np.eye(3)[[1, 2, 0, 1]])


def test_each_epoch_is_another_permutation_and_a_restored_queue_continues():
    def queue(seed=5):
        return _images(10).training_batches(batch_size=4, seed=seed)

    reference = queue()
    drawn = [_ids(next(reference)) for _ in range(10)]
    stream = sum(drawn, [])
    epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    restored, other = queue(), queue()
    [next(other) for _ in range(7)]
    restored.set_state(other.get_state())
    assert [_ids(next(restored)) for _ in range(3)] == drawn[7:]
    other_seed = queue(seed=6)
    assert sum([_ids(next(other_seed)) for _ in range(5)], []) != stream[:20]


def test_the_model_sees_normalised_pixels_channel_by_channel():
    inputs = registry.load("cifar10_wrn")._model_inputs(jnp.full((1, 2, 2, 3), 255, jnp.uint8))
    expected = (1 - np.array([0.4914, 0.4822, 0.4465])) / np.array([0.2470, 0.2435, 0.2616])
    np.testing.assert_allclose(inputs[0, 1, 0], expected, rtol=1e-6)


def test_wide_resnet_16_4_has_the_papers_size_and_no_batch_statistics():
    workload = registry.load("cifar10_wrn")
    params = jax.eval_shape(lambda: workload.init_model_fn(jax.random.PRNGKey(0))[0])
    # 2.7 M in the paper; its batch normalisation and this group normalisation have as many scales and offsets.
    assert _count(params) == 2_748_890
    with pytest.raises(ValueError, match="4 more than a multiple of 6"):
        WideResNet(10, depth=17).init(jax.random.PRNGKey(0), jnp.zeros((1, 8, 8, 3)), train=False, dropout_rate=0.0)


def test_mnist_is_what_the_workload_says():
    workload = MnistVitWorkload()
    splits = workload._load_splits(None)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 3500,
        "validation": 1000,
        "test": 500,
    }
    for split in splits.values():
        assert np.bincount(split.labels).tolist() == [len(split) // 10] * 10 and split.pixels.dtype == np.uint8
    distinct = {image.tobytes() for split in splits.values() for image in split.pixels}
    assert len(distinct) == 5000
    assert sum(split.pixels.mean(dtype=float) for split in splits.values()) / 3 / 255 == pytest.approx(0.1307, abs=0.01)
