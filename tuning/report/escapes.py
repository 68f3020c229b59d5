"""Escapes names for each format in which some characters have a special meaning."""

import re

# Markdown shows an underscore within a word, as in kfac_reduce, as it is.
_MARKDOWN = re.compile(r"([\\`*\[\]<>#|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "_%&#{}$"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after \\ it would begin an optional argument
    "]": "{]}",
    "–": "--",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
}
_MAX_FILE_NAME = 80


def markdown(text: str) -> str:
    """The text for a cell of a table, or for a heading."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in printable(text))


def printable(text: str) -> str:
    """The text on one line, with every character that cannot be printed replaced by a blank."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def file_names(names: list[str]) -> dict[str, str]:
    """Name -> a file name of plain letters; different names have different file names."""
    unique: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:_MAX_FILE_NAME] or "unnamed"
        taken = {other.lower() for other in unique.values()}
        endings = ("", *(f"-{i}" for i in range(2, len(names) + 2)))
        ending = next(ending for ending in endings if (plain + ending).lower() not in taken)
        unique[name] = plain + ending
    return unique
