import pytest

from workloads import preparation


def test_the_data_sets_that_can_be_prepared_are_those_that_workloads_name():
    known = preparation.data_sets()
    assert set(known) == {"ogbg_molpcba", "imagenet2012", "imagenet_v2", "cifar10"}
    assert all(name == data.dataset.name for name, data in known.items())
    assert known["ogbg_molpcba"].finish is not None and known["imagenet2012"].source is not None


def test_an_unknown_data_set_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'mnist'; known are .*ogbg_molpcba"):
        preparation.prepare("mnist", str(tmp_path), str(tmp_path))
