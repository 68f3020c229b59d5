"""ogbg-molpcba from TFDS, packed once into the store that training reads."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from workloads import tfds_data
from workloads.graphs import store

NAME, VERSION = "ogbg_molpcba", "0.1.3"
DATASET = tfds_data.Dataset(NAME, VERSION)
PACKED = Path(NAME) / f"packed_{VERSION}.npz"  # in the data folder
_SOURCE = f"TFDS {NAME} {VERSION}"
_LOG = logging.getLogger(__name__)


def load_molpcba(data_dir: str | None) -> store.PackedGraphs:
    """The packed graphs under `data_dir`, which are made from the prepared TFDS data set if they do not exist.

    They are made again if the data set has other numbers of graphs. The data set is not needed once they exist.

    Raises:
        FileNotFoundError, ValueError: the data set is absent or unusable; the message says how to prepare it.
    """
    path = store_path(data_dir)
    try:
        packed = store.load(path, source=_SOURCE)
        n_packed = {split: len(packed.indices(split)) for split in store.SPLITS}
        if (n_prepared := tfds_data.n_examples(DATASET, data_dir)) in (None, n_packed):
            return packed
        _LOG.warning("%s has %s graphs, the data set %s: packing them again", path, n_packed, n_prepared)
    except FileNotFoundError:
        _LOG.info("no packed graphs at %s: packing them", path)
    except ValueError as error:
        _LOG.warning("%s", error)
    return pack_molpcba(data_dir)


def store_path(data_dir: str | None) -> Path:
    return tfds_data.folder(data_dir) / PACKED


def pack_molpcba(data_dir: str | None) -> store.PackedGraphs:
    """Packs all molecules of the prepared data set, which takes minutes; raises as `load_molpcba`."""
    graphs, labels, split_codes = [], [], []
    for code, split in enumerate(store.SPLITS):
        for graph, label in _molecules(data_dir, split):
            graphs.append(graph)
            labels.append(label)
            split_codes.append(code)
    packed = store.pack(graphs, np.stack(labels), np.array(split_codes))
    store.save(packed, store_path(data_dir), source=_SOURCE)
    return packed


def _molecules(data_dir: str | None, split: str) -> Iterator[tuple[store.Graph, np.ndarray]]:
    examples = tfds_data.read(DATASET, split, data_dir)
    for index in range(len(examples)):
        try:
            example = examples[index]
        except (RuntimeError, ValueError) as error:
            cause = f"molecule {index} of {NAME}'s split {split!r} cannot be read ({error})"
            raise ValueError(f"{cause}: prepare the data set again, with --overwrite") from error
        graph = example["node_feat"], example["edge_feat"], example["edge_index"]
        yield graph, example["labels"]
