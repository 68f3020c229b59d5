"""Trial folders and archives of them: found once each, and their files read, with what cannot be read named."""

import csv
import functools
import json
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tuning.errors import short_json

TRIAL = re.compile(r"trial_(\d+)(?:_seed_\d+)?")
# Archives of trial folders, as `tuning.report.archive` packs them.
ARCHIVE_ENDING = ".tar.xz"
_LARGEST = 10**300
TIMES = ("accumulated_submission_time", "accumulated_eval_time", "accumulated_logging_time")


@dataclass(frozen=True)
class FileProblem:
    """What is wrong with a file; everything else is reported all the same."""

    file: str
    what: str


@dataclass(frozen=True)
class TrialFolder:
    """One trial folder, on disk or in an archive.

    Attributes:
        place: where it lies, below `root`.
        root: the folder or archive that the user named.
        text: a file's name -> its content; raises OSError or UnicodeDecodeError.
    """

    place: PurePath
    root: PurePath
    names: tuple[str, ...]
    text: Callable[[str], str]


@dataclass
class Found:
    folders: list[TrialFolder] = field(default_factory=list)
    problems: list[FileProblem] = field(default_factory=list)


def find(places: Iterable[Path]) -> Found:
    """Every trial folder under the places, links followed, each once by its resolved path."""
    found = Found()
    seen: set[Path] = set()
    for place in places:
        n_before = len(seen)
        own = _in_archive(place, found.problems) if place.is_file() else _on_disk(place, found.problems)
        n_own = 0
        for resolved, folder in own:
            n_own += 1
            if resolved not in seen:
                seen.add(resolved)
                found.folders.append(folder)
        if not n_own:
            found.problems.append(FileProblem(str(place), "holds no trial folder (trial_1, trial_2, …)"))
        elif len(seen) == n_before:
            found.problems.append(
                FileProblem(str(place), "holds only trial folders that are read already; counted once")
            )
    return found


def _on_disk(root: Path, problems: list[FileProblem]) -> Iterator[tuple[Path, TrialFolder]]:
    entered: set[Path] = set()  # resolved, since links may lead back

    def complain(error: OSError) -> None:
        problems.append(FileProblem(str(error.filename), f"cannot be read: {error.strerror}"))

    for path, folders, names in os.walk(root, followlinks=True, onerror=complain):
        place = Path(path)
        resolved = place.resolve()
        if resolved in entered:
            folders.clear()
            continue
        entered.add(resolved)
        folders.sort(key=_natural)
        if TRIAL.fullmatch(place.name):
            yield resolved, TrialFolder(place, root, tuple(names), functools.partial(_text, place))


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def _in_archive(archive: Path, problems: list[FileProblem]) -> Iterator[tuple[Path, TrialFolder]]:
    contents: dict[PurePath, dict[str, bytes]] = {}
    try:
        with tarfile.open(archive, "r:*") as packed:
            for member in packed:
                path = PurePath(member.name)
                file = packed.extractfile(member) if TRIAL.fullmatch(path.parent.name) else None
                if file is not None:
                    contents.setdefault(path.parent, {})[path.name] = file.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        problems.append(FileProblem(str(archive), f"is no archive of trial folders that can be read: {error}"))
    for place, files in contents.items():
        own = archive.resolve() / place
        yield own, TrialFolder(archive / place, archive, tuple(files), functools.partial(_decoded, files))


def _decoded(files: Mapping[str, bytes], name: str) -> str:
    if name not in files:
        raise FileNotFoundError(name)
    return files[name].decode("utf-8")


def _natural(name: str) -> list[Any]:
    """trial_2 before trial_10."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def read_json(
    folder: TrialFolder, name: str, types: Mapping[str, Any], problems: list[FileProblem], cure: str = ""
) -> dict:
    """A JSON object, without the entries of a wrong type, each of which is a problem; {} where there is no file.

    Args:
        types: entry -> the types that it may have; null stands for what is not on record.
        cure: ends the message about a file that is no JSON object.
    """
    if name not in folder.names:
        return {}
    file = str(folder.place / name)
    try:
        content = json.loads(folder.text(name))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(FileProblem(file, f"cannot be read: {error or 'nested too deeply'}{cure}"))
        return {}
    kept = {}
    for key, value in content.items():
        if key in types and value is not None and not _is_of(value, types[key]):
            value_and_type = f"{short_json(value, 60)}, which is no {_named(types[key])}"
            problems.append(FileProblem(file, f"is left out in part: {key} is {value_and_type}"))
        else:
            kept[key] = value
    return kept


def _is_of(value: Any, kinds: Any) -> bool:
    # JSON's true is a Python int, and its integers may be larger than any float.
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return not isinstance(value, int) or abs(value) < _LARGEST


def _named(kinds: Any) -> str:
    return {str: "text", dict: "object", int: "whole number"}.get(kinds, "number")


def read_evaluations(folder: TrialFolder, metric: str, extra: Sequence[str], problems: list[FileProblem]) -> dict:
    """Column -> `[evaluations]`, of the rows that are whole.

    A metric that is empty or no number is NaN, and never a hit. Columns of `extra` may be absent: all NaN.
    """
    needed = ("global_step", *TIMES, metric)
    file = str(folder.place / "eval_measurements.csv")
    rows: list[list[float]] = []

    def complain(what: str) -> None:
        problems.append(FileProblem(file, what))

    try:
        lines = folder.text("eval_measurements.csv").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # a number that is cut short may still be one
            complain(f"line {len(lines)} is left out: it was cut short")
            lines.pop()
        reader = csv.reader(lines)
        header = next(reader, [])
        missing = [name for name in needed if name not in header]
        if missing:
            complain(f"has no column {', '.join(missing)}")
        else:
            rows = _rows(reader, header, needed, extra, complain)
    except FileNotFoundError:
        complain("is missing: no evaluation on record")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        complain(f"cannot be read: {error}")
    columns = (*needed, *extra)
    table = np.array(rows, float).reshape(len(rows), len(columns))
    n_lost = int(np.isnan(table[:, len(needed) - 1]).sum())
    if n_lost:
        complain(f"{metric} is not a number in {n_lost} of {len(table)} rows")
    return dict(zip(columns, table.T, strict=True))


def _rows(reader: Any, header: list[str], needed: Sequence[str], extra: Sequence[str], complain: Any) -> list:
    places = [header.index(name) for name in needed]
    more = [header.index(name) if name in header else None for name in extra]
    rows = []
    for number, row in enumerate(reader, start=2):
        try:
            if len(row) != len(header):
                raise ValueError(f"has {len(row)} of {len(header)} cells")
            values = [_number(row[place]) for place in places]
            if not all(map(math.isfinite, values[:-1])):
                raise ValueError("has a step or time that is not a number")
            rows.append(values + [math.nan if place is None else _number(row[place]) for place in more])
        except ValueError as error:
            complain(f"line {number} is left out: {error}")
    return rows


def _number(cell: str) -> float:
    """The harness leaves the cell of a metric that is not a number empty."""
    return float(cell) if cell.strip() else math.nan
