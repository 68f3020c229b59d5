import functools
import json
import math

import numpy as np
import pytest

from tuning import search_space
from tuning.search_space import SearchSpaceError

SPACE = {
    "lr": {"min": 1e-4, "max": 1e-1, "scaling": "log"},
    "momentum": {"min": -1.0, "max": 3.0, "scaling": "linear"},
    "period": {"feasible_points": [1, 5, 20, "never"]},
}


def test_values_follow_from_the_keyed_uniforms():
    for i, point in enumerate(search_space.points(SPACE, 5, seed=7)):
        u = np.random.default_rng((7, i)).random(3)
        received = search_space.as_hyperparameters(point)
        assert type(received).__name__ == "Hyperparameters" and received._asdict() == point
        assert list(point) == ["lr", "momentum", "period"]
        assert point["lr"] == pytest.approx(10 ** (-4 + 3 * u[0]))
        assert point["momentum"] == pytest.approx(-1 + 4 * u[1])
        assert point["period"] == SPACE["period"]["feasible_points"][int(4 * u[2])]


def test_a_point_depends_on_seed_and_index_only():
    many = search_space.points(SPACE, 50, seed=3)
    assert search_space.points(SPACE, 4, seed=3) == many[:4]
    assert search_space.points(SPACE, 4, seed=4) != many[:4]
    assert len({tuple(point.values()) for point in many}) == 50


def test_draws_fill_their_range_and_stay_inside():
    points = search_space.points(SPACE, 2000, seed=0)
    logs = np.log10([point["lr"] for point in points])
    assert -4 <= logs.min() < -3.98 and -1.02 < logs.max() <= -1
    assert abs(logs.mean() + 2.5) < 0.1  # uniform on the logarithm: standard error 0.02
    assert {point["period"] for point in points} == {1, 5, 20, "never"}


def test_a_range_of_one_value_gives_exactly_that():
    for scaling in ("log", "linear"):
        (point,) = search_space.points({"a": {"min": 0.3, "max": 0.3, "scaling": scaling}}, 1, seed=0)
        assert point["a"] == 0.3


def test_a_list_is_taken_in_order_and_ends():
    listed = [{"lr": 0.1, "b": None}, {"b": 2, "lr": 0.2}]
    found = search_space.points(listed, 9, seed=1)
    assert found == [{"lr": 0.1, "b": None}, {"lr": 0.2, "b": 2}] and list(found[1]) == ["lr", "b"]
    assert search_space.points(listed, 1, seed=1) == found[:1]


BAD = [
    ({}, "empty"),
    ([], "empty"),
    (3, "neither an object nor a list"),
    ({"lr": 0.1}, "'lr' is not a range"),
    ({"lr": {"min": 1, "max": 2}}, "'lr' has no 'scaling'"),
    ({"lr": {"max": 2, "scaling": "log"}}, "'lr' has no 'min'"),
    ({"lr": {"min": 3, "max": 2, "scaling": "linear"}}, "'lr': 'min' 3 is above 'max' 2"),
    ({"lr": {"min": 0, "max": 2, "scaling": "log"}}, "'lr': 'min' 0 has no logarithm"),
    ({"lr": {"min": 1, "max": 2, "scaling": "cubic"}}, "'lr': 'scaling' is 'cubic'"),
    ({"lr": {"min": "1", "max": 2, "scaling": "log"}}, "'lr': 'min' is \"1\""),
    ({"lr": {"min": 1, "max": math.nan, "scaling": "log"}}, "'lr': 'max' is NaN"),
    ({"lr": {"min": 1, "max": 2, "scaling": "log", "step": 1}}, "'lr' has unknown key 'step'"),
    ({"lr": {"feasible_points": []}}, "'lr': 'feasible_points'"),
    ({"lr": {"feasible_points": [1], "min": 0}}, "'lr' has unknown key 'min'"),
    ({"l r": {"feasible_points": [1]}}, '"l r" cannot name'),
    ([{"lr": 1}, {"beta": 1}], "point 1 and point 0 differ in key 'beta'"),
    ([{"lr": 1}, {}], "point 1 is no object"),
    ([{"lr": math.inf}], "'lr' has the value Infinity"),
    ({"lr": {"min": 1, "max": 10**400, "scaling": "linear"}}, "'lr': 'max' is 1000"),
    ({"lr": {"min": -1.7e308, "max": 1.7e308, "scaling": "linear"}}, "'lr': from -1.7e+308 to 1.7e+308 is more"),
    ({"lr": {"min": 1e-300, "max": 1e300, "scaling": "log"}}, "'lr': from 1e-300 to 1e+300 is more than a float"),
    ({"lr": {"feasible_points": [1, 10**400]}}, "'lr' has the value 1000"),
    ({"lr": {"feasible_points": [1, [math.nan]]}}, "'lr' has the value NaN"),
    ([{"lr": {"a": [{"b": math.inf}]}}], "'lr' has the value Infinity"),
    ({"µ": {"feasible_points": [1]}}, '"µ" cannot name a hyperparameter; use a letter'),
    ({"lambda": {"feasible_points": [1]}}, '"lambda" cannot name a hyperparameter'),
    ({"lr": {"feasible_points": ["\ud800"]}}, "'lr' has the value \"\\ud800\", which is no Unicode text"),
    (
        {"lr": {"feasible_points": [functools.reduce(lambda inner, _: [inner], range(40), 1)]}},
        "'lr' has a value that is",
    ),
]


@pytest.mark.parametrize("space,message", BAD, ids=[message for _, message in BAD])
def test_a_malformed_space_is_refused_in_one_line_with_the_key(tmp_path, space, message):
    path = tmp_path / "space.json"
    path.write_text(json.dumps(space))
    with pytest.raises(SearchSpaceError) as caught:
        search_space.read(path)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250
    assert isinstance(caught.value, ValueError)


def test_a_file_that_is_not_there_or_not_json_is_named(tmp_path):
    with pytest.raises(SearchSpaceError, match="nowhere.json"):
        search_space.read(tmp_path / "nowhere.json")
    (tmp_path / "bad.json").write_text('{"lr": }')
    with pytest.raises(SearchSpaceError, match=r"bad.json.*line 1 column 8"):
        search_space.read(tmp_path / "bad.json")
    (tmp_path / "deep.json").write_text('{"lr": {"feasible_points": ' + "[" * 10**5 + "]" * 10**5 + "}}")
    with pytest.raises(SearchSpaceError, match=r"deep.json.*simplify it"):
        search_space.read(tmp_path / "deep.json")
    (tmp_path / "long.json").write_text('{"lr": {"min": 1, "scaling": "log", "max": 1' + "0" * 5000 + "}}")
    with pytest.raises(SearchSpaceError, match=r"long.json.*simplify it"):
        search_space.read(tmp_path / "long.json")
    (tmp_path / "twice.json").write_text('{"lr": {"feasible_points": [1]}, "lr": {"feasible_points": [2]}}')
    with pytest.raises(SearchSpaceError, match="'lr' is given twice"):
        search_space.read(tmp_path / "twice.json")


@pytest.mark.parametrize("sampling", search_space.Sampling)
def test_every_sampling_gives_the_same_first_points_and_fills_the_ranges(sampling):
    space = {
        "learning_rate": {"min": 1e-4, "max": 1e-1, "scaling": "log"},
        "momentum": {"min": 0.0, "max": 1.0, "scaling": "linear"},
        "kind": {"feasible_points": ["a", "b"]},
    }
    many = search_space.points(space, 64, 3, sampling)
    assert search_space.points(space, 7, 3, sampling) == many[:7]
    assert search_space.points(space, 7, 4, sampling) != many[:7]
    assert {point["kind"] for point in many} == {"a", "b"}
    quarters = np.histogram([point["momentum"] for point in many], bins=4, range=(0, 1))[0]
    # A scrambled sequence is as even as it can be; random points are so only roughly.
    assert quarters.min() >= (6 if sampling is search_space.Sampling.RANDOM else 15)
    assert all(1e-4 <= point["learning_rate"] <= 1e-1 for point in many)


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    assert search_space.read("~/space.json") == SPACE
