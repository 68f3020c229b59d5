"""Finds trial folders, also in archives, and reads their files. Files that cannot be read are listed as problems."""

import csv
import functools
import io
import json
import lzma
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tuning.errors import short_json

TRIAL = re.compile(r"trial_\d+(?:_seed_\d+)?")
# Archives of trial folders, as `tuning.report.archive` packs them.
ARCHIVE_ENDING = ".tar.xz"
_MAX_NUMBER = 10**300
TIMES = ("accumulated_submission_time", "accumulated_eval_time", "accumulated_logging_time")


@dataclass(frozen=True)
class FileProblem:
    """What is wrong with a file. The report still shows all that could be read."""

    file: str
    what: str


@dataclass(frozen=True)
class TrialFolder:
    """One trial folder, on disk or in an archive.

    Attributes:
        path: of the folder, which is below `root`.
        root: the folder or archive that the user named.
        names: of its files.
        text: a file's name -> its content; raises OSError or UnicodeDecodeError.
    """

    path: PurePath
    root: PurePath
    names: tuple[str, ...]
    text: Callable[[str], str]


def last_flags(folder: TrialFolder) -> str:
    """The name of the flags of the trial's last start: each resumption adds a file."""
    numbers = [int(match[1]) for name in folder.names if (match := re.fullmatch(r"flags_(\d{1,9})\.json", name))]
    return f"flags_{max(numbers, default=0)}.json"


def find(roots: Iterable[Path]) -> tuple[list[TrialFolder], list[FileProblem]]:
    """Every trial folder under the roots, which are folders or archives. A folder that is reached twice counts once."""
    problems: list[FileProblem] = []
    by_path: dict[Path, TrialFolder] = {}  # by resolved path
    for root in roots:
        n_before = len(by_path)
        folders = dict(_in_archive(root, problems) if root.is_file() else _on_disk(root, problems))
        for path, folder in folders.items():
            by_path.setdefault(path, folder)
        if not folders:
            problems.append(FileProblem(str(root), "holds no trial folder (trial_1, trial_2, …)"))
        elif len(by_path) == n_before:
            problem = "holds only trial folders that are read already; counted once"
            problems.append(FileProblem(str(root), problem))
    return list(by_path.values()), problems


def _on_disk(root: Path, problems: list[FileProblem]) -> Iterator[tuple[Path, TrialFolder]]:
    entered: set[Path] = set()  # resolved, since links may form a loop

    def add_problem(error: OSError) -> None:
        problems.append(FileProblem(str(error.filename), f"cannot be read: {error.strerror}"))

    for path, folders, names in os.walk(root, followlinks=True, onerror=add_problem):
        folder = Path(path)
        resolved = folder.resolve()
        if resolved in entered:
            folders.clear()
            continue
        entered.add(resolved)
        folders.sort(key=_natural)
        if TRIAL.fullmatch(folder.name):
            yield resolved, TrialFolder(folder, root, tuple(names), functools.partial(_text, folder))


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def _in_archive(archive: Path, problems: list[FileProblem]) -> Iterator[tuple[Path, TrialFolder]]:
    contents: dict[PurePath, dict[str, bytes]] = {}
    repeated: list[str] = []
    try:
        # As a whole, so that the checksum is verified: tarfile takes a damaged header for the end of the archive.
        tar = lzma.decompress(archive.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as packed:
            for member in packed:
                path = PurePath(member.name)
                file = packed.extractfile(member) if TRIAL.fullmatch(path.parent.name) else None
                if file is not None:
                    own = contents.setdefault(path.parent, {})
                    repeated += [member.name] if path.name in own else []
                    own[path.name] = file.read()
            if any(tar[packed.offset : packed.offset + tarfile.BLOCKSIZE]):
                raise tarfile.ReadError(f"damaged at byte {packed.offset}")
    except (OSError, tarfile.TarError, EOFError, lzma.LZMAError) as error:
        problems.append(FileProblem(str(archive), f"is no archive of trial folders that can be read: {error}"))
        return
    if repeated:
        what = f"holds {len(repeated)} files twice, and only the last of each is read, such as {repeated[0]}"
        problems.append(FileProblem(str(archive), f"{what}; pack the folders again"))
    for path, files in contents.items():
        folder = TrialFolder(archive / path, archive, tuple(files), functools.partial(_decoded, files))
        yield archive.resolve() / path, folder


def _decoded(files: Mapping[str, bytes], name: str) -> str:
    if name not in files:
        raise FileNotFoundError(name)
    return files[name].decode("utf-8")


def _natural(name: str) -> list[Any]:
    """Sorting key that puts trial_2 before trial_10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def read_json(
    folder: TrialFolder, name: str, types: Mapping[str, Any], problems: list[FileProblem], cure: str = ""
) -> dict:
    """A JSON object; {} if there is no file. Entries of a wrong type are left out, and listed as problems.

    Args:
        types: entry -> the types that it may have. Null is always allowed, and means that a value is not on record.
        cure: the end of the message about a file that is no JSON object.
    """
    if name not in folder.names:
        return {}
    file = str(folder.path / name)
    try:
        content = json.loads(folder.text(name))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(FileProblem(file, f"cannot be read: {error or 'nested too deeply'}{cure}"))
        return {}
    kept = {}
    for key, value in content.items():
        if key in types and value is not None and not _has_type(value, types[key]):
            value_and_type = f"{short_json(value, 60)}, which is no {_type_name(types[key])}"
            problems.append(FileProblem(file, f"is left out in part: {key} is {value_and_type}"))
        else:
            kept[key] = value
    return kept


def _has_type(value: Any, types: Any) -> bool:
    # JSON's true is a Python int, and its integers may be larger than any float.
    if isinstance(value, bool) or not isinstance(value, types):
        return False
    return not isinstance(value, int) or abs(value) < _MAX_NUMBER


def _type_name(types: Any) -> str:
    return {str: "text", dict: "object", int: "whole number"}.get(types, "number")


def read_evaluations(folder: TrialFolder, metric: str, extra: Sequence[str], problems: list[FileProblem]) -> dict:
    """Column -> `[evaluations]`, from the rows that are complete.

    A metric that is empty or not a number becomes NaN, which is never a hit. A missing column of `extra` is all NaN.
    """
    required = ("global_step", *TIMES, metric)
    file = str(folder.path / "eval_measurements.csv")
    rows: list[list[float]] = []

    def add_problem(what: str) -> None:
        problems.append(FileProblem(file, what))

    try:
        lines = folder.text("eval_measurements.csv").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # a truncated number may still look like one
            add_problem(f"line {len(lines)} is left out: it was cut short")
            lines.pop()
        reader = csv.reader(lines)
        header = next(reader, [])
        missing = [name for name in required if name not in header]
        if missing:
            add_problem(f"has no column {', '.join(missing)}")
        else:
            rows = _rows(reader, header, required, extra, add_problem)
    except FileNotFoundError:
        add_problem("is missing: no evaluation on record")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        add_problem(f"cannot be read: {error}")
    columns = (*required, *extra)
    table = np.array(rows, float).reshape(len(rows), len(columns))
    n_lost = int(np.isnan(table[:, len(required) - 1]).sum())
    if n_lost:
        add_problem(f"{metric} is not a number in {n_lost} of {len(table)} rows")
    return dict(zip(columns, table.T, strict=True))


def _rows(reader: Any, header: list[str], required: Sequence[str], extra: Sequence[str], add_problem: Any) -> list:
    required_columns = [header.index(name) for name in required]
    extra_columns = [header.index(name) if name in header else None for name in extra]
    rows = []
    for number, row in enumerate(reader, start=2):
        try:
            if len(row) != len(header):
                raise ValueError(f"has {len(row)} of {len(header)} cells")
            values = [_number(row[column]) for column in required_columns]
            if not all(map(math.isfinite, values[:-1])):
                raise ValueError("has a step or time that is not a number")
            rows.append(values + [math.nan if column is None else _number(row[column]) for column in extra_columns])
        except ValueError as error:
            add_problem(f"line {number} is left out: {error}")
    return rows


def _number(cell: str) -> float:
    """The number in a cell; NaN for an empty cell, which the harness writes for NaN."""
    return float(cell) if cell.strip() else math.nan
