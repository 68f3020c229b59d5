"""English text that comes with CPython: the paragraphs of `pydoc_data.topics` that are the same in all versions.

`pydoc_data.topics` is the Python language reference as plain text (PSF licence). It differs between versions, even
between patch releases. `shared_paragraphs.json` lists, by hash and in order, the paragraphs that CPython 3.11.2,
3.11.7, 3.12.1 and 3.13.0 have in common, so that all of them give the same text.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

_LIST = Path(__file__).with_name("shared_paragraphs.json")


def shared_paragraphs() -> list[str]:
    """The paragraphs, each with single spaces between words, without repetitions.

    Raises:
        FileNotFoundError: this Python has no `pydoc_data.topics`.
        ValueError: this Python's text lacks some of the paragraphs.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        problem = "this Python comes without pydoc_data.topics, whose text is the data"
        raise FileNotFoundError(f"{problem}: use a complete CPython 3.11, 3.12 or 3.13") from error
    return select(topics, json.loads(_LIST.read_text(encoding="utf-8")))


def select(topics: Mapping[str, str], expected: Mapping[str, str | list[str]]) -> list[str]:
    """The paragraphs of `topics` whose hashes are listed, in the list's order.

    Args:
        expected: "paragraphs", the hashes, and "sha256" of all paragraphs joined by newlines.

    Raises:
        ValueError: a paragraph is missing, or the text differs.
    """
    by_hash = {hash_of(paragraph): paragraph for text in topics.values() for paragraph in paragraphs(text)}
    selected = [by_hash[digest] for digest in expected["paragraphs"] if digest in by_hash]
    if hashlib.sha256("\n".join(selected).encode()).hexdigest() != expected["sha256"]:
        problem = f"this Python's pydoc_data.topics has {len(selected)} of the {len(expected['paragraphs'])} paragraphs"
        raise ValueError(f"{problem} that are the data: use CPython 3.11, 3.12 or 3.13")
    return selected


def paragraphs(text: str) -> list[str]:
    """The texts between blank lines, with single spaces between words."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if part]


def hash_of(paragraph: str) -> str:
    return hashlib.blake2b(paragraph.encode(), digest_size=4).hexdigest()
