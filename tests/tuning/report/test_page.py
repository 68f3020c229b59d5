"""The page and the files beside it."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from tests.tuning.report.folders import write_comparison, write_trial
from tuning.report import page
from tuning.report.protocols import Cost


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    page.write([write_comparison(folder / "comparison")], folder / "out", ["sgd"])
    return folder / "out"


def test_the_files(report):
    names = {path.name for path in report.iterdir()}
    figures = ("curves_digits", "points_digits", "seconds_digits", "performance_profile")
    assert names == {"index.html", "summary.csv", "summary.json", "table.md", "table.tex"} | {
        f"{name}.{ending}" for name in figures for ending in ("png", "svg")
    }
    for name in figures:
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.fromstring((report / f"{name}.svg").read_text()).tag.endswith("svg")
    assert json.loads((report / "summary.json").read_text())["workloads"][0]["reference"] == "sgd"


def test_the_answer_comes_first(report):
    html = (report / "index.html").read_text()
    first = re.search(r'<p class="verdict">(.*?)</p>', html, re.DOTALL)[1].replace("&#39;", "'")
    assert first.startswith("digits: kfac needs the fewest steps to accuracy 0.8, 30: 0.43 (")
    assert "of sgd's, 0.57 (" in first and "of its seconds, 0.43 (" in first and first.endswith("training seconds.")
    assert html.index('class="verdict"') < html.index("<table")


@pytest.mark.parametrize(
    ("hits", "told"),
    [
        (
            {"aaa": 3, "nadamw": 3, "sgd": 5},
            "aaa and nadamw are level: each needs the fewest steps to accuracy 0.8, 30; nadamw is the reference. "
            "nadamw needs the fewest seconds, 1.00.",
        ),
        (
            {"a": 3, "b": 3, "c": 3, "nadamw": 6},
            "a, b and c are level: each needs the fewest steps to accuracy 0.8, 30: 0.50 of nadamw's. "
            "c needs the fewest seconds, 0.67.",
        ),
        ({"a": 3, "b": 3}, "a and b are level: each needs the fewest steps to accuracy 0.8, 30."),
        ({"a": 3, "nadamw": 2}, "nadamw needs the fewest steps to accuracy 0.8, 20; it is the reference."),
    ],
)
def test_submissions_that_are_level(tmp_path, hits, told):
    """Each needs fewer seconds a step than the one before."""
    for number, (name, hit) in enumerate(hits.items()):
        values = [0.1] * (hit - 1) + [0.9]
        place = tmp_path / name / "digits_jax" / "trial_1"
        write_trial(place, values, point={}, seconds_a_step=0.6 - 0.1 * number, outcome={"submission": name})
    (comparison,) = page.summarise(page.read([tmp_path]), ["nadamw"]).comparisons
    assert page.verdict(comparison, Cost.STEPS) == f"digits: {told}"


def test_the_page_needs_nothing_else(report):
    html = (report / "index.html").read_text()
    assert not re.search(r'(src|href)="https?://|@import|url\("?http', html)
    assert html.count("<svg") == 4 and "<img" not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for used in set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)):
        assert used in ids


def test_ink_is_the_pages(report):
    html = (report / "index.html").read_text()
    assert "currentColor" in html and page.figures.INK not in html
    assert "prefers-color-scheme: dark" in html


def test_no_official_score_is_claimed(report):
    assert "This is not an official AlgoPerf score: of the 8 base workloads" in (report / "index.html").read_text()


def test_a_part_of_the_eight_workloads(tmp_path):
    """Alone on ogbg: 1 of the workloads present, 1 / 8 of the official denominator."""
    write_trial(tmp_path / "kfac" / "ogbg_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    summary = page.write([tmp_path / "kfac"], tmp_path / "out", ["sgd"])
    html = (tmp_path / "out" / "index.html").read_text()
    assert summary.score("kfac", Cost.SECONDS) == 1 and 'data-value="0.125"' in html and "1 is present" in html


def test_what_is_wrong_is_on_the_page_and_the_rest_is_shown(tmp_path):
    write_trial(tmp_path / "x" / "digits_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    place = write_trial(tmp_path / "x" / "digits_jax" / "trial_2", [0.5], point={}, outcome={"submission": "<b>"})
    (place / "eval_measurements.csv").write_text("global_step\n1\n")
    page.write([tmp_path / "x"], tmp_path / "out", ["sgd"])
    html = (tmp_path / "out" / "index.html").read_text()
    assert "kfac needs the fewest steps" in html and "<b>" not in html and "&lt;b&gt;" in html
    assert "eval_measurements.csv</code> has no column accumulated_submission_time" in html


def test_nothing_to_report_on(tmp_path):
    (tmp_path / "empty").mkdir()
    page.write([tmp_path / "empty"], tmp_path / "out", ["sgd"])
    html = (tmp_path / "out" / "index.html").read_text()
    assert "There is no trial to report on." in html and "holds no trial folder" in html


@pytest.mark.parametrize(("best", "n_axes"), [(0.9, 2), (0.5, 1)])
def test_colours_are_explained_where_there_are_any(tmp_path, best, n_axes):
    """Points that all missed are grey crosses: a scale of steps beside them would be made up."""
    for index in (1, 2):
        write_trial(tmp_path / "digits_jax" / f"trial_{index}", [best], point={"learning_rate": 0.1 * index})
    (points,) = [f for f in page.figures.figures(page.summarise(page.read([tmp_path]), ["sgd"])) if "points" in f.name]
    assert len(points.draw().axes) == n_axes


def test_a_bar_ends_at_the_hit_and_a_step_counts_if_it_was_made(tmp_path):
    """0.1 s a step: hits at 20 steps, one trained on to 50, a miss out of time after 30, and one that diverged."""
    cases = [([0.1, 0.9], None), ([0.1, 0.9, 0.9, 0.9, 0.9], None), ([0.1] * 3, "budget"), ([0.1] * 4, "diverged")]
    for seed, (values, reason) in enumerate(cases):
        place = tmp_path / "kfac" / f"study_{seed + 1}" / "digits_jax" / "trial_1"
        write_trial(place, values, point={}, seed=seed, outcome={"submission": "kfac", "reason": reason})
    (bars,) = [f for f in page.figures.figures(page.summarise(page.read([tmp_path]), ["sgd"])) if "seconds" in f.name]
    (axes,) = bars.draw().axes
    assert [text.get_text() for text in axes.texts] == ["100.0 ms a step"]
    widths = {bar.get_label(): bar[0].get_width() for bar in axes.containers}
    mean = (2 + 2 + 3) / 3  # evaluations until then, of 0.5 s, and as many logs, of 0.25 s
    assert widths["evaluation (off the clock)"] == pytest.approx(0.5 * mean)
    assert widths["logging (off the clock)"] == pytest.approx(0.25 * mean)


def test_a_workload_without_a_target(tmp_path):
    write_trial(tmp_path / "x" / "wrn_jax" / "trial_1", [0.9], point={"a": 1.0}, target=None)
    page.write([tmp_path / "x"], tmp_path / "out", ["sgd"])
    assert "wrn has no target." in (tmp_path / "out" / "index.html").read_text()


def damaged(folder, file, **changes):
    """Two submissions of two trials each, the first one's first with `changes` in this file, or with no content."""
    for name, hit in (("bad", 2), ("good", 3)):
        for trial in (1, 2):
            place = folder / name / "digits_jax" / f"trial_{trial}"
            values = [0.1] * (hit - 1) + [0.9]
            point = {"scaling": [False, "half"][trial - 1]}
            write_trial(place, values, point=point, outcome={"submission": name}, steps=0 if name == "bad" else 10)
    broken = folder / "bad" / "digits_jax" / "trial_1" / file
    content = json.loads(broken.read_text()) | changes
    broken.write_text(json.dumps(content) if changes else "")
    return str(broken)


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        (
            "outcome.json",
            {},
            "cannot be read: Expecting value: line 1 column 1 (char 0); restore it, or remove it and run",
        ),
        ("outcome.json", {"target_value": "0.8"}, 'target_value is "0.8", which is no number'),
        ("outcome.json", {"hyperparameters": [1, 2]}, "hyperparameters is [1, 2], which is no object"),
        ("outcome.json", {"workload": 7}, "workload is 7, which is no text"),
        ("outcome.json", {"step_budget": 10**400}, "which is no whole number"),
        ("outcome.json", {"environment": "here"}, 'environment is "here", which is no object'),
        ("meta_data_0.json", {"workload.step_hint": [3]}, "workload.step_hint is [3], which is no number"),
        ("hparams.json", {}, "cannot be read"),
    ],
)
def test_one_bad_file_is_named_and_all_the_rest_is_shown(tmp_path, file, changes, told):
    """With a target reached before the first step, and a dimension of mixed types, in the figures too."""
    broken = damaged(tmp_path / "in", file, **changes)
    summary = page.summarise(page.read([tmp_path / "in"]), ["good"])
    assert any(told in problem.what for problem in summary.problems if problem.file == broken)
    results = {result.submission: result for c in summary.comparisons for result in c.results}
    assert {result.counts.get("hit") for result in results.values()} <= {1, 2} and results["good"].counts == {"hit": 2}
    for figure in page.figures.figures(summary):
        with page.figures.matplotlib.rc_context(page.figures.STYLE):
            figure.draw()
    assert page.html(summary, [])
