"""Where a trial's folder lies: the layouts of this project and of the official harness, and names that mean nothing."""

from pathlib import Path, PurePath

import pytest

from tests.tuning.report.folders import write_trial
from tuning.report import location, reading
from tuning.report.files import TrialFolder
from tuning.report.location import Location, Phase


def located(path: str, root: str = "in") -> tuple:
    place = Location.of(TrialFolder(PurePath(path), PurePath(root), (), lambda name: ""))
    return place.workload, place.study, place.phase, place.experiment.relative_to(Path.cwd()).as_posix()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("in/kfac/ogbg_jax/trial_1", ("ogbg", 1, Phase.SEARCH, "in/kfac")),
        ("in/kfac/study_3/ogbg_pytorch/trial_1", ("ogbg", 3, Phase.SEARCH, "in/kfac")),
        ("in/kfac/confirm/b3db_jax/trial_1", ("b3db", 1, Phase.CONFIRM, "in/kfac")),
        ("in/b3db/kfac/repeat/study_2/b3db_jax/trial_1", ("b3db", 2, Phase.REPEAT, "in/b3db/kfac")),
        ("in/b3db/nadamw/search/trial_1", (None, 1, Phase.SEARCH, "in/b3db/nadamw")),
        ("in/b3db/nadamw/repeat/trial_2_seed_1", (None, 1, Phase.REPEAT, "in/b3db/nadamw")),
        ("in/runs/today/trial_1", (None, 1, Phase.SEARCH, "in")),
    ],
)
def test_the_layouts(path, expected):
    assert located(path) == expected


@pytest.mark.parametrize("above", ["repeat", "target_reference", "study_7", "other_jax", "confirm/study_7"])
def test_names_above_an_experiment_mean_nothing(above):
    assert located(f"in/{above}/kfac/digits_jax/trial_1") == ("digits", 1, Phase.SEARCH, f"in/{above}/kfac")
    assert located(f"{above}/kfac/digits_jax/trial_1", above) == ("digits", 1, Phase.SEARCH, f"{above}/kfac")
    assert located(f"in/{above}/kfac/search/trial_1") == (None, 1, Phase.SEARCH, f"in/{above}/kfac")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["x/before", "x/after"], ["before", "after"]),
        (["alice/first", "bob/first"], ["alice/first", "bob/first"]),
        (["alice/first", "bob/first", "bob/second"], ["alice/first", "bob/first", "second"]),
        (["a/x/first", "b/x/first", "c/first"], ["a/x/first", "b/x/first", "c/first"]),
        (["/a/first", "/b/a/first"], ["/a/first", "b/a/first"]),
        (["/digits/first", "/first"], ["digits/first", "/first"]),
        (["/v05.tar.xz/v05/baseline", "/v06.tar.xz/v06/baseline"], ["v05/baseline", "v06/baseline"]),
    ],
)
def test_the_shortest_names_that_differ(folders, expected):
    names = location.distinct_names([("digits", folder) for folder in folders])
    assert [names["digits", folder] for folder in folders] == expected


def test_the_workloads_folder_is_no_part_of_the_name():
    """Of two evidence runs, so that a submission has one score over the workloads of each."""
    keys = [(workload, f"{run}/{workload}/kfac") for run in ("cpu", "gpu") for workload in ("b3db", "mnist_vit")]
    assert [location.distinct_names(keys)[key] for key in keys] == ["cpu/kfac"] * 2 + ["gpu/kfac"] * 2


@pytest.mark.parametrize("root", [".", "study_2/digits_jax", "../../kfac", "../repeat"])
def test_a_place_does_not_depend_on_how_it_is_spelled(tmp_path, monkeypatch, root):
    write_trial(tmp_path / "kfac" / "repeat" / "study_2" / "digits_jax" / "trial_1", [0.9], point={})
    monkeypatch.chdir(tmp_path / "kfac" / "repeat")
    for spelled in (Path(root), tmp_path / "kfac" / "repeat" / root):
        (trial,) = reading.read([spelled]).trials
        assert (trial.phase, trial.study, trial.submission) == (Phase.REPEAT, 2, "kfac")


def test_a_relative_folder_has_a_name(tmp_path, monkeypatch):
    write_trial(tmp_path / "baseline" / "ogbg_jax" / "trial_1", [0.9], point={})
    monkeypatch.chdir(tmp_path / "baseline")
    (trial,) = reading.read([Path("ogbg_jax")]).trials
    assert trial.submission == "baseline"
