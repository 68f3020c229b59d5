"""Follows the pages "Adding a …" of the documentation to the letter, in a copy of the project."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.molecules import data_dir

ROOT = Path(__file__).resolve().parents[1]
_CODE = ("submissions", "workloads", "tuning", "scripts")
# ```python title="path" is a file; ```python title="path, after LINE" is an insertion behind that line.
_FILE = re.compile(r'^```\w+ title="([^",]+)(?:, after ([^"]+))?"\n(.*?)^```', re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _write_files(page: str, copy: Path) -> None:
    for path, after, content in _FILE.findall(page):
        file = copy / path
        if after:
            before, found, rest = file.read_text(encoding="utf-8").partition(after + "\n")
            assert found, f"{path} has no line {after!r}"
            content = before + found + content + rest
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["submission", "workload", "approximation"])
def test_what_a_page_adds_runs(kind, tmp_path):
    (file,) = (ROOT / "docs").glob(f"adding-a*-{kind}.md")
    page = file.read_text(encoding="utf-8")
    for folder in _CODE:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    _write_files(page, tmp_path)
    (commands,) = _COMMANDS.findall(page)
    words = shlex.split(commands.replace("\\\n", " "))
    assert words[0] == "python"
    command = [sys.executable, *words[1:], f"--data_dir={data_dir()}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (outcome,) = (tmp_path / "experiments").glob("*/*/trial_1/outcome.json")
    assert json.loads(outcome.read_text(encoding="utf-8"))["global_step"] == 2
