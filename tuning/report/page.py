"""The report's page and files."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tuning import records, scoring
from tuning.report import figures, tables
from tuning.report.reading import read
from tuning.report.summary import Comparison, Line, Summary, summarise

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write(folders: Sequence[Path], out: Path, references: Sequence[str], refresh_s: int = 0) -> Summary:
    """Read the trial folders, and write index.html, the figures, and the tables into `out`.

    Args:
        references: first-order submissions; see `summarise`.
        refresh_s: how often a browser loads the page anew; 0 for never.

    Raises:
        OSError: `out` cannot be written.
    """
    summary = summarise(read(folders), references)
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for figure in figures.figures(summary):
        files = figures.render(figure)
        for ending, content in files.items():
            records.write_bytes(out / f"{figure.name}.{ending}", content)
        drawn.append({"name": figure.name, "title": figure.title, "svg": _inline(files["svg"].decode(), figure)})
    records.write_text(out / "index.html", html(summary, drawn, refresh_s))
    records.write_text(out / "summary.csv", tables.as_csv(summary))
    records.write_json(out / "summary.json", tables.as_json(summary))
    records.write_text(out / "table.md", tables.markdown(summary))
    records.write_text(out / "table.tex", tables.latex(summary))
    return summary


def html(summary: Summary, drawn: Sequence[Mapping[str, Any]], refresh_s: int = 0) -> str:
    """The page, with everything in it; `drawn` are its figures' name, title and svg."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        s=summary,
        figures=drawn,
        refresh_s=refresh_s,
        n_trials=sum(len(line.trials) for c in summary.comparisons for line in c.lines),
        columns=tables.COLUMNS,
        rows=tables.rows,
        heading=tables.heading,
        show=tables.number,
        show_spread=tables.spread,
        show_ratio=tables.ratio,
        sort_values=_sort_values,
        verdict=verdict,
        official=_official(summary),
        of_eight=lambda name: _of_eight(summary, name),
        searched=_searched,
        point=_point,
    )


def verdict(c: Comparison) -> str:
    """One sentence: who gets to the target first, and by how much."""
    hits = [line for line in c.lines if line.steps and line.steps.n_misses < line.steps.n]
    if c.target is None:
        return f"{c.workload} has no target."
    if not hits:
        return f"{c.workload}: no submission's best point reached {c.metric} {c.target:.4g}."
    first = hits[0]
    told = f"{c.workload}: {first.submission} needs the fewest steps to {c.metric} {c.target:.4g}, "
    told += f"{tables.spread(first.steps, 0)}"
    own = c.ratios.get(first.submission, {})
    if first.submission == c.reference or not own:
        return told + ("; it is the reference." if own else ".")
    told += f": {tables.ratio(own['steps'])} of {c.reference}'s"
    told += f", and {tables.ratio(own['seconds'])} of its seconds." if "seconds" in own else "."
    quickest = min(hits, key=lambda line: line.seconds.mean if line.seconds else math.inf)
    if quickest is not first:
        ratio = c.ratios.get(quickest.submission, {}).get("seconds")
        told += f" Quickest in seconds is {quickest.submission}" + (f", {tables.ratio(ratio)}." if ratio else ".")
    return told


def _inline(svg: str, figure: figures.Figure) -> Markup:
    """An SVG file's element, labelled, its ink the page's, its ids its own."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = element.replace(figures.INK, "currentColor")
    prefix = re.sub(r"\W", "_", figure.name)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'(xlink:href="#|href="#|url\(#)(?!' + prefix + "-)", rf"\g<1>{prefix}-", element)
    label = Markup('<svg role="img" aria-label="{}. {}"').format(figure.title, figure.alt)
    return Markup(element.replace("<svg", label, 1))


def _sort_values(c: Comparison, line: Line) -> list[float | str]:
    """What the numbers' columns are sorted by; empty comes last."""
    ratios = c.ratios.get(line.submission, {})
    values = [line.steps and line.steps.mean, ratios.get("steps") and ratios["steps"].value]
    values += [line.seconds and line.seconds.mean, ratios.get("seconds") and ratios["seconds"].value]
    values += [line.compile_seconds, line.best]
    return ["" if value is None else value for value in values]


def _official(summary: Summary) -> str:
    n, all_of_them = summary.n_official, len(scoring.OFFICIAL_WORKLOADS)
    if n == all_of_them == len(summary.comparisons):
        return "All eight base workloads of AlgoPerf are present; the held-out workloads' rule is not applied."
    return (
        f"This is no official AlgoPerf score: of its eight base workloads, the denominator, {n} "
        f"{'is' if n == 1 else 'are'} present. The first column counts the workloads of this report alone."
    )


def _of_eight(summary: Summary, name: str) -> float:
    ratios = {w: r for w, r in summary.performance[name].items() if w in scoring.OFFICIAL_WORKLOADS}
    return scoring.score(ratios, len(scoring.OFFICIAL_WORKLOADS))


def _searched(line: Line) -> str:
    def show(values: Sequence[Any]) -> str:
        if isinstance(values[0], str):
            return " | ".join(values)
        return f"{values[0]:.4g} to {values[1]:.4g}"

    return ", ".join(f"{name} {show(values)}" for name, values in line.searched.items()) or "nothing"


def _point(line: Line) -> str:
    if not line.chosen:
        return "–"
    items = line.chosen[0].point.items()
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in items)
