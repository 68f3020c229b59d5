import pytest

from tests.workloads.graph_samples import random_graphs
from workloads import preparation
from workloads.graphs import molpcba, store


def test_the_data_sets_that_can_be_prepared_are_those_that_workloads_name():
    known = preparation.data_sets()
    assert set(known) == {"ogbg_molpcba", "imagenet2012", "imagenet_v2", "cifar10"}
    assert all(name == data.dataset.name for name, data in known.items())
    assert known["ogbg_molpcba"].finish is not None and known["imagenet2012"].source is not None


def test_an_unknown_data_set_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'mnist'; known are .*ogbg_molpcba"):
        preparation.prepare("mnist", str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_new_preparation_that_is_cut_short_leaves_no_packed_graphs_of_the_old_data(tmp_path, monkeypatch, overwrite):
    """Without --overwrite the user has removed the data set."""

    def generate(data, root, *others):
        (root / data.dataset.path).mkdir()
        (root / data.dataset.path / "dataset_info.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_generate", generate)
    packed, old = molpcba.store_path(str(tmp_path)), tmp_path / molpcba.DATASET.path
    store.save(random_graphs(9), packed, source=molpcba._SOURCE)
    if overwrite:
        old.mkdir()
        (old / "dataset_info.json").write_text("{}")
        (old / "shard").write_text("old data")
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare("ogbg_molpcba", str(tmp_path), str(tmp_path), overwrite=overwrite)
    assert not packed.exists() and [file.name for file in old.iterdir()] == ["dataset_info.json"]
