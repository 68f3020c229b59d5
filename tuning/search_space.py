"""AlgoPerf's tuning search space (JSON) to hyperparameter points.

There are three forms. The first two may be mixed within one file:

    {"learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"}}     drawn at random, "log" or "linear"
    {"beta1": {"feasible_points": [0.9, 0.95]}}                         drawn at random from the list
    [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]                  full points, taken in order

A point is a dict in the file's order; `as_hyperparameters` makes the namedtuple that a submission receives.
"""

import enum
import functools
import json
import keyword
import math
import warnings
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from tuning import disk
from tuning.errors import UserError, one_line, short_json

_MAX_DEPTH = 32
_RANGE_KEYS = {"min", "max", "scaling"}
_RANGE_CURE = 'write {"min": a, "max": b, "scaling": "log" or "linear"} or {"feasible_points": [...]}'


class SearchSpaceError(UserError):
    """A search space that cannot be used; the message names the key at fault and the cure."""


def read(path: str | Path) -> dict | list:
    """Reads and checks a search space file; `~` is the home folder.

    Raises:
        SearchSpaceError: no such file, not JSON, or not a search space.
    """
    path = disk.expanded(str(path), "tuning_search_space")
    try:
        space = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except OSError as error:
        problem = f"cannot read search space {str(path)!r} ({error.strerror})"
        raise SearchSpaceError(f"{problem}; check the path") from error
    except (RecursionError, ValueError) as error:  # no UTF-8, no JSON, too deep, or a number of thousands of digits
        problem = f"search space {str(path)!r} cannot be read: {one_line(error)}"
        raise SearchSpaceError(f"{problem}; correct or simplify it") from error
    _check(space)
    return space


def _check(space: Any) -> None:
    """Raises SearchSpaceError, which names the key at fault, unless `space` has one of the three forms."""
    if not isinstance(space, (dict, list)) or not space:
        raise SearchSpaceError("the search space is empty, or neither an object nor a list; write ranges or points")
    if isinstance(space, dict):
        _check_names(space)
        for name, choices in space.items():
            _check_choices(name, choices)
        return
    for index, point in enumerate(space):
        if not isinstance(point, dict) or not point:
            raise SearchSpaceError(f'point {index} is no object with entries; write {{"name": value, ...}}')
        _check_names(point)
        differing = sorted(point.keys() ^ space[0].keys())
        if differing:
            problem = f"point {index} and point 0 differ in key {differing[0]!r}"
            raise SearchSpaceError(f"{problem}; give every point the same keys")
        for name, value in point.items():
            _check_value(name, value)


class Sampling(enum.Enum):
    """How the points of ranges are drawn: independently, or spread evenly by a scrambled sequence."""

    RANDOM = "random"
    HALTON = "halton"
    SOBOL = "sobol"


def points(space: dict | list, n: int, seed: int, sampling: Sampling = Sampling.RANDOM) -> list[dict[str, Any]]:
    """The first n points of a search space, as `read` returned it.

    Point i is the same for every n. A list gives its points in order, and at most all of them, as in AlgoPerf.
    """
    if isinstance(space, list):
        return [{name: point[name] for name in space[0]} for point in space[:n]]
    draws = _uniforms(len(space), n, seed, sampling)
    return [dict(zip(space, map(_value, space.values(), draw), strict=True)) for draw in draws]


def as_hyperparameters(point: Mapping[str, Any]) -> Any:
    """The point as a namedtuple `Hyperparameters`, as a submission receives it."""
    return _point_class(tuple(point))(**point)


# The class of all points of a space, cached: with another class a submission's steps would compile again.
_point_class = functools.cache(lambda names: namedtuple("Hyperparameters", names))


def _uniforms(n_dimensions: int, n: int, seed: int, sampling: Sampling) -> np.ndarray:
    """[n, n_dimensions] in [0, 1)."""
    if sampling is Sampling.RANDOM:
        return np.array([np.random.default_rng((seed, i)).random(n_dimensions) for i in range(n)])
    if sampling is Sampling.HALTON:
        return qmc.Halton(n_dimensions, rng=seed).random(n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns unless n is a power of two
        return qmc.Sobol(n_dimensions, rng=seed).random(n)


def _value(choices: dict[str, Any], u: float) -> Any:
    """The value at the quantile `u` in [0, 1)."""
    if "feasible_points" in choices:
        feasible: Sequence[Any] = choices["feasible_points"]
        return feasible[math.floor(u * len(feasible))]
    low, high = float(choices["min"]), float(choices["max"])
    value = _SCALINGS[choices["scaling"]](low, high, float(u))
    return min(max(value, low), high)  # rounding may exceed an end


_SCALINGS: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda low, high, u: low + u * (high - low),
    "log": lambda low, high, u: low * math.exp(u * math.log(high / low)),
}


def _check_choices(name: str, choices: Any) -> None:
    if not isinstance(choices, dict):
        raise SearchSpaceError(f"{name!r} is not a range; {_RANGE_CURE}")
    if "feasible_points" in choices:
        _refuse_other_keys(name, choices, {"feasible_points"})
        if not isinstance(choices["feasible_points"], list) or not choices["feasible_points"]:
            raise SearchSpaceError(f"{name!r}: 'feasible_points' is no list with entries; list some")
        for value in choices["feasible_points"]:
            _check_value(name, value)
        return
    _refuse_other_keys(name, choices, _RANGE_KEYS)
    missing = sorted(_RANGE_KEYS - choices.keys())
    if missing:
        raise SearchSpaceError(f"{name!r} has no {missing[0]!r}; {_RANGE_CURE}")
    _check_range(name, **choices)


def _check_range(name: str, min: Any, max: Any, scaling: Any) -> None:  # the names are the file's
    for end, value in (("min", min), ("max", max)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
            raise SearchSpaceError(f"{name!r}: {end!r} is {short_json(value)}; give a finite number")
    if not isinstance(scaling, str) or scaling not in _SCALINGS:
        raise SearchSpaceError(f"{name!r}: 'scaling' is {scaling!r}; give 'log' or 'linear'")
    if min > max:
        raise SearchSpaceError(f"{name!r}: 'min' {min} is above 'max' {max}; swap them")
    if scaling == "log" and min <= 0:
        raise SearchSpaceError(f"{name!r}: 'min' {min} has no logarithm; make it positive or scale 'linear'")
    if not math.isfinite(float(max) / float(min) if scaling == "log" else float(max) - float(min)):
        raise SearchSpaceError(f"{name!r}: from {min} to {max} is more than a float can span; narrow it")


def _refuse_other_keys(name: str, choices: dict, known: set[str]) -> None:
    unknown = sorted(choices.keys() - known)
    if unknown:
        raise SearchSpaceError(f"{name!r} has unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _check_names(mapping: dict) -> None:
    for name in mapping:
        if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name.startswith("_"):
            cure = "use a letter, then letters, digits and _, all of them ASCII, and no Python keyword"
            raise SearchSpaceError(f"{short_json(name)} cannot name a hyperparameter; {cure}")


def _check_value(name: str, value: Any, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise SearchSpaceError(f"{name!r} has a value that is nested more than {_MAX_DEPTH} deep; flatten it")
    if isinstance(value, (int, float)) and not _is_finite(value):
        raise SearchSpaceError(f"{name!r} has the value {short_json(value)}; give a finite number")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise SearchSpaceError(f"{name!r} has the value {short_json(value)}, which is no Unicode text; write another")
    if isinstance(value, dict):
        for key in value:
            _check_value(name, key, depth + 1)
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            _check_value(name, entry, depth + 1)


def _is_finite(value: int | float) -> bool:
    """Whether the number is finite as a float; an integer may be too large."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SearchSpaceError(f"key {twice!r} is given twice; keep one of them")
    return mapping
