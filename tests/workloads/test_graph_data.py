import json
import logging
import os

import numpy as np
import pytest

from tests.workloads.graph_samples import random_graphs
from workloads.graphs import b3db, molpcba, store
from workloads.graphs.molecules import featurise
from workloads.packages import packaged_file


def test_featurise_keeps_each_bond_once_and_drops_nothing_else():
    from ogb.utils.mol import smiles2graph

    smiles = ["CC(=O)Oc1ccccc1C(=O)O", "not a molecule", "[Na+]"]
    aspirin, broken, sodium = featurise(smiles)
    reference = smiles2graph(smiles[0])
    np.testing.assert_array_equal(aspirin.atoms, reference["node_feat"])
    both = np.concatenate([aspirin.bond_ends, aspirin.bond_ends[:, ::-1]])
    assert sorted(map(tuple, both)) == sorted(map(tuple, reference["edge_index"].T))
    np.testing.assert_array_equal(np.repeat(aspirin.bonds, 2, axis=0), reference["edge_feat"])
    assert broken is None
    assert sodium.atoms.shape == (1, 9) and sodium.bonds.shape == (0, 3) and sodium.bond_ends.shape == (0, 2)


def test_store_round_trip_and_refusals(tmp_path):
    graphs, path = random_graphs(9), tmp_path / "deep" / "graphs.npz"
    store.save(graphs, path, source="here")
    loaded = store.load(path, source="here")
    for name, array in vars(graphs).items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
        assert getattr(loaded, name).dtype == array.dtype
    assert [file.name for file in path.parent.iterdir()] == ["graphs.npz"]
    with pytest.raises(ValueError, match="it must be made again"):
        store.load(path, source="elsewhere")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it must be made again"):
        store.load(path, source="here")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="it must be made again"):
        store.load(path, source="here")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_the_file_is_for_the_user_to_say(tmp_path, mask, mode):
    earlier = os.umask(mask)
    try:
        store.save(random_graphs(3), tmp_path / "graphs.npz", source="here")
    finally:
        os.umask(earlier)
    assert (tmp_path / "graphs.npz").stat().st_mode & 0o777 == mode


def test_a_save_that_fails_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "graphs.npz"
    store.save(random_graphs(3), path, source="here")
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(random_graphs(4), path, source="here")
    assert [file.name for file in tmp_path.iterdir()] == ["graphs.npz"]
    assert len(store.load(path, source="here").labels) == 3


def test_packed_molecules_of_other_data_are_packed_again(tmp_path, monkeypatch, caplog):
    graphs, path = random_graphs(9), molpcba.store_path(str(tmp_path))
    store.save(graphs, path, source=molpcba._SOURCE)
    monkeypatch.setattr(molpcba, "pack_molpcba", lambda data_dir: "packed again")
    info = tmp_path / molpcba.DATASET.path / "dataset_info.json"
    info.parent.mkdir()
    assert len(molpcba.load_molpcba(str(tmp_path)).labels) == 9  # without the data set
    for shards, is_same in ((["3", "3"], True), (["3", "4"], False)):
        lengths = {"train": shards, "validation": ["3"], "test": ["0"]}
        splits = [{"name": name, "shardLengths": value} for name, value in lengths.items()]
        info.write_text(json.dumps({"splits": splits}))
        found = molpcba.load_molpcba(str(tmp_path))
        assert len(found.labels) == 9 if is_same else found == "packed again"
    assert "{'train': 6, 'validation': 3, 'test': 0} graphs, the data set {'train': 7, " in caplog.text


def test_a_changed_array_with_valid_zip_checksums_is_refused(tmp_path):
    path = tmp_path / "graphs.npz"
    store.save(random_graphs(9), path, source="here")
    with np.load(path) as file:
        arrays = dict(file)
    arrays["labels"] = 1 - arrays["labels"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="it must be made again"):
        store.load(path, source="here")


def test_b3db_cache_is_used_and_rebuilt_when_damaged(tmp_path, monkeypatch, caplog):
    calls = []

    def build():
        calls.append(1)
        return random_graphs(5)

    monkeypatch.setattr(b3db, "build", build)
    path = tmp_path / "b3db" / "packed_graphs.npz"
    load = b3db.B3dbWorkload()._load
    load(str(tmp_path)), load(str(tmp_path))
    assert len(calls) == 1
    path.write_bytes(b"rubbish")
    load(str(tmp_path)), load(str(tmp_path))
    assert len(calls) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(load(str(blocked)).labels) == 5
    assert "memory only" in caplog.text


def test_missing_and_damaged_packages_name_the_cure(tmp_path, monkeypatch):
    (tmp_path / "fake_data").mkdir()
    (tmp_path / "fake_data" / "table").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = {"path": "table", "distribution": "fake-data", "sha256": "0"}
    with pytest.raises(ValueError, match="pip install --force-reinstall --no-deps fake-data"):
        packaged_file(module="fake_data", **wanted)
    with pytest.raises(FileNotFoundError, match="run `pip install fake-data`"):
        packaged_file(module="no_such_module_here", **wanted)


def test_b3db_is_what_the_workload_says(tmp_path_factory):
    graphs = b3db.build()
    sizes = b3db.B3dbWorkload.split_sizes
    counts = [len(graphs.indices(split)) for split in store.SPLITS]
    assert counts == [sizes.train, sizes.validation, sizes.test] and sum(counts) == 7805
    positives = [graphs.labels[graphs.indices(split)].mean() for split in store.SPLITS]
    assert max(positives) - min(positives) < 1e-3  # stratified
    assert set(np.unique(graphs.labels)) == {0.0, 1.0} and graphs.labels.mean() < 0.5
    # Sulphasalazine, the table's first row: 28 heavy atoms, 30 bonds, BBB-.
    assert graphs.node_offsets[1] == 28 and graphs.bond_offsets[1] == 30 and graphs.labels[0, 0] == 1
