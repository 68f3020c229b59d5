"""What the figures of a report share: style, colours and the size of names."""

from typing import Any

import matplotlib.figure

from tuning.report import escapes

GREY = "#8A8A8A"
# Stands in the drawing for the colour of text, which the page sets.
INK = "#0b0c0d"
_MOST_LETTERS = 60

STYLE: Any = {  # matplotlib has a type for each key
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text, which can be searched, and weighs a third of its outlines
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "text.parse_math": False,  # names may have dollar signs
    "svg.hashsalt": "report",
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
}


def new_figure(width: float, height: float) -> Any:
    # Not by pyplot, which would keep every figure, and choose a window system.
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def words(name: str) -> str:
    return short(name.replace("_", " "))


def short(name: str) -> str:
    """On one line, and not wider than a panel."""
    plain = escapes.one_line(name)
    return plain if len(plain) <= _MOST_LETTERS else plain[: _MOST_LETTERS - 1] + "…"
