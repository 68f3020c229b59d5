"""A report's numbers, each beside the one that a reader works out by hand from the folders."""

import csv
import itertools
import json
import statistics
from pathlib import Path

import pytest

from tests.tuning.report.folders import write_comparison, write_trial
from tuning.report import reading, tables
from tuning.report.protocols import Cost
from tuning.report.summary import summarise


def summary_of(*folders: Path, references=("sgd",), rank_by=Cost.STEPS):
    return summarise(reading.read(folders), references, rank_by)


def result_of(comparison, submission):
    return next(result for result in comparison.results if result.submission == submission)


@pytest.fixture
def digits(tmp_path):
    summary = summary_of(write_comparison(tmp_path / "comparison"))
    assert not summary.problems
    (comparison,) = summary.comparisons
    return comparison


def test_steps_and_their_ratio(digits):
    """kfac: the median of 20, 30, 40; sgd: of 50, 70 and a miss."""
    kfac, sgd = result_of(digits, "kfac").costs[Cost.STEPS], result_of(digits, "sgd").costs[Cost.STEPS]
    assert (kfac.median, kfac.n, kfac.n_misses, kfac.is_lower_bound) == (30, 3, 0, False)
    assert (sgd.median, sgd.n, sgd.n_misses, sgd.is_lower_bound) == (70, 3, 1, False)
    assert digits.reference == "sgd"
    assert digits.ratios["kfac"][Cost.STEPS].value == pytest.approx(30 / 70)
    assert digits.ratios["sgd"][Cost.STEPS].value == 1


def test_the_interval_is_that_of_all_ways_to_draw_the_seeds_again(digits):
    """27 draws of three seeds on either side: the 2.5 % and 97.5 % points of all 729 ratios of medians."""
    draws = (itertools.product(values, repeat=3) for values in ([20, 30, 40], [50, 70, 100]))
    own, other = ([statistics.median(draw) for draw in each] for each in draws)
    every = sorted(x / y for x in own for y in other)
    low, high = digits.ratios["kfac"][Cost.STEPS].interval
    assert low == pytest.approx(every[int(0.025 * len(every))], rel=0.03)
    assert high == pytest.approx(every[int(0.975 * len(every))], rel=0.03)


def test_both_clocks(digits):
    """kfac: 20 steps of 0.2 s, 30 and 40 of 0.1 s, a second each of it compilation; sgd: 5, 7 and 10 s, none."""
    kfac, sgd = result_of(digits, "kfac"), result_of(digits, "sgd")
    assert kfac.costs[Cost.SECONDS].median == pytest.approx(4)
    assert kfac.costs[Cost.TRAINING_SECONDS].median == pytest.approx(3) and kfac.compile_seconds == 1
    assert sgd.costs[Cost.SECONDS].median == sgd.costs[Cost.TRAINING_SECONDS].median == pytest.approx(7)
    assert digits.ratios["kfac"][Cost.SECONDS].value == pytest.approx(4 / 7)
    assert digits.ratios["kfac"][Cost.TRAINING_SECONDS].value == pytest.approx(3 / 7)


def test_ranked_by_either_clock(tmp_path):
    """kfac: 2 s, of which 1.5 are compilation; sgd: 1 s, all of it training."""
    for name, seconds, compiled in (("kfac", 0.2, 1.5), ("sgd", 0.1, 0.0)):
        told = {"submission": name, "compile_seconds_to_target": compiled}
        write_trial(tmp_path / name / "digits_jax" / "trial_1", [0.9], point={}, seconds_a_step=seconds, outcome=told)
    for rank_by, first, scores in (
        (Cost.SECONDS, "sgd", {"sgd": 1.0, "kfac": 2 / 3}),
        (Cost.TRAINING_SECONDS, "kfac", {"kfac": 1.0, "sgd": 2 / 3}),
    ):
        summary = summary_of(tmp_path, rank_by=rank_by)
        assert summary.comparisons[0].results[0].submission == first and summary.score_by is rank_by
        for name, score in scores.items():
            assert summary.score(name, rank_by) == pytest.approx(score, abs=0.01)


def test_the_reference_is_the_better_one_and_may_be_the_targets_own_configuration(tmp_path):
    own = {"submission": "sgd"}
    for phase, hit in (("target_reference", 2), ("search", 3)):
        write_trial(tmp_path / "w/sgd" / phase / "digits_jax/trial_1", [0.1] * (hit - 1) + [0.9], point={}, outcome=own)
    write_trial(tmp_path / "w/kfac/search/digits_jax/trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    (comparison,) = summary_of(tmp_path).comparisons
    assert comparison.reference == "sgd (target's own)"
    assert {name: r[Cost.STEPS].value for name, r in comparison.ratios.items()} == {
        "sgd (target's own)": 1,
        "sgd": 1.5,
        "kfac": 0.5,
    }


def test_of_references_that_miss_in_the_middle_the_one_with_a_hit_is_taken(tmp_path):
    """Both medians are the whole budget."""
    for name, hits in (("adam", [False, False, False]), ("sgd", [True, False, False])):
        for seed, is_hit in enumerate(hits):
            values = [0.1] * 9 + [0.9 if is_hit else 0.1]
            place = tmp_path / name / f"study_{seed + 1}" / "digits_jax" / "trial_1"
            outcome = {"submission": name} | ({} if is_hit else {"reason": "budget"})
            write_trial(place, values, point={"x": 1}, seed=seed, outcome=outcome)
    (comparison,) = summary_of(tmp_path, references=("adam", "sgd")).comparisons
    assert {result.costs[Cost.STEPS].median for result in comparison.results} == {100}
    assert comparison.reference == "sgd"


def test_a_search_is_confirmed_and_the_best_of_both_seeds_is_shown(tmp_path):
    """Of three points the best two run again: 0.1 with 10 and 70 steps loses to 0.2 with 20 and 30."""
    own = {"submission": "kfac"}
    for phase, seed, hits in (("search", 0, {0.1: 1, 0.2: 2, 0.3: None}), ("confirm", 1, {0.1: 7, 0.2: 3})):
        for trial, (rate, hit) in enumerate(hits.items(), start=1):
            values = [0.1] * 10 if hit is None else [0.1] * (hit - 1) + [0.9]
            place = tmp_path / "kfac" / phase / "digits_jax" / f"trial_{trial}"
            write_trial(place, values, point={"learning_rate": rate}, outcome=own, seed=seed)
    (result,) = summary_of(tmp_path).comparisons[0].results
    assert result.best_trials[0].point == {"learning_rate": 0.2} and result.costs[Cost.STEPS].median == 25
    assert result.search_hits == (2, 3) and result.n_searched_trials == 3


def test_the_test_metric_at_the_hit(tmp_path):
    for seed, metric in enumerate((0.7, 0.6, 0.5)):
        place = tmp_path / "kfac" / "repeat" / f"study_{seed + 1}" / "digits_jax" / "trial_1"
        write_trial(place, [0.1, 0.9], point={}, outcome={"submission": "kfac"}, seed=seed)
        lines = (place / "eval_measurements.csv").read_text().splitlines()
        cells = ["test/accuracy", "0.1", str(metric)]
        joined = "".join(f"{line},{cell}\n" for line, cell in zip(lines, cells, strict=True))
        (place / "eval_measurements.csv").write_text(joined)
    (result,) = summary_of(tmp_path).comparisons[0].results
    assert result.test_at_hit == 0.6


def test_a_target_reached_before_the_first_step(tmp_path):
    place = write_trial(tmp_path / "sgd/digits_jax/trial_1", [0.9], point={}, steps=0, outcome={"submission": "sgd"})
    assert (place / "eval_measurements.csv").read_text().splitlines()[1].startswith("0,")
    write_trial(tmp_path / "kfac/digits_jax/trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    summary = summary_of(tmp_path)
    (comparison,) = summary.comparisons
    sgd = result_of(comparison, "sgd")
    assert sgd.costs[Cost.STEPS].median == 0 and sgd.counts == {"hit": 1}
    assert not comparison.ratios["kfac"] and not summary.problems


def test_a_trial_without_a_target_does_not_take_it_from_the_others(tmp_path):
    own = {"submission": "a"}
    write_trial(tmp_path / "a/digits_jax/trial_1", [0.9], point={}, target=None, outcome=own)
    write_trial(tmp_path / "b/digits_jax/trial_1", [0.9], point={}, outcome={"submission": "b"})
    (comparison,) = summary_of(tmp_path).comparisons
    assert comparison.target == 0.8 and [result.submission for result in comparison.results] == ["b", "a"]
    assert [result.search_hits for result in comparison.results] == [(1, 1), (0, 0)]  # without a target, no miss


def test_dimensions_of_mixed_types_are_categories(tmp_path):
    for trial, value in enumerate((False, "half", None, [1, 2], 0.5), start=1):
        place = tmp_path / f"kfac/digits_jax/trial_{trial}"
        write_trial(place, [0.9], point={"scaling": value}, outcome={"submission": "kfac"})
    (result,) = summary_of(tmp_path).comparisons[0].results
    assert result.searched == {"scaling": ("false", "half", "null", "[1, 2]", "0.5")}


def test_counts_dimensions_and_the_best_metric(digits):
    kfac = result_of(digits, "kfac")
    assert kfac.counts == {"hit": 5, "budget": 1} and kfac.n_searched_trials == 3
    assert dict(kfac.searched) == {"damping": (1e-3, 3e-3), "learning_rate": (0.1, pytest.approx(0.3))}
    assert list(result_of(digits, "sgd").searched) == ["learning_rate"]
    assert kfac.best == 0.81


def test_easier_targets(tmp_path):
    """0.8 less 2 % is 0.784, less 5 % 0.76: reached at steps 30, 20 and 10."""
    write_trial(tmp_path / "x/digits_jax/trial_1", [0.77, 0.79, 0.8], point={}, outcome={"submission": "kfac"})
    write_trial(tmp_path / "y/digits_jax/trial_1", [0.1, 0.1, 0.79, 0.9], point={}, outcome={"submission": "sgd"})
    (comparison,) = summary_of(tmp_path).comparisons
    assert dict(comparison.levels) == {"target": 0.8, "98 %": pytest.approx(0.784), "95 %": pytest.approx(0.76)}
    assert [steps.median for steps in result_of(comparison, "kfac").levels.values()] == [30, 20, 10]
    ratios = comparison.ratios["kfac"]
    assert [ratios[level].value for level in comparison.levels] == [30 / 40, 20 / 30, 10 / 30]


def test_algoperfs_protocol_is_the_median_over_studies_of_the_best_trial(tmp_path):
    """Best of the studies: 20 steps (2 s), 40 (4 s), and none: the median is 4 s. Compilation is in it."""
    for study, hits in enumerate(((2, 5), (None, 4), (None, None)), start=1):
        for trial, hit in enumerate(hits, start=1):
            values = [0.5] * 10 if hit is None else [0.5] * (hit - 1) + [0.9]
            place = tmp_path / f"kfac/study_{study}/digits_jax/trial_{trial}"
            write_trial(place, values, point={"learning_rate": study + trial}, outcome={"submission": "kfac"})
    (result,) = summary_of(tmp_path).comparisons[0].results
    assert (result.n_studies, result.study_medians[Cost.SECONDS], result.study_medians[Cost.STEPS]) == (
        3,
        pytest.approx(4.0),
        40,
    )


def test_a_submission_that_misses_in_most_studies_has_no_time(tmp_path):
    for study, values in enumerate(([0.9], [0.1] * 10, [0.1] * 10), start=1):
        write_trial(tmp_path / f"kfac/study_{study}/digits_jax/trial_1", values, point={}, outcome={})
    (result,) = summary_of(tmp_path).comparisons[0].results
    assert result.study_medians[Cost.SECONDS] is None


def test_points_run_on_several_seeds_without_a_search_folder(tmp_path):
    """The point with the fewest mean steps of three seeds each: 0.2 with 20, 30, 40."""
    for seed, hits in enumerate(((9, 2), (1, 3), (9, 4))):
        for trial, hit in enumerate(hits, start=1):
            place = tmp_path / f"kfac/study_{seed + 1}/digits_jax/trial_{trial}"
            point = {"learning_rate": 0.1 * trial}
            write_trial(place, [0.1] * (hit - 1) + [0.8], point=point, outcome={"submission": "kfac"}, seed=seed)
    (result,) = summary_of(tmp_path).comparisons[0].results
    assert result.costs[Cost.STEPS].median == 30 and result.best_trials[0].point == {"learning_rate": 0.2}


def best_of(folder: Path, trials):
    """The result of trials (phase, study, seed, learning rate, evaluations to the target) of 10 steps each."""
    for number, (phase, study, seed, rate, hit) in enumerate(trials, start=1):
        place = folder / "kfac" / phase / f"study_{study}" / "digits_jax" / f"trial_{number}"
        values = [0.1] * (hit - 1) + [0.9]
        write_trial(place, values, point={"learning_rate": rate}, outcome={"submission": "kfac"}, seed=seed)
    (result,) = summary_of(folder).comparisons[0].results
    return result.best_trials[0].point["learning_rate"], result.costs[Cost.STEPS]


def test_a_point_drawn_again_by_chance_does_not_win_by_that(tmp_path):
    """0.1 was drawn in both studies, 0.2 and 0.3 in one each."""
    drawn = [(1, 0, 0.1, 6), (1, 0, 0.2, 2), (2, 1, 0.1, 4), (2, 1, 0.3, 5)]
    rate, steps = best_of(tmp_path, [("search", *trial) for trial in drawn])
    assert (rate, steps.median, steps.n) == (0.2, 20, 1)


def test_nor_does_the_point_of_the_most_seeds(tmp_path):
    """All points were run on several seeds: 0.1 on three, with 50 steps each, and 0.2 on two, with 30 and 40."""
    drawn = [(1, 0, 0.1, 5), (2, 1, 0.1, 5), (3, 2, 0.1, 5), (1, 0, 0.2, 3), (2, 1, 0.2, 4)]
    rate, steps = best_of(tmp_path, [("search", *trial) for trial in drawn])
    assert (rate, steps.median, steps.n) == (0.2, 35, 2)


def test_a_confirmed_point_that_was_drawn_twice_counts_once_for_a_seed(tmp_path):
    """0.1: 10, 10 steps on seed 0 and 90 on seed 1, a mean of 50 over the seeds; 0.2: 40 and 50."""
    searched = [("search", 1, 0, 0.1, 1), ("search", 1, 0, 0.1, 1), ("search", 1, 0, 0.2, 4), ("search", 2, 7, 0.3, 1)]
    confirmed = [("confirm", 1, 1, 0.1, 9), ("confirm", 1, 1, 0.2, 5)]
    rate, steps = best_of(tmp_path, [*searched, ("search", 3, 8, 0.3, 1), *confirmed])
    assert (rate, steps.median, steps.n) == (0.2, 45, 2)


def test_pruned_and_unfinished_trials_are_in_no_median(tmp_path):
    own = {"submission": "kfac"}
    write_trial(tmp_path / "digits_jax/trial_1", [0.1] * 3, point={"a": 1}, outcome=own | {"reason": "pruned"})
    write_trial(tmp_path / "digits_jax/trial_2", [0.1] * 3, point={"a": 2}, outcome=None)
    write_trial(tmp_path / "digits_jax/trial_3", [0.1] * 5 + [0.9], point={"a": 3}, outcome=own)
    (result,) = [each for each in summary_of(tmp_path).comparisons[0].results if each.submission == "kfac"]
    assert result.costs[Cost.STEPS].median == 60 and result.counts == {"hit": 1, "pruned": 1}


def test_the_seconds_of_a_trial_that_broke_off_are_in_no_median(tmp_path):
    """Diverged after 20 steps: 100 of steps, its budget, and more seconds than any; the median of two depends on it."""
    own = {"submission": "kfac"}
    for seed, values in enumerate(([0.1, 0.9], [0.1, float("nan")])):
        diverged = own | ({"reason": "diverged"} if seed else {})
        place = tmp_path / f"kfac/study_{seed + 1}/digits_jax/trial_1"
        write_trial(place, values, point={"a": 1}, seed=seed, outcome=diverged)
    (result,) = summary_of(tmp_path, references=("kfac",)).comparisons[0].results
    assert result.costs[Cost.STEPS].median == 60 and result.costs[Cost.STEPS].is_lower_bound
    assert result.costs.keys() == {Cost.STEPS}


def test_a_lower_metric_may_be_the_better(tmp_path):
    meta = {"workload.target_metric_name": "wer", "workload.validation_target_value": 0.1}
    place = write_trial(tmp_path / "asr/speech_jax/trial_1", [0.3, 0.11, 0.09], point={}, meta=meta)
    file = place / "eval_measurements.csv"
    file.write_text(file.read_text().replace("validation/accuracy", "validation/wer"))
    (comparison,) = summary_of(tmp_path).comparisons
    (result,) = comparison.results
    assert (
        result.costs[Cost.STEPS].median == 30
        and result.best == 0.09
        and comparison.levels["95 %"] == pytest.approx(0.105)
    )


def test_warnings(tmp_path):
    """A reference that never hit, with fewer trials, on another machine and version."""
    environment = {"environment": {"jax": "0.9", "device_kind": "V100", "n_devices": 1}}
    for index in (1, 2):
        place = tmp_path / f"kfac/digits_jax/trial_{index}"
        write_trial(place, [0.9], point={"a": index}, outcome={"submission": "kfac"})
    write_trial(tmp_path / "sgd/digits_jax/trial_1", [0.1], point={}, outcome={"submission": "sgd"} | environment)
    summary = summary_of(tmp_path)
    told = " ".join([*summary.warnings, *summary.comparisons[0].warnings])
    for expected in ("in jax: 0.10.2; 0.9", "in devices: 1 × V100; 1 × cpu", "sgd missed the target on 1 of 1 seeds"):
        assert expected in told
    assert "sgd was searched with 1 trials, another submission with 2" in told


def test_timed_trials_that_were_resumed_or_profiled_are_named(tmp_path):
    cases = {"resumed": {"resumptions": [{"global_step": 10, "changes": {}}]}, "traced": {"profiled_steps": [3, 5]}}
    for phase in ("search", "repeat"):
        for name, more in (cases | {"whole": {"resumptions": [], "profiled_steps": None}}).items():
            place = tmp_path / name / phase / "digits_jax" / "trial_1"
            write_trial(place, [0.9], point={}, outcome={"submission": name} | more)
    (comparison,) = summary_of(tmp_path, references=("whole",)).comparisons
    (warning,) = comparison.warnings
    assert warning.startswith("These timed trials were resumed or profiled, ")
    assert warning.endswith(": " + ", ".join(f"{tmp_path}/{name}/repeat/digits_jax/trial_1" for name in cases) + ".")


def test_a_search_on_shared_cores_is_no_difference_to_what_is_timed_alone(tmp_path):
    for phase, cores in (("search", 1), ("confirm", 1), ("repeat", 2), ("target_reference", 2)):
        own = {"submission": "sgd", "environment": {"cpu_model": "EPYC", "n_cpu_cores": cores}}
        write_trial(tmp_path / "sgd" / phase / "digits_jax" / "trial_1", [0.9], point={}, outcome=own)
    assert not summary_of(tmp_path).warnings
    other = {"submission": "kfac", "environment": {"cpu_model": "EPYC", "n_cpu_cores": 8}}
    write_trial(tmp_path / "kfac" / "repeat" / "digits_jax" / "trial_1", [0.9], point={}, outcome=other)
    assert summary_of(tmp_path).warnings == ("The trials differ in machine: EPYC, 2 cores; EPYC, 8 cores.",)


def test_without_a_reference_there_are_no_ratios(tmp_path):
    write_trial(tmp_path / "kfac/digits_jax/trial_1", [0.9], point={}, outcome={"submission": "kfac"})
    (comparison,) = summary_of(tmp_path).comparisons
    assert comparison.reference is None and not comparison.ratios and "no ratios" in comparison.warnings[-1]


def test_the_tables_hold_the_same_numbers(tmp_path):
    summary = summary_of(write_comparison(tmp_path / "comparison"))
    assert "| kfac | 3/3 | 30 | 0.43 (0.20–0.80) | 4.0 | 0.57 (" in tables.markdown(summary)
    assert "| sgd (reference) | 2/3 | 70 | 1.00 | 7.0 | 1.00 | 7.0 | 1.00 | 0.0 | – | 2/3 |" in tables.markdown(summary)
    assert r"kfac & 3/3 & 30 & 0.43 (0.20--0.80) & 4.0 & 0.57 (" in tables.latex(summary)
    row = next(csv.DictReader(tables.as_csv(summary).splitlines()))
    assert (row["submission"], float(row["steps_median"]), row["n_hit"]) == ("kfac", 30, "5")
    assert (float(row["seconds_median"]), float(row["training_seconds_median"])) == (4, 3)
    content = json.loads(json.dumps(tables.as_json(summary)))
    assert content["workloads"][0]["submissions"][0]["steps_ratio"] == pytest.approx(30 / 70)
