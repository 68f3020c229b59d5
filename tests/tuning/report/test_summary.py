"""A report's numbers, each beside the one that a reader works out by hand from the folders."""

import itertools
import json
import math
from pathlib import Path

import pytest

from tests.tuning.report.folders import write_comparison, write_trial
from tuning.report import reading, tables
from tuning.report.summary import summarise


def summary_of(*folders: Path, references=("sgd",)):
    return summarise(reading.read(folders), references)


@pytest.fixture
def digits(tmp_path):
    summary = summary_of(write_comparison(tmp_path / "comparison"))
    assert not summary.problems
    (comparison,) = summary.comparisons
    return comparison


def test_steps_and_their_ratio(digits):
    """kfac (20 + 30 + 40) / 3 = 30, standard error 10 / √3; sgd (50 + 70 + 100) / 3, the miss as its budget."""
    kfac, sgd = digits.line("kfac"), digits.line("sgd")
    assert (kfac.steps.mean, kfac.steps.n_misses) == (30, 0)
    assert kfac.steps.standard_error == pytest.approx(10 / math.sqrt(3))
    assert (sgd.steps.mean, sgd.steps.n_misses) == (pytest.approx(220 / 3), 1)
    assert digits.reference == "sgd"
    assert digits.ratios["kfac"]["steps"].value == pytest.approx(30 / (220 / 3))
    assert digits.ratios["sgd"]["steps"].value == 1


def test_the_interval_is_that_of_all_ways_to_draw_the_seeds_again(digits):
    """27 draws of three seeds on either side: the 2.5 % and 97.5 % points of all 729 ratios, nearly."""
    own, other = ([sum(draw) / 3 for draw in itertools.product(v, repeat=3)] for v in ([20, 30, 40], [50, 70, 100]))
    every = sorted(x / y for x in own for y in other)
    low, high = digits.ratios["kfac"]["steps"].interval
    assert low == pytest.approx(every[int(0.025 * len(every))], rel=0.03)
    assert high == pytest.approx(every[int(0.975 * len(every))], rel=0.03)


def test_seconds_are_without_compilation(digits):
    """kfac: 20 steps of 0.2 s, 30 and 40 of 0.1 s, less a second each; sgd: 5, 7 and 10 s."""
    kfac, sgd = digits.line("kfac"), digits.line("sgd")
    assert kfac.seconds.mean == pytest.approx((3 + 2 + 3) / 3) and kfac.compile_seconds == 1
    assert sgd.seconds.mean == pytest.approx(22 / 3)
    assert digits.ratios["kfac"]["seconds"].value == pytest.approx(8 / 22)


def test_counts_dimensions_and_the_best_metric(digits):
    kfac = digits.line("kfac")
    assert kfac.counts == {"hit": 5, "budget": 1} and kfac.n_searched_trials == 3
    assert dict(kfac.searched) == {"damping": (1e-3, 3e-3), "learning_rate": (0.1, pytest.approx(0.3))}
    assert list(digits.line("sgd").searched) == ["learning_rate"]
    assert kfac.best == 0.81


def test_easier_targets(tmp_path):
    """0.8 less 2 % is 0.784, less 5 % 0.76: reached at steps 30, 20 and 10."""
    write_trial(tmp_path / "x/digits_jax/trial_1", [0.77, 0.79, 0.8], point={}, outcome={"submission": "kfac"})
    write_trial(tmp_path / "y/digits_jax/trial_1", [0.1, 0.1, 0.79, 0.9], point={}, outcome={"submission": "sgd"})
    (comparison,) = summary_of(tmp_path).comparisons
    assert dict(comparison.levels) == {"target": 0.8, "98 %": pytest.approx(0.784), "95 %": pytest.approx(0.76)}
    assert [spread.mean for spread in comparison.line("kfac").levels.values()] == [30, 20, 10]
    ratios = comparison.ratios["kfac"]
    assert [ratios[level].value for level in comparison.levels] == [30 / 40, 20 / 30, 10 / 30]


def test_algoperfs_protocol_is_the_median_over_studies_of_the_best_trial(tmp_path):
    """Best of the studies: 20 steps (2 s), 40 (4 s), and none: the median is 4 s. Compilation is in it."""
    for study, hits in enumerate(((2, 5), (None, 4), (None, None)), start=1):
        for trial, hit in enumerate(hits, start=1):
            values = [0.5] * 10 if hit is None else [0.5] * (hit - 1) + [0.9]
            place = tmp_path / f"kfac/study_{study}/digits_jax/trial_{trial}"
            write_trial(place, values, point={"learning_rate": study + trial}, outcome={"submission": "kfac"})
    (line,) = summary_of(tmp_path).comparisons[0].lines
    assert (line.n_studies, line.algoperf_seconds, line.algoperf_steps) == (3, pytest.approx(4.0), 40)


def test_a_submission_that_misses_in_most_studies_has_no_time(tmp_path):
    for study, values in enumerate(([0.9], [0.1] * 10, [0.1] * 10), start=1):
        write_trial(tmp_path / f"kfac/study_{study}/digits_jax/trial_1", values, point={}, outcome={})
    (line,) = summary_of(tmp_path).comparisons[0].lines
    assert line.algoperf_seconds is None


def test_points_run_on_several_seeds_without_a_search_folder(tmp_path):
    """The point with the fewest mean steps of three seeds each: 0.2 with (20 + 30 + 40) / 3."""
    for seed, hits in enumerate(((9, 2), (1, 3), (9, 4))):
        for trial, hit in enumerate(hits, start=1):
            place = tmp_path / f"kfac/study_{seed + 1}/digits_jax/trial_{trial}"
            point = {"learning_rate": 0.1 * trial}
            write_trial(place, [0.1] * (hit - 1) + [0.8], point=point, outcome={"submission": "kfac"}, seed=seed)
    (line,) = summary_of(tmp_path).comparisons[0].lines
    assert line.steps.mean == 30 and line.chosen[0].point == {"learning_rate": 0.2}


def test_pruned_and_unfinished_trials_are_in_no_mean(tmp_path):
    own = {"submission": "kfac"}
    write_trial(tmp_path / "digits_jax/trial_1", [0.1] * 3, point={"a": 1}, outcome=own | {"reason": "pruned"})
    write_trial(tmp_path / "digits_jax/trial_2", [0.1] * 3, point={"a": 2}, outcome=None)
    write_trial(tmp_path / "digits_jax/trial_3", [0.1] * 5 + [0.9], point={"a": 3}, outcome=own)
    (line,) = [each for each in summary_of(tmp_path).comparisons[0].lines if each.submission == "kfac"]
    assert line.steps.mean == 60 and line.counts == {"hit": 1, "pruned": 1}


def test_the_seconds_of_a_trial_that_broke_off_are_in_no_mean(tmp_path):
    """Diverged after 20 steps: 100 of steps, its budget, and no seconds."""
    own = {"submission": "kfac"}
    for seed, values in enumerate(([0.1, 0.9], [0.1, float("nan")])):
        diverged = own | ({"reason": "diverged"} if seed else {})
        place = tmp_path / f"kfac/study_{seed + 1}/digits_jax/trial_1"
        write_trial(place, values, point={"a": 1}, seed=seed, outcome=diverged)
    (line,) = summary_of(tmp_path, references=("kfac",)).comparisons[0].lines
    assert line.steps.mean == 60 and line.steps.n_misses == 1 and line.seconds is None


def test_a_lower_metric_may_be_the_better(tmp_path):
    meta = {"workload.target_metric_name": "wer", "workload.validation_target_value": 0.1}
    place = write_trial(tmp_path / "asr/speech_jax/trial_1", [0.3, 0.11, 0.09], point={}, meta=meta)
    file = place / "eval_measurements.csv"
    file.write_text(file.read_text().replace("validation/accuracy", "validation/wer"))
    (comparison,) = summary_of(tmp_path).comparisons
    (line,) = comparison.lines
    assert line.steps.mean == 30 and line.best == 0.09 and comparison.levels["95 %"] == pytest.approx(0.105)


def test_warnings(tmp_path):
    """A reference that never hit, with fewer trials, on another machine and version."""
    environment = {"environment": {"jax": "0.9", "device_kind": "V100", "n_devices": 1}}
    for index in (1, 2):
        place = tmp_path / f"kfac/digits_jax/trial_{index}"
        write_trial(place, [0.9], point={"a": index}, outcome={"submission": "kfac"})
    write_trial(tmp_path / "sgd/digits_jax/trial_1", [0.1], point={}, outcome={"submission": "sgd"} | environment)
    summary = summary_of(tmp_path)
    told = " ".join([*summary.warnings, *summary.comparisons[0].warnings])
    for expected in ("in jax: 0.10.2, 0.9", "in devices: 1 × V100, 1 × cpu", "sgd never reached the target"):
        assert expected in told
    assert "sgd was searched with 1 trials, another submission with 2" in told


def test_without_a_reference_there_are_no_ratios(tmp_path):
    write_trial(tmp_path / "kfac/digits_jax/trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    (comparison,) = summary_of(tmp_path).comparisons
    assert comparison.reference is None and not comparison.ratios and "no ratios" in comparison.warnings[0]


def test_the_tables_hold_the_same_numbers(tmp_path):
    summary = summary_of(write_comparison(tmp_path / "comparison"))
    assert "| kfac | 6: 5 hit, 1 budget | damping, learning_rate | 30 ± 6 | ≤ 0.41 (" in tables.markdown(summary)
    assert "| sgd (reference) | 6: 4 hit, 2 budget | learning_rate | ≥ 73 ± 15 | 1.00 |" in tables.markdown(summary)
    assert r"kfac & 6: 5 hit, 1 budget & damping, learning\_rate & 30 $\pm$ 6 & $\leq$ 0.41 (" in tables.latex(summary)
    header, first = tables.as_csv(summary).splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert (row["submission"], float(row["steps_mean"]), row["n_hit"]) == ("kfac", 30, "5")
    content = json.loads(json.dumps(tables.as_json(summary)))
    assert content["workloads"][0]["submissions"][0]["steps_ratio"] == pytest.approx(30 / (220 / 3))
