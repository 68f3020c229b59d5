"""Text for terminals and pipes that cannot show all of Unicode, or that hold lines back."""

import codecs
import os
import sys
import unicodedata

_PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "×": "x",
    "·": "*",
    "→": "->",
    "’": "'",
    "“": '"',
    "”": '"',
    "µ": "u",
}


def print_at_once(text: str) -> None:
    """Prints a line and flushes it. Without the flush, a file would get it only at the end, after the lines of stderr.

    A reader that leaves, as in `run_evidence.py … | head -1`, does not end the process.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def use() -> None:
    """Has stdout and stderr write plain characters in place of those that their encoding lacks."""
    codecs.register_error("plain", _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(map(_plain, characters)), error.end


def _plain(character: str) -> str:
    """The nearest ASCII text, or a question mark."""
    text = _PLAIN.get(character) or unicodedata.normalize("NFKD", character)
    return text.encode("ascii", "ignore").decode("ascii") or "?"
