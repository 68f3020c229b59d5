"""Which package imports which, and which libraries they may know: the walls of docs/design.md, read off the imports."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {"tests", "build", *(file.parent.name for file in ROOT.glob("*/pyvenv.cfg"))}  # virtual environments
FILES = sorted(file for file in ROOT.glob("[a-z]*/**/*.py") if file.relative_to(ROOT).parts[0] not in NOT_OURS)
PACKAGES = sorted({file.relative_to(ROOT).parts[0] for file in FILES})

# Package -> the others that it may import. A package without an entry, such as a new one, may import none.
MAY_IMPORT = {
    "tuning": {"workloads"},
    "benchmarks": {"submissions", "workloads", "tuning"},
    "scripts": {"workloads", "tuning", "benchmarks"},
    "examples": {"submissions"},
}
# Their files start without installation, as programs.
PROGRAMS = ("scripts", "examples")


def module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(file: Path) -> frozenset[str]:
    """Absolute names of all modules that a file imports anywhere, and of what it takes from them."""
    package = [*file.relative_to(ROOT).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            names |= {f"{source}.{alias.name}" for alias in node.names} | ({source} if node.module else set())
    return frozenset(names)


def uses(file: Path, name: str) -> bool:
    return any(f"{own}.".startswith(f"{name}.") for own in imported(file))


def test_every_package_is_looked_at():
    assert {"submissions", "workloads", "tuning", "benchmarks", "scripts", "examples"} <= set(PACKAGES)
    assert MAY_IMPORT.keys() <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_no_other_than_it_may(package):
    others = {other for other in PACKAGES if other not in {package, *MAY_IMPORT.get(package, ())}}
    own = [file for file in FILES if file.relative_to(ROOT).parts[0] == package]
    wrong = [
        f"{file.relative_to(ROOT)} imports {other}" for file in own for other in sorted(others) if uses(file, other)
    ]
    assert not wrong


def test_flags_are_read_in_programs_alone():
    readers = [file for file in FILES if any(uses(file, name) for name in ("absl.app", "absl.flags", "argparse"))]
    assert readers and {file.relative_to(ROOT).parts[0] for file in readers} <= set(PROGRAMS)


def test_no_module_imports_itself_by_way_of_others():
    known = {module(file): file for file in FILES}
    above = {name: {own for own in imported(file) & known.keys() if own != name} for name, file in known.items()}
    while leaves := [name for name, others in above.items() if not others]:
        above = {name: others.difference(leaves) for name, others in above.items() if name not in leaves}
    assert not above, f"a circle of imports among {', '.join(sorted(above))}"


@pytest.mark.parametrize("file", [file for file in FILES if module(file).startswith("submissions.kfac.")], ids=module)
def test_curvature_knows_neither_flax_nor_the_contract(file):
    """It sees the jaxpr and the parameter tree alone, so that a model may come from any library."""
    assert not uses(file, "flax")
    if not module(file).startswith("submissions.kfac.algoperf"):
        assert not uses(file, "submissions.algoperf") and not uses(file, "submissions.kfac.algoperf")
