import json

import pytest

from tuning.errors import UserError
from tuning.official_logs import export


def write(folder, submission="kfac_reduce"):
    folder.mkdir(parents=True)
    (folder / "eval_measurements.csv").write_text("global_step,score\n10,1.5\n")
    (folder / "hparams.json").write_text("{}")
    (folder / "flags_0.json").write_text(json.dumps({"submission": submission}))
    (folder / "outcome.json").write_text("{}")


def test_trials_lie_where_the_scorer_looks_and_nothing_else_does(tmp_path):
    for study in (1, 2):
        write(tmp_path / "swept" / f"study_{study}" / "ogbg_jax" / "trial_1")
    write(tmp_path / "one" / "b3db_jax" / "trial_3", "nadamw")
    (tmp_path / "swept" / "study.db").write_text("a database")
    (tmp_path / "swept" / "study_1" / "ogbg_jax" / "trial_2").mkdir()  # not evaluated yet
    export([tmp_path / "swept", tmp_path / "one"], tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    files = ("eval_measurements.csv", "flags_0.json", "hparams.json")
    places = [f"kfac_reduce/study_{study}/ogbg_jax/trial_1" for study in (1, 2)] + ["nadamw/study_1/b3db_jax/trial_3"]
    assert found == {f"{place}/{name}" for place in places for name in files}


def test_a_place_for_two_trials_is_refused_before_anything_is_written(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / name / "ogbg_jax" / "trial_1")
    with pytest.raises(UserError, match="is taken.*second"):
        export([tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    with pytest.raises(UserError, match="no evaluated trial below"):
        export([tmp_path / "none"], tmp_path / "out")
    (tmp_path / "first" / "ogbg_jax" / "trial_1" / "flags_0.json").write_text("[]")
    with pytest.raises(UserError, match="does not name the submission"):
        export([tmp_path / "first"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
