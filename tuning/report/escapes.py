"""Names as they are, in each format that gives some letters a meaning of its own."""

import re

# An underscore within a word, as in kfac_reduce, is one for Markdown too.
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
_LARGEST_FILE_NAME = 80


def markdown(text: str) -> str:
    """For a cell of a table, or a heading."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def one_line(text: str) -> str:
    """Control characters, line ends among them, as blanks."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def file_names(names: list[str]) -> dict[str, str]:
    """Each of the names -> a file name of plain letters, which differ where the names do."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:_LARGEST_FILE_NAME] or "unnamed"
        taken = {other.lower() for other in found.values()}
        ending = next(
            end for end in ("", *(f"-{i}" for i in range(2, len(names) + 2))) if (plain + end).lower() not in taken
        )
        found[name] = plain + ending
    return found
