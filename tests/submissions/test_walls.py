"""Who may import what under submissions/, so that its folders run alone in another harness."""

import ast
from pathlib import Path

import pytest

import submissions

FOLDER = Path(submissions.__path__[0])


def imported(file: Path) -> set[str]:
    """Absolute names of all modules that a file of submissions/ imports, and of what it takes from them."""
    package = ["submissions", *file.relative_to(FOLDER).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def uses(file: Path, package: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for name in imported(file))


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: str(file.relative_to(FOLDER)))
def test_submissions_stand_alone(file):
    assert not uses(file, "workloads") and not uses(file, "tuning")


CURVATURE_FILES = sorted((FOLDER / "kfac").glob("*.py"))


@pytest.mark.parametrize("file", CURVATURE_FILES, ids=lambda file: file.stem)
def test_curvature_knows_neither_flax_nor_the_contract(file):
    """It sees the jaxpr and the parameter tree alone, so that a model may come from any library."""
    for other in ("flax", "submissions.algoperf", "submissions.kfac.algoperf"):
        assert not uses(file, other)
