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
_LIBRARY_FOLDERS = {"site-packages", "dist-packages"}  # of an environment, of a user, or on PYTHONPATH
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


@functools.cache
def of(file: Path) -> str:
    """Hash of the submission `file`, of the other files in its folder and of all modules that these import.

    Installed libraries are not hashed: the records name their versions.
    """
    digest = hashlib.sha256()
    for path in sorted(sources(file)):
        digest.update(f"{path.parent.name}/{path.name}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:_LENGTH]


def sources(file: Path) -> set[Path]:
    """The submission `file`, the other files in its folder, and all of the project's modules that these import."""
    package = _package_of(file)
    root = file.parents[len(package)]
    pending = list(file.parent.rglob("*.py")) if file.stem == "submission" else [file]
    found: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        pending += _imported(path, root, package)
    return found


def _imported(path: Path, root: Path, package: list[str]) -> Iterator[Path]:
    """Files of the project's own modules that the source `path` imports, packages' `__init__.py` included."""
    for name in _module_names(path):
        parts = name.split(".")
        top = _top_folder(parts[0], root, package)
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


def _top_folder(name: str, root: Path, package: list[str]) -> Path | None:
    """The folder that holds the top-level module `name`; None for built-in and installed ones.

    Args:
        root: holds the submission's `package`, or the submission itself and modules beside it if that is empty.
    """
    if name == package[0] if package else (root / name).is_dir() or (root / f"{name}.py").is_file():
        return root
    if name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0]) if folders else Path(spec.origin) if spec and spec.origin else None
    if path is None or _LIBRARY_FOLDERS & set(path.parts) or path.is_relative_to(_STANDARD_LIBRARY):
        return None
    return path.parent
