"""Writes the report's page, figures and tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tuning import records
from tuning.report import figures, tables
from tuning.report.protocols import Cost
from tuning.report.reading import read
from tuning.report.summary import Comparison, Ratio, SubmissionResult, Summary, summarise
from workloads import budgets

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_MAX_PROBLEMS_SHOWN = 200
_COORDINATES = re.compile(r'(?<= )(?:d|x|y)="[^"]*"')
_DECIMALS = re.compile(r"(\d\.\d)\d+")


def write(
    folders: Sequence[Path],
    out: Path,
    references: Sequence[str],
    refresh_s: int = 0,
    rank_by: Cost = Cost.STEPS,
    hardware_profile: str = budgets.V100X8,
) -> Summary:
    """Reads the trial folders, and writes index.html, the figures and the tables into `out`.

    Args:
        references, rank_by: see `summarise`.
        refresh_s: seconds after which a browser reloads the page; 0 for never.
        hardware_profile: see `read`.

    Raises:
        OSError: `out` cannot be written.
    """
    summary = summarise(read(folders, hardware_profile), references, rank_by)
    out.mkdir(parents=True, exist_ok=True)
    drawn: list[dict[str, Any]] = []
    for figure in figures.figures(summary):
        files = figures.render(figure)
        for ending, content in files.items():
            records.write_bytes(out / f"{figure.name}.{ending}", content)
        drawn.append({"figure": figure, "svg": _inline(files["svg"].decode(), figure, f"f{len(drawn)}-")})
    records.write_text(out / "index.html", html(summary, drawn, refresh_s))
    records.write_text(out / "summary.csv", tables.as_csv(summary))
    records.write_json(out / "summary.json", tables.as_json(summary))
    records.write_text(out / "table.md", tables.markdown(summary))
    records.write_text(out / "table.tex", tables.latex(summary))
    return summary


def html(summary: Summary, drawn: Sequence[Mapping[str, Any]], refresh_s: int = 0) -> str:
    """The page, which needs no other file. `drawn` has its figures and their svg."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        s=summary,
        drawn=drawn,
        refresh_s=refresh_s,
        n_trials=sum(len(result.trials) for c in summary.comparisons for result in c.results),
        tables=tables,
        sort_values=_sort_values,
        verdict=verdict,
        official=_official(summary),
        costs=Cost,
        ranked=_ranked(summary),
        problems=summary.problems[:_MAX_PROBLEMS_SHOWN],
        searched=_searched,
        point=_point,
    )


def verdict(c: Comparison, rank_by: Cost) -> str:
    """A sentence or two: which submission reaches the target first, and by how much."""
    hits = [result for result in c.results if rank_by in result.costs and not result.costs[rank_by].is_lower_bound]
    if c.target is None:
        return f"{c.workload} has no target."
    if not any(rank_by in result.costs for result in c.results):
        return f"{c.workload}: there are no {rank_by.words} to compare."
    if not hits:
        return f"{c.workload}: no submission's best point reached {c.metric} {c.target:.4g} on most of its seeds."
    level = _least(hits, rank_by)
    first = level[0]
    sentence = f"{c.workload}: {_need_fewest(level, rank_by)} to {c.metric} {c.target:.4g}, "
    sentence += tables.seed_median(first.costs[rank_by], 0 if rank_by is Cost.STEPS else 1)
    ratios = c.ratios.get(first.submission, {})
    if rank_by not in ratios:
        return sentence + "."
    if any(result.submission == c.reference for result in level):
        sentence += f"; {'it' if len(level) == 1 else c.reference} is the reference."
        if len(level) == 1:
            return sentence
    else:
        sentence += f": {_ratio_of_all(level, ratios[rank_by])} of {c.reference}'s"
        others = [cost for cost in Cost if cost is not rank_by and cost in ratios and len(level) == 1]
        sentence += "".join(f", {tables.ratio(ratios[cost])} of its {cost.words}" for cost in others) + "."
    clock = Cost.SECONDS if rank_by is Cost.STEPS else Cost.STEPS
    fastest = _least([result for result in hits if clock in result.costs], clock)
    if fastest and all(result is not first for result in fastest):
        ratio = c.ratios.get(fastest[0].submission, {}).get(clock)
        sentence += f" {_need_fewest(fastest, clock)}"
        sentence += f", {_ratio_of_all(fastest, ratio)}." if ratio else "."
    return sentence


def _least(results: Sequence[SubmissionResult], cost: Cost) -> list[SubmissionResult]:
    """Those with the least median; several if they are level."""
    least = min((result.costs[cost].median for result in results), default=None)
    return [result for result in results if result.costs[cost].median == least]


def _need_fewest(results: Sequence[SubmissionResult], cost: Cost) -> str:
    *others, last = [result.submission for result in results]
    names = f"{', '.join(others)} and {last} are level: each needs" if others else f"{last} needs"
    return f"{names} the fewest {cost.words}"


def _ratio_of_all(results: Sequence[SubmissionResult], ratio: Ratio) -> str:
    """The first one's ratio; if there are others, without its interval, which is not theirs."""
    return tables.ratio(ratio if len(results) == 1 else replace(ratio, interval=None))


def _inline(svg: str, figure: figures.Figure, prefix: str) -> Markup:
    """The element of an SVG file, for the page: labelled, in the page's text colour, with rounded coordinates.

    `prefix` makes its ids differ from those of other figures.
    """
    element = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = _COORDINATES.sub(lambda match: _DECIMALS.sub(r"\1", match[0]), element)
    element = element.replace(figures.INK, "currentColor")
    element = re.sub(r' id="[a-z]+_\d+"', "", element)  # ids of groups, which are not referred to
    element = re.sub(r'\bid="', f'id="{prefix}', element)
    element = re.sub(r'(xlink:href="#|href="#|url\(#)', rf"\g<1>{prefix}", element)
    element = re.sub(r">\s+<", "><", element)
    label = Markup('<svg role="img" aria-label="{}. {}"').format(figure.title, figure.alt)
    return Markup(element.replace("<svg", label, 1))


def _sort_values(c: Comparison, result: SubmissionResult) -> list[float | str]:
    """The values by which the columns after the first are sorted; empty values come last."""
    ratios = c.ratios.get(result.submission, {})
    values: list[float | None] = [sum(trial.hit_at(trial.target) is not None for trial in result.best_trials)]
    for cost in Cost:
        values += [cost in result.costs and result.costs[cost].median, cost in ratios and ratios[cost].value]
    n_hits, n_ended = result.search_hits
    values += [result.compile_seconds, result.test_at_hit, n_hits / n_ended if n_ended else None, result.best]
    values += [len(result.searched)]
    return ["" if value is None or value is False else value for value in values]


def _official(summary: Summary) -> str:
    n, n_all = summary.n_official, len(summary.base_workloads)
    if n == n_all == len(summary.comparisons):
        return f"All {n} base workloads of AlgoPerf are present; the held-out workloads' rule is not applied."
    return (
        f"This is not an official AlgoPerf score: of the {n_all} base workloads, which are its denominator, only {n} "
        f"{'is' if n == 1 else 'are'} present. The other score counts only the workloads of this report."
    )


def _ranked(summary: Summary) -> list[str]:
    """Submissions by score, the best first; those without a score by this clock come last."""
    cost = summary.score_by
    scores = {name: summary.score(name, cost) for name in summary.performance.get(cost, {})}
    return sorted(summary.performance.get(Cost.STEPS, {}), key=lambda name: -scores.get(name, -1))


def _searched(result: SubmissionResult) -> str:
    def show(values: Sequence[Any]) -> str:
        if isinstance(values[0], str):
            return " | ".join(values)
        return f"{values[0]:.4g} to {values[1]:.4g}"

    return ", ".join(f"{name} {show(values)}" for name, values in result.searched.items()) or "nothing"


def _point(result: SubmissionResult) -> str:
    if not result.best_trials:
        return "–"
    items = result.best_trials[0].point.items()
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in items)
