"""Draws which hyperparameters reach the target, and how fast: a panel for each submission."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.cm
import matplotlib.colors
import matplotlib.ticker
import numpy as np

from tuning.report.drawing import GREY, INK, new_figure, short, words
from tuning.report.location import Phase
from tuning.report.reading import HIT, Trial
from tuning.report.summary import Comparison, SubmissionResult, category

_MISSES = {"budget": "x", "diverged": "+", "crashed": "4", "pruned": "|", "unfinished": "_"}
_MAX_VECTOR_POINTS = 200  # more points are drawn as pixels, so that the page stays small


def draw(c: Comparison) -> Any:
    results = [result for result in c.results if result.searched]
    columns = min(len(results), 3 if -len(results) % 3 <= -len(results) % 4 else 4)  # as few empty panels as possible
    n_rows = math.ceil(len(results) / columns)
    figure = new_figure(9, 0.5 + 2.8 * n_rows)
    panels = np.atleast_1d(figure.subplots(n_rows, columns)).ravel()
    hits = [float(trial.steps[trial.hit_at(trial.target)]) for result in results for trial in _search(result, hit=True)]
    scale = matplotlib.colors.Normalize(min(hits, default=0), max(hits, default=1))
    is_rasterized = sum(len(result.trials) for result in results) > _MAX_VECTOR_POINTS
    for axes, result in zip(panels, results, strict=False):
        _point_panel(axes, result, scale, is_rasterized)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    missed = {trial.state for result in results for trial in _search(result, hit=False)}
    for state in [state for state in _MISSES if state in missed]:
        panels[0].scatter([], [], color=GREY, marker=_MISSES[state], s=36, label=f"target not reached: {state}")
    if panels[0].get_legend_handles_labels()[0]:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    if hits:
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(scale, "viridis_r"), ax=panels.tolist(), shrink=0.7)
        bar.set_label("steps to target")
        bar.outline.set_edgecolor(INK)
    return figure


def _search(result: SubmissionResult, *, hit: bool) -> list[Trial]:
    return [trial for trial in result.trials if trial.phase is Phase.SEARCH and (trial.state == HIT) is hit]


def _point_panel(axes: Any, result: SubmissionResult, scale: Any, rasterized: bool) -> None:
    x, y = _axes_of(result.searched)
    hit, missed = _search(result, hit=True), _search(result, hit=False)
    coordinates = [[_coordinate(trial, name, result.searched) for trial in hit] for name in (x, y)]
    colours = [trial.steps[trial.hit_at(trial.target)] for trial in hit]
    look = {"s": 36, "rasterized": rasterized}
    axes.scatter(*coordinates, c=colours, norm=scale, cmap="viridis_r", edgecolors=GREY, linewidths=0.5, **look)
    for state in sorted({trial.state for trial in missed}):
        with_state = [trial for trial in missed if trial.state == state]
        coordinates = [[_coordinate(trial, name, result.searched) for trial in with_state] for name in (x, y)]
        axes.scatter(*coordinates, color=GREY, marker=_MISSES.get(state, "_"), **look)
    for name, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if name and not isinstance(result.searched[name][0], str):
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        if name and _is_wide(result.searched[name]):
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            is_long = result.searched[name][1] > 30 * result.searched[name][0]
            axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1,) if is_long else (1, 2, 5), numticks=7))
            axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.tick_params(labelsize=7, which="both")
    axes.set_title(short(result.submission), fontsize=9)
    axes.set_xlabel(words(x), fontsize=8)
    axes.set_ylabel(words(y) if y else "", fontsize=8)
    if not y:
        axes.set_yticks([])


def _axes_of(searched: Mapping[str, Any]) -> tuple[str, str | None]:
    """The hyperparameters of both axes: learning rate and damping if they were searched, otherwise others."""
    preferred = ["learning_rate", "damping", "one_minus_beta1"]
    numbers = [name for name, values in searched.items() if not isinstance(values[0], str)] or list(searched)
    names = sorted(numbers, key=lambda name: (preferred.index(name) if name in preferred else len(preferred), name))
    return names[0], names[1] if len(names) > 1 else None


def _coordinate(trial: Trial, name: str | None, searched: Mapping[str, Any]) -> Any:
    """The trial's coordinate on the axis of the hyperparameter `name`."""
    if name is None:
        return 0.0
    value = trial.point.get(name)
    return category(value) if isinstance(searched[name][0], str) else value


def _is_wide(values: Any) -> bool:
    low, high = values[0], values[-1]
    return not isinstance(low, str) and low > 0 and high > 3 * low
