"""The batch that a submission of this project trains with on each workload."""

from pathlib import Path

import pytest

import submissions
from tuning import submission
from workloads import registry

FOLDERS = sorted(file.parent for file in Path(submissions.__path__[0]).glob("*/tuning_search_space.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_workload_with_a_batch_size_of_its_own_is_trained_with_it(folder):
    """Whatever other workload's name begins its name: its target was set with this batch."""
    loaded, workloads = submission.load(folder), {name: registry.load(name) for name in registry.names()}
    own = {name: workload.training_batch_size for name, workload in workloads.items() if workload.training_batch_size}
    assert {name: loaded.training_batch_size(name, workloads[name]) for name in own} == own
    assert own.keys() >= {"b3db", "mnist_vit", "pydoc_lm"}
