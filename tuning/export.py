"""Exports a submission for the official leaderboard: one folder with all the code that the submission imports.

The official checker wants `external_tuning/NAME/` or `self_tuning/NAME/`, with submission.py and, for external tuning,
tuning_search_space.json. Source: mlcommons/algorithmic-efficiency, `algorithms/submission_checker.py`.
"""

import ast
import io
import json
import logging
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tuning import search_space, submission, submission_version
from tuning.errors import UserError
from tuning.ruleset import TuningRuleset

_LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"  # of this project's code in the export
_NAME = re.compile(r"[a-z0-9_]+")
# The oldest versions that the tests run on, which the official harness pins.
_REQUIREMENTS = {"jax": "jax>=0.7.0", "flax": "flax>=0.10.7", "optax": "optax>=0.2.2", "numpy": "numpy"}
_HARNESS = {"absl", "algoperf", "jaxlib"}  # it has these, too
_LOG = logging.getLogger(__name__)


def export(path: str | Path, ruleset: TuningRuleset, out: str | Path, info: Mapping[str, str]) -> Path:
    """Writes `out/RULESET/NAME` and returns it.

    Args:
        path: the submission's folder, `.../PACKAGE/NAME`. Imported code in PACKAGE is exported, too.
        info: "submission_name" (the folder's if empty), "authors", "affiliations" and "version" of submission_info.yml.

    Raises:
        UserError: there is no such submission, the ruleset does not allow it, it imports code that cannot be exported,
            or the target folder exists.
    """
    exported = submission.load(path)
    folder = exported.file.parent
    _check(exported, ruleset)
    target = Path(out) / ruleset.folder_name / folder.name
    if target.exists():
        raise UserError(f"{str(target)!r} exists; remove it, or give another --out")
    files = needed_files(exported.file)
    contents, sources = {Path("__init__.py"): ""}, dict[Path, Path]()
    for file in files:
        # The submission's own files are at the top, beside the package's others.
        place = file.relative_to(folder if folder in file.parents else folder.parent)
        if (other := sources.setdefault(place, file)) != file:
            raise UserError(f"{str(other)!r} and {str(file)!r} would both be {str(place)!r} in the export; rename one")
        contents[place] = _exported_text(file, folder)
    data = _data_files(folder)
    contents[Path("requirements.txt")] = "\n".join(_requirements(files, exported.file)) + "\n"
    contents[Path("submission_info.yml")] = _yaml(exported.file, ruleset, info)
    target.mkdir(parents=True)
    shutil.copyfile(_LICENSE, target / "LICENSE")
    for file in data:  # before the files that are made here, which count
        (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.relative_to(folder))
    for relative, text in contents.items():
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        (target / relative).write_text(text, encoding="utf-8")
    if ruleset is TuningRuleset.EXTERNAL:
        shutil.copyfile(exported.search_space_file, target / "tuning_search_space.json")
    return target


def needed_files(file: Path) -> list[Path]:
    """The files of the submission's folder and all that they import, without the `__init__.py` above the folder."""
    package = file.parents[1]
    files = submission_version.sources(file) - {folder / "__init__.py" for folder in file.parents[1:]}
    if outside := sorted(path for path in files if not path.is_relative_to(package)):
        problem = f"the submission imports {str(outside[0])!r} from outside {str(package)!r}"
        raise UserError(f"{problem}; move that code beside the submission")
    return sorted(files)


def _data_files(folder: Path) -> list[Path]:
    """The files in the submission's folder that are neither code nor search spaces."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and file.suffix != ".py"
        and not file.name.endswith("_search_space.json")
        and not any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(folder).parts)
    )


def _check(exported: submission.Submission, ruleset: TuningRuleset) -> None:
    file, name = exported.file, exported.file.parent.name
    if file.name != "submission.py" or not _NAME.fullmatch(name):
        raise UserError(f"{str(file)!r} must be submission.py in a folder of lower-case letters, digits and '_'")
    if ruleset is TuningRuleset.EXTERNAL and not exported.search_space_file.exists():
        raise UserError(f"{str(file.parent)!r} has no tuning_search_space.json, which external tuning needs; add it")
    if ruleset is TuningRuleset.EXTERNAL:
        search_space.read(exported.search_space_file)
    if ruleset is TuningRuleset.SELF and _assigned(file, "SELF_TUNING") is None:
        raise UserError(f"submission {name!r} has no SELF_TUNING setting; add one, or give --ruleset=external_tuning")


def _assigned(file: Path, name: str) -> ast.expr | None:
    """The expression that a module assigns to the name; None if there is no assignment."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return value
    return None


def _exported_text(file: Path, folder: Path) -> str:
    """A file's text. Relative imports of the submission's own files lose a level, as the files move up a folder."""
    # At line feeds alone, as the parser counts lines.
    lines = io.StringIO(file.read_text(encoding="utf-8")).readlines()
    if folder not in file.parents:
        return "".join(lines)
    depth = len(file.relative_to(folder).parts)
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.ImportFrom) and node.level > depth:
            dots = "." * node.level
            changed, n = re.subn(rf"from\s+{re.escape(dots)}", f"from {dots[1:]}", lines[node.lineno - 1], count=1)
            if not n:
                raise UserError(f"{file}:{node.lineno}: write the relative import as `from {dots}… import …`")
            lines[node.lineno - 1] = changed
    return "".join(lines)


def _requirements(files: list[Path], main: Path) -> list[str]:
    """The libraries that the files import; optax in the version that the main file states as OLDEST_OPTAX.

    Raises:
        UserError: the official harness does not have a library.
    """
    imported = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
    others = imported - set(sys.stdlib_module_names)
    own = {path.stem for path in main.parent.iterdir() if path.is_dir() or path.suffix == ".py"} | {main.parent.name}
    if absolute := sorted(others & own - set(_REQUIREMENTS) - _HARNESS):
        raise UserError(f"the submission imports {', '.join(absolute)} absolutely: write a relative import")
    unknown = sorted(others - set(_REQUIREMENTS) - _HARNESS)
    if unknown:
        raise UserError(f"the submission imports {', '.join(unknown)}, which the official harness does not have")
    oldest = _assigned(main, "OLDEST_OPTAX")
    needed = _REQUIREMENTS | ({"optax": f"optax>={ast.literal_eval(oldest)}"} if oldest else {})
    if needed["optax"] != _REQUIREMENTS["optax"]:
        pin = _REQUIREMENTS["optax"].replace(">=", "==")
        _LOG.warning("it needs %s, but the official harness pins %s and allows no other", needed["optax"], pin)
    return [needed[name] for name in needed if name in others]


def _yaml(file: Path, ruleset: TuningRuleset, info: Mapping[str, str]) -> str:
    """The values are JSON strings, which YAML reads alike."""
    description = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    values = {
        "submission_name": info["submission_name"] or file.parent.name,
        "submission_folder": file.parent.name,
        "authors": info["authors"],
        "affiliations": info["affiliations"],
        "version": info["version"],
        "ruleset": "external" if ruleset is TuningRuleset.EXTERNAL else "self-tuning",
        "framework": "JAX",
        "description": description.split("\n")[0],
    }
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
