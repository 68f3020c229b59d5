"""The figures of a report, for print and screen. Colours are colour-blind safe; lines and markers differ, too."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import matplotlib.lines
import numpy as np

from tuning import scoring
from tuning.report import escapes, points
from tuning.report.drawing import GREY, INK, STYLE, new_figure, short, words
from tuning.report.protocols import Cost, cost_to_target, known_costs
from tuning.report.reading import Trial
from tuning.report.summary import Comparison, SubmissionResult, Summary

# Okabe and Ito's colours that are visible on white and on black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D", "#999933")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<")
_MAX_BACKGROUND_CURVES = 40
_AXES = {
    Cost.STEPS: "step",
    Cost.SECONDS: "seconds, with compilation",
    Cost.TRAINING_SECONDS: "training seconds",  # the whole compilation is subtracted from every point of a curve
}


@dataclass(frozen=True)
class Figure:
    """One figure, not yet drawn.

    Attributes:
        name: of its files, without the ending. It has plain letters only, and is unique.
        workload: that the figure is about; None for all workloads.
        alt: the alternative text, for those who cannot see the figure.
        draw: makes the matplotlib figure.
    """

    name: str
    workload: str | None
    title: str
    alt: str
    draw: Callable[[], Any]


def figures(summary: Summary) -> list[Figure]:
    """All of a report's figures, except those that would be empty."""
    looks = _looks(sorted({result.submission for c in summary.comparisons for result in c.results}))
    file_names = escapes.file_names([c.workload for c in summary.comparisons])
    found = []
    for c in summary.comparisons:
        file, name = file_names[c.workload], escapes.printable(c.workload)
        if any(trial.steps.size for result in c.results for trial in result.best_trials):
            title = f"{name}: {words(c.metric)} on the validation split against steps and seconds"
            alt = f"Curves of {len(c.results)} submissions, the target as a dashed line, first hits marked."
            found.append(Figure(f"curves_{file}", c.workload, title, alt, partial(_curves, c, looks)))
        if any(len(result.searched) for result in c.results):
            title = f"{name}: which hyperparameters reach the target, and how fast"
            alt = "A panel for each submission: points searched, coloured by steps to target; misses are crosses."
            found.append(Figure(f"points_{file}", c.workload, title, alt, partial(points.draw, c)))
        if any(Cost.SECONDS in result.costs for result in c.results):
            title = f"{name}: where the seconds of the best point's trials go"
            alt = "Bars: training, compilation, evaluation and logging, of each submission."
            found.append(Figure(f"seconds_{file}", c.workload, title, alt, partial(_seconds, c)))
    if summary.performance.get(summary.score_by):
        alt = "For each submission the part of the workloads on which it is within a factor of the best."
        title = f"Performance profile of {summary.scored}, by {_AXES[summary.score_by]}"
        found.append(Figure("performance_profile", None, title, alt, partial(_profile, summary, looks)))
    return found


def render(figure: Figure) -> dict[str, bytes]:
    """File ending -> the figure's bytes."""
    with matplotlib.rc_context(STYLE):
        drawn = figure.draw()
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")  # so that both formats have the same layout
        files = {}
        for ending, options in (("svg", {"metadata": {"Date": None}, "dpi": 72}), ("png", {"dpi": 160})):
            file = io.BytesIO()
            drawn.savefig(file, format=ending, transparent=ending == "svg", **options)
            files[ending] = file.getvalue()
    return files


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "color": _COLOURS[i % len(_COLOURS)],
            "linestyle": _LINES[(i // len(_COLOURS) + i) % len(_LINES)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i, name in enumerate(names)
    }


def _curves(c: Comparison, looks: Mapping[str, dict[str, Any]]) -> Any:
    costs = [Cost.STEPS, Cost.SECONDS]
    if any(trial.compile_seconds is not None for result in c.results for trial in result.trials):
        costs.append(Cost.TRAINING_SECONDS)
    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, len(costs), sharey=True)
    others = [trial for result in c.results for trial in result.trials if trial not in result.best_trials]
    are_timed = any(trial.phase.is_timed for result in c.results for trial in result.best_trials)
    others = others[:: max(1, math.ceil(len(others) / _MAX_BACKGROUND_CURVES))]
    for axes, cost in zip(panels, costs, strict=True):
        is_comparable = cost is Cost.STEPS or not are_timed  # a search's seconds are not, beside timed trials
        for trial in others:
            if is_comparable and (x := _axis(trial, cost)) is not None:
                axes.plot(x, trial.values, color=GREY, alpha=0.25, linewidth=0.6, rasterized=True)
        for result in c.results:
            if is_comparable or any(trial.phase.is_timed for trial in result.best_trials):
                _best_point_curves(axes, result, cost, looks[result.submission])
        if c.target is not None:
            axes.axhline(c.target, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xlabel(_AXES[cost])
        axes.set_xlim(left=0)
    panels[0].set_ylabel(words(c.metric))
    if (limits := _late_values(c)) is not None:
        panels[0].set_ylim(limits)
    handles = [matplotlib.lines.Line2D([], [], markersize=5, **looks[result.submission]) for result in c.results]
    names = [short(result.submission) for result in c.results]
    legend = figure.legend(handles, names, loc="outside lower center", ncols=3, handlelength=3.5)
    caption = (
        "curves: the best point's median seed by the panel's cost; markers: first hits of all its seeds; grey: others"
    )
    if c.target is not None:
        caption += f"\ndashed line: the target, {c.target:.6g}"
    legend.set_title(caption, {"size": 8})
    return figure


def _late_values(c: Comparison) -> tuple[float, float] | None:
    """The range of the second halves of the best points' curves that reach the target; None for a single value.

    If none reaches it, all of them count.
    """
    trials = [trial for result in c.results for trial in result.best_trials]
    hits = [trial for trial in trials if trial.hit_at(trial.target) is not None]
    late = [trial.values[trial.values.size // 2 :] for trial in hits or trials]
    values = np.concatenate([*late, [] if c.target is None else [c.target]])
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        return None
    margin = 0.05 * (values.max() - values.min())
    return values.min() - margin, values.max() + margin


def _best_point_curves(axes: Any, result: SubmissionResult, cost: Cost, look: Mapping[str, str]) -> None:
    """Draws the curve of the median seed, and the first hit of every seed, since many curves are hard to read."""

    def key(trial: Trial) -> tuple[bool, float]:
        value = cost_to_target(trial, cost)
        return trial.hit_at(trial.target) is None, math.inf if value is None or math.isnan(value) else value

    ordered = sorted(result.best_trials, key=key)
    for rank, trial in enumerate(ordered):
        x, at = _axis(trial, cost), trial.hit_at(trial.target)
        if x is None:
            continue
        is_median = rank == (len(ordered) - 1) // 2
        if is_median:
            axes.plot(x, trial.values, color=look["color"], linestyle=look["linestyle"], linewidth=1.6)
        if at is not None:
            size = 6 if is_median else 3
            axes.plot(x[at], trial.values[at], look["marker"], color=look["color"], markersize=size)


def _axis(trial: Trial, cost: Cost) -> np.ndarray | None:
    """The x values `[evaluations]`; None if there is no evaluation, or the compile seconds are not on record."""
    if not trial.steps.size or (cost is Cost.TRAINING_SECONDS and trial.compile_seconds is None):
        return None
    if cost is Cost.STEPS:
        return trial.steps
    return trial.seconds if cost is Cost.SECONDS else trial.seconds - trial.compile_seconds


def _seconds(c: Comparison) -> Any:
    results = [result for result in c.results if Cost.SECONDS in result.costs][::-1]
    figure = new_figure(9, 1.2 + 0.36 * len(results))
    axes = figure.subplots()
    means = {cost: [_mean_cost(result, cost) for result in results] for cost in (Cost.SECONDS, Cost.TRAINING_SECONDS)}
    has_compile_seconds = [result.compile_seconds is not None for result in results]
    compilation = np.subtract(means[Cost.SECONDS], means[Cost.TRAINING_SECONDS])
    parts: dict[str, tuple[str, np.ndarray | list[float]]] = {
        "training": ("#0072B2", np.where(has_compile_seconds, means[Cost.TRAINING_SECONDS], 0)),
        "compilation": ("#E69F00", np.where(has_compile_seconds, compilation, 0)),
        "training and compilation (not recorded separately)": (
            "#56B4E9",
            np.where(has_compile_seconds, 0, means[Cost.SECONDS]),
        ),
        "evaluation (off the clock)": (GREY, [_overhead(result, "accumulated_eval_time") for result in results]),
        "logging (off the clock)": ("#CC79A7", [_overhead(result, "accumulated_logging_time") for result in results]),
    }
    start, positions = np.zeros(len(results)), np.arange(len(results))
    for label, (colour, widths) in parts.items():
        if np.any(widths):
            hatch = "//" if "off" in label else None
            axes.barh(
                positions, widths, left=start, color=colour, label=label, hatch=hatch, edgecolor=INK, linewidth=0.4
            )
        start += np.array(widths)
    axes.set_yticks(positions, [short(result.submission) for result in results])
    for row, result in enumerate(results):
        clock = Cost.TRAINING_SECONDS if result.compile_seconds is not None else Cost.SECONDS
        if n_steps := np.mean([trial.steps[end] for trial, end in _ended(result)]):
            ms_per_step = 1e3 * means[clock][row] / n_steps
            axes.annotate(
                f"{ms_per_step:.1f} ms a step", (start[row], row), (4, 0), "data", "offset points", va="center"
            )
    axes.set_xlim(0, 1.15 * max(start.max(), 1e-9))
    axes.set_xlabel("seconds until the target or the end, mean over the best point's trials (the tables have medians)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _ended(result: SubmissionResult) -> list[tuple[Trial, int]]:
    """The best point's trials without those that broke off, each with the index of its hit or last evaluation."""
    ended = [trial for trial in result.best_trials if all(map(math.isfinite, known_costs([trial], Cost.SECONDS)))]
    hits = [trial.hit_at(trial.target) for trial in ended]
    return [(trial, -1 if hit is None else hit) for trial, hit in zip(ended, hits, strict=True)]


def _mean_cost(result: SubmissionResult, cost: Cost) -> float:
    """The mean over the trials that ended and have this cost on record."""
    known = known_costs([trial for trial, _ in _ended(result)], cost)
    return float(np.mean(known)) if known else 0.0


def _overhead(result: SubmissionResult, column: str) -> float:
    return float(np.mean([trial.overhead[column][end] for trial, end in _ended(result)]))


def _profile(summary: Summary, looks: Mapping[str, dict[str, Any]]) -> Any:
    figure = new_figure(7, 3.8)
    axes = figure.subplots()
    taus = np.linspace(1, scoring.MAX_RATIO, 601)
    performance = summary.performance[summary.score_by]
    scores = {name: summary.score(name, summary.score_by) for name in performance}
    handles = {}
    for name in sorted(performance, key=lambda name: -scores[name]):
        heights = [scoring.profile(performance[name], tau, len(summary.comparisons)) for tau in taus]
        style = {key: looks[name][key] for key in ("color", "linestyle")}
        (handles[f"{short(name)} (score {scores[name]:.2f})"],) = axes.step(taus, heights, where="post", **style)
    axes.set_xlim(1, scoring.MAX_RATIO)
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel(f"within this factor of the workload's best {summary.score_by.words}")
    axes.set_ylabel("share of the workloads")
    legend = figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    legend.set_title(f"times: {summary.scored}; {_AXES[summary.score_by]}", {"size": 8})
    return figure
