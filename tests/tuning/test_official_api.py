"""Submissions written for the official harness, which import its modules and lie as its baselines do."""

import jax
import numpy as np

from tuning.submission import load
from workloads.spec import ForwardPassMode

OFFICIAL = """
import jax
from algoperf import jax_sharding_utils, spec
from algoperf.spec import TrainingCompleteError

def init_optimizer_state(workload: spec.Workload, model_params: spec.ParameterContainer, model_state, h, rng):
    return jax_sharding_utils.replicate({"step": jax.numpy.zeros([])}), None

def update_params(**call):
    raise TrainingCompleteError

def get_batch_size(workload_name):
    return 8

def data_selection(*call) -> spec.Tensor:
    return jax_sharding_utils.shard_along_batch_dim(call[1])

MODE = spec.ForwardPassMode.TRAIN
"""


def test_a_submission_finds_the_official_modules(tmp_path):
    folder = tmp_path / "official_baseline" / "jax"
    folder.mkdir(parents=True)
    (folder / "submission.py").write_text(OFFICIAL)
    loaded = load(folder)
    # Another enum's TRAIN would be equal to none of the workloads' modes.
    assert loaded.update_params.__globals__["MODE"] is ForwardPassMode.TRAIN
    state, _ = loaded.init_optimizer_state(None, None, None, None, None)
    assert state["step"].sharding.is_fully_replicated
    batch = loaded.data_selection(None, {"inputs": np.zeros((8, 2))})
    assert len(batch["inputs"].sharding.device_set) == len(jax.devices())


def test_a_search_space_is_found_where_official_baselines_have_it(tmp_path):
    folder = tmp_path / "baseline" / "jax"
    folder.mkdir(parents=True)
    (folder / "submission.py").write_text(OFFICIAL)
    assert load(folder).search_space_file == folder / "tuning_search_space.json"
    above = tmp_path / "baseline" / "tuning_search_space.json"
    above.write_text("{}")
    assert load(folder).search_space_file == above
    (folder / above.name).write_text("{}")
    assert load(folder).search_space_file == folder / above.name
