"""Writes result files atomically: a reader finds the old content or the new, never a part."""

import csv
import glob
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_LEFTOVER_S = 3600.0  # age of a temporary file that no running process is writing

Write = Callable[[Path, bytes], None]  # writes a whole file: `write_bytes`, or a claim's `write`


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it has the old content or the new, but never a part, even if the process is killed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`. It also removes temporary files of earlier processes that were killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _remove_leftovers(temporary, f".{glob.escape(path.name)}.*.tmp")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # if the disk is full, it would stay full


def _remove_leftovers(temporary: Path, pattern: str) -> None:
    """Removes temporary files an hour older than `temporary`, which processes that were killed have left.

    Both times are the disk's, so that the machine's clock does not matter.
    """
    for other in temporary.parent.glob(pattern):
        try:
            if temporary.stat().st_mtime - other.stat().st_mtime > _LEFTOVER_S:
                other.unlink()
        except FileNotFoundError:
            pass  # another process was writing it, and has renamed it


def write_json(path: Path, content: Mapping[str, Any], write: Write = write_bytes) -> None:
    """Strict JSON: numbers that are not finite become null. Mappings inside of `content` must be dicts."""
    # Scalars of arrays become floats.
    plain = json.loads(json.dumps(content, default=float), parse_constant=lambda _: None)
    write(path, (json.dumps(plain, indent=2) + "\n").encode("utf-8"))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """One column per key, in the order of first occurrence; a row without the key has an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
