"""The figures of a report, for print and screen: colour-blind safe, told apart by line and marker too."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.cm
import matplotlib.colors
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from tuning import scoring
from tuning.report.reading import HIT, Trial
from tuning.report.summary import Comparison, Line, Summary

# Okabe and Ito's colours that show on white and on black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#A6761D", "#999933")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<")
_GREY = "#8A8A8A"
_MISSES = {"budget": "x", "diverged": "+", "crashed": "4", "pruned": "|", "unfinished": "_"}
# Stands in the drawing for the colour of text, which the page sets.
INK = "#0b0c0d"
_MOST_BACKGROUND_CURVES = 150

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
}


@dataclass(frozen=True)
class Figure:
    """One figure, not yet drawn.

    Attributes:
        name: of its files, without the ending.
        alt: what it shows, for those who cannot see it.
        draw: makes the matplotlib figure.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[], Any]


def figures(summary: Summary) -> list[Figure]:
    """All of a report's figures; those without anything to show are left out."""
    looks = _looks(sorted({line.submission for c in summary.comparisons for line in c.lines}))
    found = []
    for c in summary.comparisons:
        if any(trial.steps.size for line in c.lines for trial in line.chosen):
            title = f"{c.workload}: {_words(c.metric)} on the validation split against steps and seconds"
            alt = f"Curves of {len(c.lines)} submissions, the target as a dashed line, first hits marked."
            found.append(Figure(f"{c.workload}_curves", title, alt, lambda c=c: _curves(c, looks)))
        if any(len(line.searched) for line in c.lines):
            title = f"{c.workload}: which hyperparameters reach the target, and how fast"
            alt = "A panel for each submission: points searched, coloured by steps to target; misses are crosses."
            found.append(Figure(f"{c.workload}_points", title, alt, lambda c=c: _points(c)))
        if any(line.seconds for line in c.lines):
            title = f"{c.workload}: where the seconds of the best point's trials go"
            alt = "Bars: training, compilation, evaluation and logging, of each submission."
            found.append(Figure(f"{c.workload}_seconds", title, alt, lambda c=c: _seconds(c)))
    if summary.comparisons:
        alt = "For each submission the part of the workloads on which it is within a factor of the best."
        found.append(Figure("performance_profile", "Performance profile", alt, lambda: _profile(summary, looks)))
    return found


def render(figure: Figure) -> dict[str, bytes]:
    """File ending -> the figure's bytes."""
    with matplotlib.rc_context(_STYLE):
        drawn = figure.draw()
        files = {}
        for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            file = io.BytesIO()
            transparent = ending == "svg"
            drawn.savefig(file, format=ending, bbox_inches="tight", transparent=transparent, **options)
            files[ending] = file.getvalue()
    return files


def _looks(names: Sequence[str]) -> dict[str, dict[str, str]]:
    return {
        name: {
            "color": _COLOURS[i % len(_COLOURS)],
            "linestyle": _LINES[(i // len(_COLOURS) + i) % len(_LINES)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i, name in enumerate(names)
    }


def _figure(width: float, height: float) -> Any:
    # Not by pyplot, which would keep every figure, and choose a window system.
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _curves(c: Comparison, looks: Mapping[str, dict[str, str]]) -> Any:
    figure = _figure(9, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    rest = [trial for line in c.lines for trial in line.trials if trial not in line.chosen and trial.steps.size]
    for trial in rest[:: max(1, len(rest) // _MOST_BACKGROUND_CURVES)]:
        left.plot(trial.steps, trial.values, color=_GREY, alpha=0.18, linewidth=0.6)
        right.plot(_training(trial), trial.values, color=_GREY, alpha=0.18, linewidth=0.6)
    for line in c.lines:
        look = looks[line.submission]
        left.plot([], [], label=line.submission, markersize=5, **look)
        for trial in line.chosen:
            at = trial.hit_at(c.target)
            style = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.4}
            for axes, x in ((left, trial.steps), (right, _training(trial))):
                axes.plot(x, trial.values, **style)
                if at is not None:
                    axes.plot(x[at], trial.values[at], look["marker"], color=look["color"], markersize=6)
    for axes, label in ((left, "step"), (right, "submission seconds without compilation")):
        if c.target is not None:
            axes.axhline(c.target, color=INK, linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    left.set_ylabel(_words(c.metric))
    if c.target is not None:
        left.annotate("target", (1, c.target), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
    legend = figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    legend.set_title("best point's trials; a marker is the first hit", {"size": 8})
    return figure


def _training(trial: Trial) -> np.ndarray:
    """Seconds without compilation, of which nearly all comes before the first evaluation."""
    return trial.seconds - (trial.compile_seconds or 0.0)


def _points(c: Comparison) -> Any:
    lines = [line for line in c.lines if line.searched]
    columns = min(3, len(lines))
    n_rows = math.ceil(len(lines) / columns)
    figure = _figure(9, 0.5 + 2.8 * n_rows)
    panels = np.atleast_1d(figure.subplots(n_rows, columns)).ravel()
    hits = [trial.steps[at] for line in lines for trial in line.trials if (at := trial.hit_at(c.target)) is not None]
    scale = matplotlib.colors.Normalize(min(hits, default=0), max(hits, default=1))
    for axes, line in zip(panels, lines, strict=False):
        _point_panel(axes, line, c.target, scale)
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    for state in [state for state in _MISSES if any(state in line.counts for line in lines)]:
        panels[0].scatter([], [], color=_GREY, marker=_MISSES[state], s=36, label=f"target not reached: {state}")
    if panels[0].get_legend_handles_labels()[0]:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    if hits:
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(scale, "viridis_r"), ax=panels.tolist(), shrink=0.7)
        bar.set_label("steps to target")
        bar.outline.set_edgecolor(INK)
    return figure


def _point_panel(axes: Any, line: Line, target: float | None, scale: Any) -> None:
    x, y = _axes_of(line.searched)
    search = [trial for trial in line.trials if not trial.is_repetition]
    hit = [trial for trial in search if trial.state == HIT]
    missed = [trial for trial in search if trial.state != HIT]
    where = [[_place(trial, name, i) for trial in hit] for i, name in enumerate((x, y))]
    colours = [trial.steps[trial.hit_at(target)] for trial in hit]
    axes.scatter(*where, c=colours, norm=scale, cmap="viridis_r", s=36, edgecolors=INK, linewidths=0.5)
    for state in sorted({trial.state for trial in missed}):
        own = [trial for trial in missed if trial.state == state]
        where = [[_place(trial, name, i) for trial in own] for i, name in enumerate((x, y))]
        axes.scatter(*where, color=_GREY, marker=_MISSES.get(state, "_"), s=36)
    for name, which in ((x, axes.xaxis), (y, axes.yaxis)):
        if name and _is_wide(line.searched[name]):
            (axes.set_xscale if which is axes.xaxis else axes.set_yscale)("log")
            is_long = line.searched[name][1] > 30 * line.searched[name][0]
            which.set_major_locator(matplotlib.ticker.LogLocator(subs=(1,) if is_long else (1, 2, 5)))
            which.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            which.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.tick_params(labelsize=7, which="both")
    axes.set_title(line.submission, fontsize=9)
    axes.set_xlabel(_words(x), fontsize=8)
    axes.set_ylabel(_words(y) if y else "", fontsize=8)
    if not y:
        axes.set_yticks([])


def _axes_of(searched: Mapping[str, Any]) -> tuple[str, str | None]:
    """Learning rate and damping where they were searched, else what was."""
    wanted = ["learning_rate", "damping", "one_minus_beta1"]
    numbers = [name for name, values in searched.items() if not isinstance(values[0], str)] or list(searched)
    names = sorted(numbers, key=lambda name: (wanted.index(name) if name in wanted else len(wanted), name))
    return names[0], names[1] if len(names) > 1 else None


def _place(trial: Trial, name: str | None, axis: int) -> Any:
    """Where on an axis; a missing number is drawn nowhere."""
    if name is None:
        return 0.0
    value = trial.point.get(name)
    return float("nan") if value is None else value


def _is_wide(values: Any) -> bool:
    low, high = values[0], values[-1]
    return not isinstance(low, str) and low > 0 and high > 3 * low


def _seconds(c: Comparison) -> Any:
    lines = [line for line in c.lines if line.seconds][::-1]
    figure = _figure(9, 1.2 + 0.36 * len(lines))
    axes = figure.subplots()
    parts = {
        "training": ("#0072B2", [line.seconds.mean for line in lines]),
        "compilation": ("#E69F00", [line.compile_seconds or 0 for line in lines]),
        "evaluation (off the clock)": (_GREY, [_overhead(line, "accumulated_eval_time") for line in lines]),
        "logging (off the clock)": ("#CC79A7", [_overhead(line, "accumulated_logging_time") for line in lines]),
    }
    start = np.zeros(len(lines))
    for label, (colour, widths) in parts.items():
        hatch = "//" if "off" in label else None
        names = [line.submission for line in lines]
        axes.barh(names, widths, left=start, color=colour, label=label, hatch=hatch, edgecolor=INK, linewidth=0.4)
        start += np.array(widths)
    for place, line in enumerate(lines):
        per_step = 1e3 * line.seconds.mean / line.steps.mean if line.steps.mean else math.nan
        axes.annotate(f"{per_step:.1f} ms a step", (start[place], place), (4, 0), "data", "offset points", va="center")
    axes.set_xlim(0, 1.15 * max(start.max(), 1e-9))
    axes.set_xlabel("seconds, mean over the best point's trials, until the target or the end")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _overhead(line: Line, column: str) -> float:
    return float(np.mean([trial.overhead[column] for trial in line.chosen]))


def _profile(summary: Summary, looks: Mapping[str, dict[str, str]]) -> Any:
    figure = _figure(7, 3.8)
    axes = figure.subplots()
    taus = np.linspace(1, scoring.MAX_RATIO, 601)
    n = len(summary.comparisons)
    for name in sorted(summary.performance, key=lambda name: -summary.scores[name]):
        heights = [scoring.profile(summary.performance[name], tau, n) for tau in taus]
        style = {key: looks[name][key] for key in ("color", "linestyle")}
        axes.step(taus, heights, where="post", label=f"{name} (score {summary.scores[name]:.2f})", **style)
    axes.set_xlim(1, scoring.MAX_RATIO)
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("within this factor of the workload's best seconds")
    axes.set_ylabel("part of the workloads")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _words(name: str) -> str:
    return name.replace("_", " ")
