import json
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")

from tuning.point_status import PointStatus
from tuning.sweep_view import View, counts, last_evaluation, ranking, summary


def _done(index, steps, metric=0.5, reason=None, seconds=10.0):
    result = {
        "steps_to_target": steps,
        "reason": reason,
        "best_validation_metric": metric,
        "submission_seconds": seconds,
    }
    return 1, PointStatus(index, {"learning_rate": index / 10}, "done", 0, result)


STATUS = [
    _done(1, 40),
    _done(2, None, metric=0.3, reason="budget", seconds=20.0),
    _done(3, 20),
    _done(4, None, metric=0.4, reason="pruned"),
    _done(5, None, metric=None, reason="crashed", seconds=None),
    (1, PointStatus(6, {"learning_rate": 0.6}, "running", 1, None)),
    (1, PointStatus(7, {"learning_rate": 0.7}, "waiting", 0, None)),
]


def test_ranking_is_by_steps_then_by_the_best_metric():
    assert [row["trial"] for row in ranking(STATUS)] == [3, 1, 4, 2, 5]


def test_summary_counts_every_point_once():
    found = summary(STATUS)
    assert (found["points"], found["done"], found["running"], found["waiting"]) == (7, 5, 1, 1)
    assert (found["hit"], found["budget"], found["pruned"], found["crashed"], found["diverged"]) == (2, 1, 1, 1, 0)
    assert found["best"]["trial"] == 3 and found["mean_trial_seconds"] == 12.5
    assert summary(STATUS[5:])["best"] is None and summary(STATUS[5:])["mean_trial_seconds"] is None


def test_a_running_trial_is_shown_by_its_last_evaluation(tmp_path):
    assert last_evaluation(tmp_path, "validation/score") == "started"
    (tmp_path / "eval_measurements.csv").write_text("global_step,validation/score\n10,0.25\n20,0.5\n")
    assert last_evaluation(tmp_path, "validation/score") == "step 20, validation/score 0.5000"
    (tmp_path / "eval_measurements.csv").write_text("global_step,validation/score\n10,0.25\n20")
    assert last_evaluation(tmp_path, "validation/score") == "started"


def test_a_line_says_how_far_it_is_and_what_is_best():
    assert counts(STATUS) == (
        "5/7 done, 1 running, 1 waiting, 2 hit, 1 budget, 1 pruned, 1 crashed; best 20 steps (trial 3)"
    )
    assert counts(STATUS[1:2]) == "1/1 done, 0 hit, 1 budget; best 0.3000 (trial 2)"
    assert counts(STATUS[5:]) == "0/2 done, 1 running, 1 waiting, 0 hit"


def test_programs_are_shown_objects_on_lines(tmp_path, capsys):
    place = tmp_path / "trial_6"
    place.mkdir()
    (place / "eval_measurements.csv").write_text("global_step,validation/score\n10,0.25\n")
    request = SimpleNamespace(trial_dir=lambda study, index: tmp_path / f"trial_{index}")
    sweep = SimpleNamespace(
        status=lambda: STATUS, request=request, workload=SimpleNamespace(target_metric_name="score")
    )
    with View(as_json=True) as show:
        show(sweep, 2)
        show(sweep, 2)  # within ten seconds
        show(sweep, 0)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["trials"] == [{"study": 1, "trial": 6, "at": "step 10, validation/score 0.2500"}]
    assert first["seconds_left"] == 2 * 12.5 / 2 and last["seconds_left"] is None
    assert first["summary"] == summary(STATUS) and (first["workers"], last["workers"]) == (2, 0)
