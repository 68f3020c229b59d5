"""Which times are scored: a study's best trial, or in an evidence run the timed repeats alone."""

import csv
import json
import math

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
    for name in ("kfac", "sgd", "sgd (target's own)"):
        result = comparison.result(name)
        assert result.n_studies == 3 and result.study_medians == {cost: result.costs[cost].median for cost in Cost}
    assert comparison.result("muon").costs[Cost.SECONDS].is_lower_bound and comparison.result("waiting").n_studies == 0


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
    assert f"of {scored}, by seconds, with compilation" in (out / "performance_profile.svg").read_text()
    assert json.loads((out / "summary.json").read_text())["scored"] == scored
    assert {row["scored"] for row in csv.DictReader((out / "summary.csv").open())} == {scored}


def test_curves_over_seconds_leave_out_a_search_beside_timed_trials(evidence, tmp_path):
    """Searched trials that are not a submission's best: kfac's, sgd's and muon's."""

    def n_grey(summary):
        (curves,) = [figure for figure in page.figures.figures(summary) if figure.name.startswith("curves")]
        axes = curves.draw().axes
        return [sum(line.get_color() == page.figures.GREY for line in own.lines) for own in axes]

    assert n_grey(evidence[0]) == [3, 0, 0]
    alone = {"outcome": {"submission": "kfac"}, "seed": 1}
    for index, values in enumerate([[0.1, 0.9], [0.1, 0.2], [0.1, 0.3]], start=1):
        write_trial(tmp_path / "alone" / "digits_jax" / f"trial_{index}", values, point={"lr": index}, **alone)
    assert n_grey(page.summarise(page.read([tmp_path / "alone"]), ["sgd"])) == [2, 2, 2]
