import errno
import logging
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from fake_trial import FakeWorkload, fake_submission

from tuning.checkpoint import Checkpoints
from tuning.claim import Claim
from tuning.description import describe
from tuning.errors import MachineFault, UserError

ENVIRONMENT = {"n_devices": 1, "n_cpu_cores": 2}


def _arrays(value):
    return {"w": jnp.full((3, 2), value)}, None, (jnp.int32(value), {"m": jnp.full(4, value, jnp.bfloat16)})


def _description(folder):
    own = dict(rng_seed=0, trial_index=1, data_dir=str(folder))
    return describe("fake", FakeWorkload(), fake_submission(), {"learning_rate": 0.1}, **own)


@pytest.fixture
def claim(tmp_path):
    with Claim.take(tmp_path / "t") as claim:
        yield claim


@pytest.fixture
def checkpoints(claim):
    return lambda keep=2, environment=ENVIRONMENT: Checkpoints(
        claim, _description(claim.folder), environment, keep=keep
    )


def _save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, _arrays(step), {"global_step": step, "rows": [{"loss": 0.5}]})
    checkpoints.wait()


def test_the_newest_comes_back_as_it_was_and_old_ones_go(checkpoints, claim):
    _save(checkpoints(), 10, 20, 100)
    found = checkpoints().newest(_arrays(0))
    assert (found.record, found.changes) == ({"global_step": 100, "rows": [{"loss": 0.5}]}, {})
    (params, model_state, (count, moments)), like = found.arrays, _arrays(100)
    assert model_state is None and count == 100 and count.dtype == np.int32 and count.shape == ()
    np.testing.assert_array_equal(params["w"], like[0]["w"])
    assert moments["m"].dtype == jnp.bfloat16 and float(moments["m"][0]) == 100
    names = sorted(path.name for path in (claim.folder / "checkpoints").iterdir())
    assert names == ["100.checkpoint", "20.checkpoint"]


def test_without_checkpoints_there_is_none(checkpoints, claim):
    assert checkpoints().newest(_arrays(0)) is None
    assert not (claim.folder / "checkpoints").exists()


def test_every_flipped_bit_is_found_and_the_one_before_taken(checkpoints, claim, caplog):
    """One bit in each of many bytes, over head, description, record and arrays."""
    newest = claim.folder / "checkpoints" / "20.checkpoint"
    _save(checkpoints(), 10, 20)
    content = newest.read_bytes()
    places = range(0, len(content), 13)
    assert len(places) >= 60
    for place in places:
        newest.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert checkpoints().newest(_arrays(0)).record["global_step"] == 10, place
        (line,) = caplog.messages
        assert line.startswith("checkpoint 20 in") and "left out" in line and not newest.exists()


@pytest.mark.parametrize("left", [0, 1, 64, 65, 300])
def test_one_cut_short_falls_back_to_the_one_before(checkpoints, claim, left):
    newest = claim.folder / "checkpoints" / "20.checkpoint"
    _save(checkpoints(), 10, 20)
    newest.write_bytes(newest.read_bytes()[:left])
    assert checkpoints().newest(_arrays(0)).record["global_step"] == 10


def _unreadable(file, kind, monkeypatch):
    if kind in ("a folder", "a link to nothing"):
        file.unlink()
        file.mkdir() if kind == "a folder" else file.symlink_to("nowhere")
        return
    number = {"no permission": errno.EACCES, "a bad disk": errno.EIO, "no files left": errno.EMFILE}[kind]
    read = Path.read_bytes

    def fail(path):
        if path == file:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)


@pytest.mark.parametrize("kind", ["a folder", "a link to nothing"])
def test_one_that_is_no_file_falls_back_to_the_one_before(checkpoints, claim, monkeypatch, caplog, kind):
    _save(checkpoints(), 10, 20)
    _unreadable(claim.folder / "checkpoints" / "20.checkpoint", kind, monkeypatch)
    assert checkpoints().newest(_arrays(0)).record["global_step"] == 10
    assert "is damaged and left out: it is no file: " in caplog.text
    assert [path.name for path in (claim.folder / "checkpoints").iterdir()] == ["10.checkpoint"]


@pytest.mark.parametrize("kind", ["no permission", "a bad disk", "no files left"])
def test_one_that_cannot_be_read_now_is_not_taken_for_damaged(checkpoints, claim, monkeypatch, kind):
    _save(checkpoints(), 10, 20)
    _unreadable(claim.folder / "checkpoints" / "20.checkpoint", kind, monkeypatch)
    with pytest.raises(MachineFault, match="cannot read the checkpoint .*20.checkpoint' .*run the command again"):
        checkpoints().newest(_arrays(0))
    assert len(list((claim.folder / "checkpoints").iterdir())) == 2


def test_a_trial_whose_checkpoints_are_all_damaged_does_not_start_anew(checkpoints, claim):
    _save(checkpoints(), 10, 20)
    files = sorted((claim.folder / "checkpoints").iterdir())
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint in .* is damaged: to train the trial from its beginning"):
        checkpoints().newest(_arrays(0))
    assert sorted((claim.folder / "checkpoints").iterdir()) == files


def test_arrays_of_another_version_are_refused_and_kept(checkpoints):
    """As damage they would be deleted."""
    _save(checkpoints(), 10, 20)
    params, model_state, (count, moments) = _arrays(0)
    for other in (
        (params, model_state, (count, {"n": moments["m"]})),
        (params, model_state, (count, {"m": jnp.zeros(5, jnp.bfloat16)})),
    ):
        with pytest.raises(UserError, match="holds other arrays .* differ, as .*remove that trial's folder") as error:
            checkpoints().newest(other)
        assert "\n" not in str(error.value)
    assert checkpoints().newest(_arrays(0)).record["global_step"] == 20


def test_files_of_another_format_are_refused(checkpoints, claim):
    (claim.folder / "checkpoints" / "30").mkdir(parents=True)
    with pytest.raises(UserError, match="holds '30', which this version .* cannot read"):
        checkpoints().newest(_arrays(0))


def test_files_that_other_programs_left_are_passed_over(checkpoints, claim):
    _save(checkpoints(), 10)
    for name in (".DS_Store", "._10.checkpoint", "10.checkpoint~", "notes.txt~"):
        (claim.folder / "checkpoints" / name).write_text("stray")
    assert checkpoints().newest(_arrays(0)).record["global_step"] == 10


def test_another_number_of_devices_or_cores_is_said_and_returned(checkpoints, caplog):
    _save(checkpoints(), 10)
    with caplog.at_level(logging.WARNING):
        found = checkpoints(environment={"n_devices": 4, "n_cpu_cores": 2}).newest(_arrays(0))
    assert found.changes == {"environment.n_devices": [1, 4]}
    assert caplog.messages == ["going on with another n_devices: 4, it was 1"]
