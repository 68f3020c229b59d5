"""Text for terminals and pipes that cannot show all of Unicode, or that hold lines back."""

import codecs
import functools
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

# A file gets what stdout buffers at the process's end only, after the lines of stderr.
print_at_once = functools.partial(print, flush=True)


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
