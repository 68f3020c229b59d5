import logging

import jax.numpy as jnp
import numpy as np
import pytest

from tuning.checkpoint import Checkpoints
from tuning.errors import UserError

IDENTITY = {"workload": "b3db", "submission": "nadamw", "hyperparameters": {"learning_rate": 0.1}, "rng_seed": 0}


def _arrays(value):
    return {"w": jnp.full((3, 2), value)}, None, (jnp.int32(value), {"m": jnp.full(4, value, jnp.bfloat16)})


def _saved(folder, steps, keep=2):
    checkpoints = Checkpoints(folder, IDENTITY, keep=keep)
    for step in steps:
        checkpoints.save(step, _arrays(step), {"global_step": step, "rows": [{"loss": 0.5}]})
    checkpoints.close()


def test_the_newest_comes_back_as_it_was_and_old_ones_go(tmp_path):
    _saved(tmp_path / "c", [10, 20, 30])
    arrays, record = Checkpoints(tmp_path / "c", IDENTITY).newest(_arrays(0))
    assert record == {"global_step": 30, "rows": [{"loss": 0.5}]}
    (params, model_state, (count, moments)), like = arrays, _arrays(30)
    assert model_state is None and count == 30 and count.dtype == np.int32
    np.testing.assert_array_equal(params["w"], like[0]["w"])
    assert moments["m"].dtype == jnp.bfloat16 and float(moments["m"][0]) == 30
    assert sorted(path.name for path in (tmp_path / "c").iterdir() if path.name.isdigit()) == ["20", "30"]


def test_without_checkpoints_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "c", IDENTITY).newest(_arrays(0)) is None
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("part", ["arrays", "record"])
def test_one_cut_short_falls_back_to_the_one_before_and_says_so(tmp_path, caplog, part):
    _saved(tmp_path / "c", [10, 20])
    for file in (tmp_path / "c" / "20" / part).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        _, record = Checkpoints(tmp_path / "c", IDENTITY).newest(_arrays(0))
    assert record["global_step"] == 10 and "checkpoint 20" in caplog.text and "left out" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"), [("workload", "mnist_vit"), ("submission", "soap"), ("hyperparameters", {"learning_rate": 0.2})]
)
def test_another_trials_checkpoint_is_refused(tmp_path, key, value):
    _saved(tmp_path / "c", [10])
    with pytest.raises(UserError, match=f"has {key} .*, not ") as error:
        Checkpoints(tmp_path / "c", IDENTITY | {key: value}).newest(_arrays(0))
    assert "\n" not in str(error.value) and "--overwrite" in str(error.value)


def test_arrays_of_another_version_are_refused_and_kept(tmp_path):
    """As damage they would be deleted."""
    _saved(tmp_path / "c", [10, 20])
    params, model_state, (count, moments) = _arrays(0)
    for other in (
        (params, model_state, (count, {"n": moments["m"]})),
        (params, model_state, (count, {"m": jnp.zeros(5, jnp.bfloat16)})),
    ):
        with pytest.raises(UserError, match="holds other arrays .* differ, as .*--overwrite") as error:
            Checkpoints(tmp_path / "c", IDENTITY).newest(other)
        assert "\n" not in str(error.value)
    assert Checkpoints(tmp_path / "c", IDENTITY).newest(_arrays(0))[1]["global_step"] == 20
