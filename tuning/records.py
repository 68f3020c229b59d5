"""How results are written to files, each one whole at any moment."""

import csv
import glob
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_LEFTOVER_S = 3600.0

Write = Callable[[Path, bytes], None]  # puts a whole file in its place: `write_bytes`, or a claim's `write`


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, finds the old content or the new, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`. Temporary files that earlier processes left, since they were killed, go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _clear_leftovers(temporary, f".{glob.escape(path.name)}.*.tmp")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk, which it would keep full


def _clear_leftovers(own: Path, pattern: str) -> None:
    """Both times are the disk's, so the machine's clock does not matter; an hour is longer than any write."""
    for other in own.parent.glob(pattern):
        try:
            if own.stat().st_mtime - other.stat().st_mtime > _LEFTOVER_S:
                other.unlink()
        except FileNotFoundError:
            pass  # it was in use, and has its place now


def write_json(path: Path, content: Mapping[str, Any], write: Write = write_bytes) -> None:
    """Strict JSON: numbers that are not finite become null."""
    write(path, (json.dumps(_plain(content), indent=2, allow_nan=False) + "\n").encode("utf-8"))


def write_csv(path: Path, rows: list[dict[str, Any]], write: Write = write_bytes) -> None:
    """One column per key, in the order first seen; a row without the key leaves the cell empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode("utf-8"))


def _plain(value: Any) -> Any:
    """Mappings, sequences and scalars to what strict JSON can hold."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    number = float(value)
    return number if math.isfinite(number) else None
