"""Which times are scored: a study's best trial, or in an evidence run the timed repeats alone."""

import csv
import json
import math
import re

import pytest

from tests.tuning.report.folders import write_trial
from tuning.report import page
from tuning.report.protocols import Cost

# Submission -> phase -> evaluations to the target, 1 s each, by study; None for a miss. `waiting` has no repeat yet.
HITS = {
    "kfac": {"search": [1], "repeat": [4, 6, None]},
    "sgd": {"search": [5], "repeat": [3, 4, 3]},
    "sgd (target's own)": {"target_reference": [5, 4, 4]},
    "muon": {"search": [2], "repeat": [1, None, None]},
    "waiting": {"search": [2]},
}


def report_of(folder, *phases):
    """The summary of these phases' trials, and the folder of its page. 3 s of each hit of kfac are compilation."""
    for submission, by_phase in HITS.items():
        for phase in [phase for phase in by_phase if phase in phases]:
            for seed, hit in enumerate(by_phase[phase], start=1):
                place = folder / "in" / submission / phase / f"study_{seed}" / "digits_jax" / "trial_1"
                values = [0.1] * 10 if hit is None else [0.1] * (hit - 1) + [0.9]
                own = {"submission": submission.split()[0]}
                if submission == "kfac" and hit:
                    own["compile_seconds_to_target"] = 3.0
                write_trial(place, values, point={"learning_rate": 0.1}, outcome=own, seed=seed)
    return page.write([folder / "in"], folder / "out", ["sgd"]), folder / "out"


def cells(html, heading, submission):
    """Of this submission's row in the table below the heading."""
    row = html.split(heading)[1].split(f">{submission}</th>")[1].split("</tr>")[0]
    return re.findall(r">([^<]+)</td>", row)


@pytest.fixture
def evidence(tmp_path):
    return report_of(tmp_path, "search", "repeat", "target_reference")


def test_an_evidence_run_is_scored_by_its_timed_repeats(evidence):
    """Medians of 6, 3 and 4 s: kfac's search, with a hit after 1 s, does not count. muon's median is a miss."""
    summary, _ = evidence
    ratios = {"kfac": 2, "sgd": 1, "sgd (target's own)": 4 / 3, "muon": math.inf, "waiting": math.inf}
    of_seconds = {name: own["digits"] for name, own in summary.performance[Cost.SECONDS].items()}
    assert of_seconds == pytest.approx(ratios)
    for name, ratio in ratios.items():
        assert summary.score(name, Cost.SECONDS) == pytest.approx(max(0, 4 - ratio) / 3, abs=1 / 99)
    assert summary.performance[Cost.TRAINING_SECONDS]["kfac"]["digits"] == pytest.approx(1)
    assert summary.speed_ups["kfac"][1] == pytest.approx(3 / 6)


def test_these_are_the_tables_times(evidence):
    (comparison,) = evidence[0].comparisons
    results = {result.submission: result for result in comparison.results}
    for name in ("kfac", "sgd", "sgd (target's own)"):
        result = results[name]
        assert result.n_studies == 3 and result.study_medians == {cost: result.costs[cost].median for cost in Cost}
    assert results["muon"].costs[Cost.SECONDS].is_lower_bound and results["waiting"].n_studies == 0


def test_seconds_of_a_search_are_not_compared_with_timed_ones(evidence):
    """`waiting` has 2 s, and 20 steps, the fewest; the reference is one whose seconds are timed, if there is one."""
    _, out = evidence
    records = page.read([out.parent / "in"])
    for references, reference in ((["sgd", "waiting"], "sgd"), (["waiting"], "waiting")):
        (comparison,) = page.summarise(records, references).comparisons
        (waiting,) = [result for result in comparison.results if result.submission == "waiting"]
        assert comparison.reference == reference and waiting.costs.keys() == {Cost.STEPS}
        assert waiting.costs[Cost.STEPS].median == 20 and Cost.SECONDS not in comparison.ratios["waiting"]
    for rank_by in (Cost.SECONDS, Cost.TRAINING_SECONDS):
        (comparison,) = page.summarise(records, ["waiting"], rank_by).comparisons
        assert comparison.reference is None and comparison.results[-1].submission == "waiting"
        assert "waiting" not in page.verdict(comparison, rank_by)
    assert "| waiting | 1/1 | 20 | 0.67 | – | – | – | – |" in (out / "table.md").read_text()


def test_a_submission_whose_training_seconds_are_not_on_record_has_no_score_by_them(tmp_path):
    """`official` hits after 1 s, and its log has no compile seconds; `late` misses the target by both clocks."""
    for name, values, outcome in (("ours", [0.1, 0.9], {}), ("official", [0.9], None), ("late", [0.1] * 10, None)):
        write_trial(tmp_path / "in" / name / "digits_jax" / "trial_1", values, point={}, outcome=outcome)
    summary = page.write([tmp_path / "in"], tmp_path / "out", ["official"], rank_by=Cost.TRAINING_SECONDS)
    assert summary.performance[Cost.TRAINING_SECONDS] == {"ours": {"digits": 1}, "late": {"digits": math.inf}}
    assert summary.performance[Cost.SECONDS]["official"] == {"digits": 1}
    html = (tmp_path / "out" / "index.html").read_text()
    assert cells(html, ">Scored times<", "official")[3:] == ["1.0", "–", "–"]
    assert cells(html, ">Scored times<", "late")[3:] == ["miss", "miss", "–"]
    assert cells(html, ">Score<", "official") == ["0.0000", "1.0000", "–", "–", "–"]
    assert "official" not in (tmp_path / "out" / "performance_profile.svg").read_text()
    data = [(tmp_path / "out" / name).read_text() for name in ("summary.csv", "summary.json")]
    assert not any(re.search(r"\bnan\b", told, re.IGNORECASE) for told in (*data, html.split("<script>")[0]))


def test_without_any_training_seconds_there_is_nothing_to_compare(tmp_path):
    write_trial(tmp_path / "official" / "digits_jax" / "trial_1", [0.9], point={})
    (comparison,) = page.summarise(page.read([tmp_path]), ["sgd"], Cost.TRAINING_SECONDS).comparisons
    assert page.verdict(comparison, Cost.TRAINING_SECONDS) == "digits: there are no training seconds to compare."


def test_a_search_alone_is_scored_by_its_best_trials(tmp_path):
    summary, out = report_of(tmp_path, "search")
    of_seconds = {name: own["digits"] for name, own in summary.performance[Cost.SECONDS].items()}
    assert of_seconds == pytest.approx({"kfac": 1, "sgd": math.inf, "muon": 2, "waiting": 2})
    assert "The median over the timed repeats" not in (out / "index.html").read_text()


def test_the_report_says_which_times_it_scored(evidence):
    _, out = evidence
    html, scored = (out / "index.html").read_text(), "the median over the timed repeats"
    assert f"The performance profile and the scores are of {scored}." in html
    assert f"<figcaption>Performance profile of {scored}, by seconds, with compilation." in html
    assert f"times: {scored}; seconds, with compilation" in (out / "performance_profile.svg").read_text()
    assert json.loads((out / "summary.json").read_text())["scored"] == scored
    assert {row["scored"] for row in csv.DictReader((out / "summary.csv").open())} == {scored}


def test_curves_over_seconds_leave_out_a_search_beside_timed_trials(evidence, tmp_path):
    """Searched trials that are not a submission's best: kfac's, sgd's and muon's. `waiting` has no timed one."""

    def n_lines(summary, width):
        """0.6 is that of the grey lines, 1.6 that of a best point's."""
        (curves,) = [figure for figure in page.figures.figures(summary) if figure.name.startswith("curves")]
        return [sum(line.get_linewidth() == width for line in axes.lines) for axes in curves.draw().axes]

    assert n_lines(evidence[0], 0.6) == [3, 0, 0] and n_lines(evidence[0], 1.6) == [5, 4, 4]
    alone = {"outcome": {"submission": "kfac"}, "seed": 1}
    for index, values in enumerate([[0.1, 0.9], [0.1, 0.2], [0.1, 0.3]], start=1):
        write_trial(tmp_path / "alone" / "digits_jax" / f"trial_{index}", values, point={"lr": index}, **alone)
    assert n_lines(page.summarise(page.read([tmp_path / "alone"]), ["sgd"]), 0.6) == [2, 2, 2]
