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


ARRAY_FILES = (
    "sharing",
    "factors",
    "intake",
    "precondition",
    "eigenbasis",
    "stacks",
    "trust_region",
    "fisher",
    "convolution",
    "layers",
)


@pytest.mark.parametrize("name", ARRAY_FILES)
def test_array_files_know_neither_flax_nor_the_contract(name):
    file = FOLDER / "kfac" / f"{name}.py"
    assert uses(file, "jax")
    for other in ("flax", "submissions.algoperf", "submissions.kfac.algoperf"):
        assert not uses(file, other)


def test_capture_alone_knows_flax():
    assert [file.stem for file in sorted((FOLDER / "kfac").glob("*.py")) if uses(file, "flax")] == ["capture"]
