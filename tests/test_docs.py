"""The documentation: every Python example in it runs, every page is reachable, and the site builds without warnings."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _with_examples():
    return [page for page in PAGES[1:] if _EXAMPLE.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", _with_examples(), ids=lambda page: page.stem)
def test_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """One after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for example in _EXAMPLE.findall(page.read_text(encoding="utf-8")):
        exec(compile(example, str(page), "exec"), names)


def test_the_readmes_training_loop_lowers_its_loss(capsys, tmp_path, monkeypatch):
    test_examples_of_a_page_run(ROOT / "README.md", tmp_path, monkeypatch)
    loss = float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1])
    assert loss < 1.5  # ln 10 = 2.30 at first


def test_every_page_is_in_the_navigation():
    pages = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert pages == {page.name for page in PAGES[1:]}


def test_every_workflow_calls_make():
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        steps = [step for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job["steps"]]
        assert any(step.get("run", "").startswith("make ") for step in steps), file.name


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "api" / "index.html").read_text(encoding="utf-8").count("doc-function") > 5
