import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import batch_layout, describe, find_layers
from workloads.text import corpus
from workloads.text.model import position_embedding
from workloads.text.pydoc_lm import PydocLmWorkload, split_paragraphs
from workloads.text.windows import Text, TrainingBatches

ABC = Text(np.arange(23, dtype=np.int32), length=4)


@pytest.fixture(scope="module")
def workload():
    return PydocLmWorkload()


def test_a_changed_text_is_refused(monkeypatch, tmp_path):
    changed = tmp_path / "text.txt"
    changed.write_text(corpus._TEXT.read_text(encoding="utf-8").replace("Python", "python", 1), encoding="utf-8")
    monkeypatch.setattr(corpus, "_TEXT", changed)
    with pytest.raises(ValueError, match="text.txt' is damaged: restore it"):
        corpus.paragraphs()


def test_each_part_of_the_text_has_its_size(workload):
    paragraphs = corpus.paragraphs()
    assert (len(paragraphs), sum(map(len, paragraphs))) == (1760, 271_548)
    splits = split_paragraphs(paragraphs, seed=0)
    sizes = workload.split_sizes
    assert {name: len(text) for name, text in splits.items()} == {
        "train": sizes.train,
        "validation": sizes.validation,
        "test": sizes.test,
    }
    assert sum(len(text.codes) for text in splits.values()) == 273_308  # a newline after each paragraph
    assert max(text.codes.max() for text in splits.values()) == workload.model.vocabulary - 1
    assert len(set(paragraphs)) == 1760


def test_evaluation_predicts_each_character_but_the_first_once():
    batches = list(ABC.evaluation_batches(batch_size=4))
    assert len(ABC) == 6 and len(batches) == 2
    real = [batch["weights"] > 0 for batch in batches]
    targets = np.concatenate([batch["targets"][kept] for batch, kept in zip(batches, real, strict=True)])
    inputs = np.concatenate([batch["inputs"][kept] for batch, kept in zip(batches, real, strict=True)])
    np.testing.assert_array_equal(targets, np.arange(1, 23))
    np.testing.assert_array_equal(inputs, np.arange(22))
    assert {batch["inputs"].shape for batch in batches} == {(4, 4)}


def test_training_draws_windows_anew_each_epoch_and_a_restored_queue_continues():
    def queue(seed=5):
        return TrainingBatches(ABC, batch_size=2, seed=(seed,))

    reference = queue()
    drawn = [next(reference) for _ in range(6)]  # two batches of the four windows are an epoch
    for batch in drawn:
        assert batch["weights"].all()
        np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
    epochs = [np.concatenate([batch["inputs"] for batch in drawn[i : i + 2]]) for i in (0, 2, 4)]
    assert all(len(np.unique(epoch)) == 16 for epoch in epochs)
    assert len({tuple(epoch.ravel()) for epoch in epochs}) == 3
    other, restored = queue(), queue(seed=5)
    [next(other) for _ in range(3)]
    restored.set_state(other.get_state())
    np.testing.assert_array_equal(next(restored)["inputs"], drawn[3]["inputs"])
    assert (next(queue(6))["inputs"] != drawn[0]["inputs"]).any()
    with pytest.raises(ValueError, match="the text has 4 windows: use a batch size of at most 4"):
        TrainingBatches(ABC, batch_size=8, seed=(0,))


def test_position_embedding_by_hand():
    np.testing.assert_allclose(position_embedding(3, 4)[2], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], 1e-6)


def test_no_prediction_depends_on_later_characters(workload):
    params, _ = workload.init_model_fn(jax.random.PRNGKey(0))

    def logits(characters):
        return workload.model.apply({"params": params}, characters[None], train=False, dropout_rate=0.0)[0]

    characters = jnp.arange(64) % 103
    before, after = logits(characters), logits(characters.at[40].set(7))
    np.testing.assert_array_equal(before[:40], after[:40])
    assert (jnp.abs(before[40:] - after[40:]).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_masked_sum_over_positions(workload, smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 5)), np.array([[0, 4, 2], [1, 1, 3]])
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    targets = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    expected = -(targets * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1) * weights
    loss = workload.loss_fn(labels, logits, weights, smoothing)
    np.testing.assert_allclose(loss["per_example"], expected.sum(1), rtol=1e-5)
    np.testing.assert_allclose(loss["summed"], expected.sum(), rtol=1e-5)
    assert loss["n_valid_examples"] == 3


def test_every_linear_layer_is_one_that_kfac_captures(workload):
    params, _ = workload.init_model_fn(jax.random.PRNGKey(0))
    layers = find_layers(params)

    def forward(p):
        characters = jnp.zeros((2, 64), jnp.int32)
        return workload.model.apply({"params": p}, characters, train=False, dropout_rate=0.0), None

    told = describe(params, layers, forward, batch_layout(2))
    assert len(layers) == 2 * 6 + 2 and "parameters in 14 layers are preconditioned" in told, told
