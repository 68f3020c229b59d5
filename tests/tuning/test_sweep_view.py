import json
import re
from types import SimpleNamespace

import pytest

from tuning.point_status import PointStatus
from tuning.report.protocols import Cost
from tuning.sweep_view import View, counts, last_evaluation, ranking, show, summary


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


def _hit(index, steps, seconds, training_seconds):
    study, point = _done(index, steps)
    point.result.update(seconds_to_target=seconds, training_seconds_to_target=training_seconds)
    return study, point


HITS = [_hit(1, 30, 9.0, 1.0), _hit(2, 20, 8.0, 3.0), _hit(3, 25, 7.0, 2.0), STATUS[1]]


@pytest.mark.parametrize(
    ("rank_by", "order", "best"),
    [
        (Cost.STEPS, [2, 3, 1, 2], "best 20 steps (trial 2)"),
        (Cost.SECONDS, [3, 2, 1, 2], "best 7 seconds (trial 3)"),
        (Cost.TRAINING_SECONDS, [1, 3, 2, 2], "best 1 training seconds (trial 1)"),
    ],
)
def test_either_clock_ranks_and_both_are_shown(capsys, monkeypatch, rank_by, order, best):
    monkeypatch.setenv("COLUMNS", "200")
    assert [row["trial"] for row in ranking(HITS, rank_by)] == order
    show(HITS, rank_by=rank_by)
    shown = capsys.readouterr().out
    assert best in shown
    head, *rows = [
        [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]
        for line in shown.splitlines()
        if "┃" in line or "│" in line
    ]
    assert head[3:6] == ["steps to target", "seconds to target", "training seconds to target"]
    assert [int(row[1]) for row in rows] == order
    assert ["30", "9.00", "1.00"] in [row[3:6] for row in rows] and rows[-1][3:6] == ["-"] * 3
    show(HITS, as_json=True, rank_by=rank_by)
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["best"] == found["ranking"][0] and found["ranking"][0]["trial"] == order[0]


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
