"""Packed trial folders are read as the folders are."""

import io
import json
import lzma
import shutil
import tarfile

import pytest

from tests.tuning.report.folders import write_comparison, write_trial
from tuning.errors import UserError
from tuning.report import archive, reading, tables
from tuning.report.summary import summarise


def test_an_archive_gives_the_tables_of_its_folders(tmp_path):
    folder = write_comparison(tmp_path / "comparison")
    packed = tmp_path / "trials.tar.xz"
    assert archive.pack([folder], packed) == 12
    written, read_again = (summarise(reading.read([place]), ["sgd"]) for place in (folder, packed))
    assert not read_again.problems and tables.as_csv(read_again) == tables.as_csv(written)
    first = packed.read_bytes()
    archive.pack([folder], packed)
    assert packed.read_bytes() == first
    assert len(first) < 5_000


def test_an_archive_does_not_tell_the_machines_folders(tmp_path):
    folder = write_comparison(tmp_path / "comparison")
    trial = folder / "digits" / "kfac" / "search" / "trial_2"
    outcome = json.loads((trial / "outcome.json").read_text())
    places = {"data_dir": "/home/someone/data", "submission_path": "/home/someone/submissions/kfac/submission.py"}
    changes = {name: ["/home/someone/else", place] for name, place in places.items()} | {"step_budget": [10, 100]}
    places |= {"resumptions": [{"global_step": 10, "changes": changes}]}
    (trial / "outcome.json").write_text(json.dumps(outcome | places))
    archive.pack([folder], tmp_path / "trials.tar.xz")
    with tarfile.open(tmp_path / "trials.tar.xz") as packed:
        contents = [packed.extractfile(member).read().decode() for member in packed.getmembers()]
    assert not any("someone" in content for content in contents)
    assert any('"submission_path":"kfac/submission.py"' in content for content in contents)
    assert any('"resumptions":[{"global_step":10,"changes":{"step_budget":[10,100]}}]' in each for each in contents)


def test_a_metric_is_not_rounded_over_its_target(tmp_path):
    """Six digits of it would reach 0.8."""
    folder = write_comparison(tmp_path / "comparison")
    file = folder / "digits" / "kfac" / "search" / "trial_2" / "eval_measurements.csv"
    file.write_text(file.read_text().replace("0.81", "0.7999999999"))
    archive.pack([folder], tmp_path / "trials.tar.xz")
    (trial,) = [t for t in reading.read([tmp_path / "trials.tar.xz"]).trials if 0.7999999999 in t.values]
    assert list(trial.values) == [0.5, 0.7999999999] and trial.hit_at(0.8) is None


def test_what_cannot_be_packed_is_named(tmp_path):
    folder = write_comparison(tmp_path / "comparison")
    file = folder / "digits" / "kfac" / "search" / "trial_2" / "outcome.json"
    file.write_text("{")
    with pytest.raises(UserError, match="search/trial_2/outcome.json cannot be packed .*; repair it"):
        archive.pack([folder], tmp_path / "trials.tar.xz")
    assert not (tmp_path / "trials.tar.xz").exists()


@pytest.mark.parametrize("content", ["null", "[]", "7", "[" * 100_000])
def test_a_file_that_is_no_object_is_named(tmp_path, content):
    place = write_trial(tmp_path / "first" / "digits_jax" / "trial_1", [0.9], point={})
    (place / "hparams.json").write_text(content)
    with pytest.raises(UserError, match="hparams.json cannot be packed .*; repair it"):
        archive.pack([tmp_path / "first"], tmp_path / "trials.tar.xz")


def test_trials_of_one_name_in_the_archive_are_refused(tmp_path):
    for name, values in (("alice", [0.9]), ("bob", [0.1, 0.9])):
        write_trial(tmp_path / name / "first" / "digits_jax" / "trial_1", values, point={})
    with pytest.raises(UserError, match="alice/first.* and .*bob/first.* would both be first/digits_jax/trial_1 in"):
        archive.pack([tmp_path / "alice" / "first", tmp_path / "bob" / "first"], tmp_path / "trials.tar.xz")
    assert archive.pack([tmp_path / "alice", tmp_path / "bob"], tmp_path / "trials.tar.xz") == 2
    assert len(reading.read([tmp_path / "trials.tar.xz"]).trials) == 2


def test_a_folder_without_trials_is_refused_beside_others(tmp_path):
    write_trial(tmp_path / "first" / "digits_jax" / "trial_1", [0.9], point={})
    for name, message in (("frist", "frist cannot be read: No such file"), ("first/..", "counted once; correct")):
        with pytest.raises(UserError, match=message):
            archive.pack([tmp_path / "first", tmp_path / name], tmp_path / "trials.tar.xz")
    assert not (tmp_path / "trials.tar.xz").exists()


def test_what_the_flags_alone_say_is_packed(tmp_path):
    for name in ("external", "self"):
        place = write_trial(tmp_path / "logs" / name / "ogbg_jax" / "trial_1", [0.9], point={})
        flags = {"submission_path": "x/kfac/submission.py", "tuning_ruleset": name, "step_budget": 70}
        (place / "flags_0.json").write_text(json.dumps(flags))
    archive.pack([tmp_path / "logs"], tmp_path / "trials.tar.xz")
    for root in (tmp_path / "logs", tmp_path / "trials.tar.xz"):
        records = reading.read([root])
        found = {(trial.submission, trial.budget) for trial in records.trials}
        assert found == {("kfac", 70), ("kfac (self-tuning)", 70)}
        assert not records.problems


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_trial_and_its_copy_count_once(tmp_path, is_archive):
    """The archive has rounded times. One trial has not been evaluated."""
    first, again = write_comparison(tmp_path / "first"), tmp_path / ("again.tar.xz" if is_archive else "again")
    (first / "digits" / "sgd" / "search" / "trial_3" / "eval_measurements.csv").unlink()
    for file in first.rglob("eval_measurements.csv"):
        file.write_text(file.read_text().replace(",0.25,", ",0.25000001,"))
    archive.pack([first], again) if is_archive else shutil.copytree(first, again)
    once, twice = (summarise(reading.read(roots), ["sgd"]) for roots in ([first], [first, again]))
    assert tables.as_csv(twice) == tables.as_csv(once)
    told = [problem.what for problem in twice.problems if problem.file == str(again)]
    assert told == ["holds copies of trials that are read already (12); counted once"]


def test_equal_records_of_two_runs_that_have_just_begun_are_no_copies(tmp_path):
    for name in ("first", "second"):
        place = write_trial(tmp_path / name / "digits_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
        (place / "eval_measurements.csv").unlink()
    records = reading.read([tmp_path / "first", tmp_path / "second"])
    assert {trial.submission for trial in records.trials} == {"kfac (first)", "kfac (second)"}


def test_a_broken_archive_is_named(tmp_path):
    (tmp_path / "trials.tar.xz").write_bytes(b"no archive")
    records = reading.read([tmp_path / "trials.tar.xz"])
    assert "is no archive of trial folders that can be read" in records.problems[0].what


@pytest.mark.parametrize("damage", ["cut short", "a byte", "a header"])
def test_nothing_of_a_damaged_archive_is_used(tmp_path, damage):
    """A header is damaged within an archive whose checksum is right."""
    archive.pack([write_comparison(tmp_path / "comparison")], tmp_path / "trials.tar.xz")
    content = bytearray((tmp_path / "trials.tar.xz").read_bytes())
    if damage == "cut short":
        del content[-100:]
    elif damage == "a byte":
        content[len(content) // 2] ^= 1
    else:
        tar = bytearray(lzma.decompress(content))
        with tarfile.open(fileobj=io.BytesIO(tar)) as packed:
            tar[packed.getmembers()[20].offset] ^= 1
        content = lzma.compress(tar)
    (tmp_path / "trials.tar.xz").write_bytes(content)
    records = reading.read([tmp_path / "trials.tar.xz"])
    assert not records.trials and records.problems[0].file == str(tmp_path / "trials.tar.xz")
    assert "is no archive of trial folders that can be read: " in records.problems[0].what


def test_equal_members_of_an_archive_are_told(tmp_path):
    with tarfile.open(tmp_path / "trials.tar.xz", "w:xz") as packed:
        for name, values in (("alice", [0.9]), ("bob", [0.1, 0.9])):
            place = write_trial(tmp_path / name / "first" / "digits_jax" / "trial_1", values, point={})
            packed.add(place, "first/digits_jax/trial_1")
    records = reading.read([tmp_path / "trials.tar.xz"])
    assert len(records.trials) == 1 and "holds 3 files twice, and only the last" in records.problems[0].what
