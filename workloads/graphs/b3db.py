"""`b3db`: does a molecule fail to cross the blood-brain barrier? A small graph network on 7,805 molecules.

Data: B3DB (Meng et al. 2021, doi 10.1038/s41597-021-01069-5, CC0) from the package `qc-b3db`; of its 7,807
molecules RDKit parses 7,805. The rarer class (BBB-) is the positive label. The split is random within each class, so
that validation and test have the same distribution; with a split by scaffold they would not.
"""

import csv
import logging

import numpy as np

from workloads import tfds_data
from workloads.graphs import store
from workloads.graphs.model import GraphNetworkModel
from workloads.graphs.molecules import featurise
from workloads.graphs.workload import GraphWorkload
from workloads.packages import packaged_file
from workloads.spec import Budget, SplitSizes, Target
from workloads.splits import stratified_split

SHA256 = "47a160aea1551423ead2aab70b301fb1646aea03cf151fd614eb37c78fa55b82"
_SPLIT_SEED = 0
# The source of a cached file. A file from another source is not used.
_SOURCE = f"{SHA256}, stratified random split, seed {_SPLIT_SEED}"
_LOG = logging.getLogger(__name__)


class B3dbWorkload(GraphWorkload):
    model = GraphNetworkModel(num_outputs=1, latent_dim=32, hidden_dims=(32,), num_message_passing_steps=3)
    sub_batches = 2
    training_batch_size = 64
    # results/targets/b3db.json
    validation_target = Target("mean_average_precision", 0.872475)
    test_target = Target("mean_average_precision", 0.87569)
    budget = Budget(step_hint=1500, max_allowed_runtime_s=1200, eval_period_s=1200, eval_period_steps=20)
    eval_batch_size = 64
    split_sizes = SplitSizes(train=5463, eval_train=250, validation=1171, test=1171)

    def _load(self, data_dir: str | None) -> store.PackedGraphs:
        path = tfds_data.folder(data_dir) / "b3db" / "packed_graphs.npz"
        try:
            return store.load(path, source=_SOURCE)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            _LOG.info("no featurised molecules at %s: computing them", path)
        except ValueError as error:
            _LOG.warning("%s", error)
        graphs = build()
        try:
            store.save(graphs, path, source=_SOURCE)
        except OSError as error:
            _LOG.warning("featurised molecules are kept in memory only: cannot write %s (%s)", path, error.strerror)
        return graphs


def build() -> store.PackedGraphs:
    """Featurises and splits the package's molecules, which takes seconds.

    Raises:
        FileNotFoundError, ValueError: the package is missing or damaged.
        ImportError: RDKit or ogb is missing.
    """
    table = packaged_file(module="B3DB", path="B3DB_classification.tsv", distribution="qc-b3db", sha256=SHA256)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    molecules = list(featurise([row["SMILES"] for row in rows]))
    kept = [(molecule, row) for molecule, row in zip(molecules, rows, strict=True) if molecule is not None]
    is_positive = np.array([row["BBB+/BBB-"] == "BBB-" for _, row in kept])
    split_codes = np.empty(len(kept), np.uint8)
    sizes = B3dbWorkload.split_sizes
    parts = stratified_split(is_positive, validation=sizes.validation, test=sizes.test, seed=_SPLIT_SEED)
    for code, indices in enumerate(parts):
        split_codes[indices] = code
    labels = is_positive[:, None].astype(np.float32)
    return store.pack([molecule for molecule, _ in kept], labels, split_codes)
