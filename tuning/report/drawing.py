"""Style, colours and lengths of names that the figures of a report share."""

from typing import Any

import matplotlib.figure

from tuning.report import escapes

GREY = "#8A8A8A"
# Colour of text in a figure; the page replaces it by its own.
INK = "#0b0c0d"
_MAX_LETTERS = 60

STYLE: Any = {  # matplotlib has a type for each key
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text can be searched, and takes a third of the size of its outlines
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "text.parse_math": False,  # names may have dollar signs
    "svg.hashsalt": "report",
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
}


def new_figure(width: float, height: float) -> Any:
    # Not by pyplot, which would keep every figure in memory, and choose a window system.
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def words(name: str) -> str:
    return short(name.replace("_", " "))


def short(name: str) -> str:
    """The name on one line, cut to the width of a panel."""
    plain = escapes.printable(name)
    return plain if len(plain) <= _MAX_LETTERS else plain[: _MAX_LETTERS - 1] + "…"
