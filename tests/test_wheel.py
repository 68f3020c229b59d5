"""The wheel: what is in it, and that the README's example runs from it in a new environment."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("submissions", "workloads", "tuning")
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(*command, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as setuptools writes into the folder that it builds from."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy / file)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", "wheel", *options, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel, and the libraries that are installed here, but not this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # Of a folder that a .pth file names, the .pth files are not read: the editable install of this checkout is one.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return python


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    own = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {f"{package}/py.typed" for package in PACKAGES} | {"workloads/text/language_reference.txt"} <= own
    assert own <= packed, sorted(own - packed)


@pytest.mark.slow
def test_the_readmes_example_runs_from_the_wheel(python, tmp_path):
    (example,) = _EXAMPLE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    where = "\nimport submissions.kfac\nprint(submissions.kfac.__file__)\n"
    (tmp_path / "example.py").write_text(example + where, encoding="utf-8")
    *_, loss, place = run(python, "example.py", cwd=tmp_path).splitlines()
    assert Path(place).is_relative_to(python.parents[1])
    assert float(loss.removeprefix("loss ")) < 1.5  # ln 10 = 2.30 at first


@pytest.mark.slow
def test_the_wheels_requirements_are_met_by_the_pinned_libraries(python, tmp_path):
    done = subprocess.run([str(python), "-m", "pip", "check"], cwd=tmp_path, capture_output=True, text=True)
    name = project()["name"]
    assert not [line for line in done.stdout.splitlines() if line.startswith(name)]
    shown = run(python, "-m", "pip", "show", name, cwd=tmp_path)
    assert f"Version: {project()['version']}" in shown and str(python.parents[1]) in shown


def test_the_version_stands_in_one_place():
    version = re.compile(rf"(?<![\d.]){re.escape(project()['version'])}(?![\d.])")
    others = [ROOT / "CITATION.cff", ROOT / "Dockerfile", ROOT / "README.md", *(ROOT / "submissions").rglob("*.py")]
    assert not [file for file in others if version.search(file.read_text(encoding="utf-8"))]
