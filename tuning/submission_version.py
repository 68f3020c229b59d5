"""A submission's version: a hash of its folder and of the project code that it imports.

A commit would not suffice: a submission may lie outside any repository, or be edited without a commit.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_LENGTH = 16  # hexadecimal digits
_LIBRARY_FOLDERS = {"site-packages", "dist-packages"}  # whosever: an environment's, a user's, or one on PYTHONPATH


@functools.cache
def of(file: Path) -> str:
    """Hash of the submission `file`, of the other files in its folder and of all modules that these import.

    Installed libraries are not hashed: the records name their versions.
    """
    digest = hashlib.sha256()
    for path in sorted(_sources(file)):
        digest.update(f"{path.parent.name}/{path.name}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:_LENGTH]


def _sources(file: Path) -> set[Path]:
    in_package = (file.parent / "__init__.py").exists()
    pending = list(file.parent.rglob("*.py")) if file.stem == "submission" else [file]
    sources: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in sources:
            continue
        sources.add(path)
        pending += _imported(path, None if in_package else file.parent)
    return sources


def _imported(path: Path, extra_root: Path | None) -> Iterator[Path]:
    """Files of the project's own modules that the source `path` imports, packages' `__init__.py` included."""
    for name in _module_names(path):
        parts = name.split(".")
        top = _top_folder(parts[0], extra_root)
        if top is None:
            continue
        for length in range(1, len(parts) + 1):
            base = top.joinpath(*parts[:length])
            yield from (file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file())


def _module_names(path: Path) -> Iterator[str]:
    """Absolute names that a source imports; `from a import b` gives `a` and `a.b`, as b may be a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # no module can import it
    package = _package_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from filter(None, [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)])


def _package_of(path: Path) -> list[str]:
    parts: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return parts


def _top_folder(name: str, extra_root: Path | None) -> Path | None:
    """The folder that holds the top-level module `name`; None for built-in and installed ones."""
    if extra_root is not None and ((extra_root / name).is_dir() or (extra_root / f"{name}.py").is_file()):
        return extra_root
    if name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0]) if folders else Path(spec.origin) if spec and spec.origin else None
    if path is None or _LIBRARY_FOLDERS & set(path.parts) or path.is_relative_to(_standard_library()):
        return None
    return path.parent


@functools.cache
def _standard_library() -> str:
    return sysconfig.get_path("stdlib")
