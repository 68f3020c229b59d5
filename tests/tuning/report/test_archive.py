"""Packed trial folders are read as the folders are."""

import json
import tarfile

import pytest

from tests.tuning.report.folders import write_comparison
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
    (trial / "outcome.json").write_text(json.dumps(outcome | places))
    archive.pack([folder], tmp_path / "trials.tar.xz")
    with tarfile.open(tmp_path / "trials.tar.xz") as packed:
        contents = [packed.extractfile(member).read().decode() for member in packed.getmembers()]
    assert not any("someone" in content for content in contents)
    assert any('"submission_path":"kfac/submission.py"' in content for content in contents)


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


def test_a_broken_archive_is_named(tmp_path):
    (tmp_path / "trials.tar.xz").write_bytes(b"no archive")
    records = reading.read([tmp_path / "trials.tar.xz"])
    assert "is no archive of trial folders that can be read" in records.problems[0].what
