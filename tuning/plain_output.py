"""Text for terminals and pipes that cannot show all of Unicode."""

import codecs
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


def use() -> None:
    """Lets stdout and stderr write plain characters for those that their encoding lacks, in place of failing."""
    codecs.register_error("plain", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(map(_plain, lacking)), error.end


def _plain(character: str) -> str:
    """The nearest ASCII text; a question mark where there is none."""
    text = _PLAIN.get(character) or unicodedata.normalize("NFKD", character)
    return text.encode("ascii", "ignore").decode("ascii") or "?"
