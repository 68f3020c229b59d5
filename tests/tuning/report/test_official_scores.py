"""AlgoPerf's published logs give AlgoPerf's published scores."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from tuning.report import reading
from tuning.report.protocols import Cost
from tuning.report.summary import summarise

DATA = Path(__file__).parents[2] / "data"
BASELINE = "jax_nadamw_full_budget"


@pytest.fixture(scope="module", params=["0.5", "0.6"])
def logs(request):
    """(version, records, summary); the file names its submissions by their code."""
    records = reading.read([DATA / f"algoperf_v{request.param}_external_tuning.tar.xz"])
    return request.param, records, summarise(records, [BASELINE], Cost.SECONDS)


def test_official_scores(logs):
    version, _, summary = logs
    published = {"0.5": {"shampoo_submission": 0.7784}, "0.6": {"shampoo_submission": 0.6244, BASELINE: 0.4590}}
    for submission, score in published[version].items():
        assert summary.official_score(submission, Cost.SECONDS) == pytest.approx(score, abs=2e-4)
        assert summary.score(submission, Cost.SECONDS) == summary.official_score(submission, Cost.SECONDS)


def test_official_scores_of_the_later_self_tuning_round():
    """It has nine base workloads. No trial has a point, since a submission chooses its own."""
    records = reading.read([DATA / "algoperf_a100_self_tuning.tar.xz"])
    summary = summarise(records, ["nadamw_baselinev05"], Cost.SECONDS)
    assert len(summary.base_workloads) == summary.n_official == 9
    with open(DATA / "algoperf_a100_self_tuning_scores.csv", newline="") as file:
        published = {row["submission"]: float(row["score"]) for row in csv.DictReader(file)}
    assert len(published) == 17
    for submission, score in published.items():
        own = summary.official_score(f"{submission} (self-tuning)", Cost.SECONDS)
        assert own == pytest.approx(score, abs=1e-4), submission
    assert Counter(trial.state for trial in records.trials) == {"hit": 195, "budget": 256, "unfinished": 5}
    assert {problem.what for problem in records.problems} == {"is missing: no evaluation on record"}


def test_there_is_no_score_by_a_clock_that_is_not_on_record(logs):
    _, _, summary = logs
    assert Cost.TRAINING_SECONDS not in summary.performance
    assert all(Cost.TRAINING_SECONDS not in result.costs for c in summary.comparisons for result in c.results)
    assert all("Compilation is not on record" in " ".join(c.warnings) for c in summary.comparisons)


def test_how_trials_ended(logs):
    """Counted by hand: a last evaluation lies within one period of the limit (budget), or more than five before it."""
    version, records, _ = logs
    counts = Counter(trial.state for trial in records.trials)
    assert (
        counts
        == {
            "0.5": {"hit": 820, "budget": 1066, "unfinished": 287, "diverged": 6},
            "0.6": {"hit": 61, "budget": 144, "unfinished": 34, "diverged": 1},
        }[version]
    )


def test_every_study_counts(logs):
    """lawa_ema ran three studies of librispeech_deepspeech; those without a hit count too."""
    version, _, summary = logs
    n_studies = {result.n_studies for c in summary.comparisons for result in c.results}
    assert n_studies == ({5, 3} if version == "0.5" else {3})


def test_two_leaderboards_in_one_report():
    """Both have a folder `baseline`, with one name on record."""
    archives = [DATA / f"algoperf_v{version}_external_tuning.tar.xz" for version in ("0.5", "0.6")]
    counts = Counter(trial.submission for trial in reading.read(archives).trials if BASELINE in trial.submission)
    assert counts == {f"{BASELINE} (v05/baseline)": 200, f"{BASELINE} (v06/baseline)": 120}
