"""The documentation: Python examples run, commands are accepted, pages are reachable, the site builds without warnings.

The commands on the pages "Adding a …" are carried out, see `test_adding.py`. The others would take hours, or need
Docker, a cluster or a download: the flags of each are checked by its script's own parser.
"""

import collections
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import entrypoint

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


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
        for name, job in yaml.safe_load(file.read_text())["jobs"].items():
            assert any("make " in step.get("run", "") for step in job["steps"]), (file.name, name)


_IN_IMAGE = {"data": "/data", "experiments": "/experiments"}  # the image's volumes


def _blocks():
    return [(page.stem, block) for page in PAGES for block in _SHELL.findall(page.read_text(encoding="utf-8"))]


def _words(block: str) -> list[list[str]]:
    """The words of each command of a block, variables replaced by 1, without the `&` of one in the background."""
    lines = block.replace("\\\n", " ").splitlines()
    commands = [re.sub(r"\$\w+", "1", line.removesuffix(" &")) for line in lines]
    return [words for command in commands if (words := shlex.split(command, comments=True))]


def _program(words: list[str]) -> list[str] | None:
    """What a documented command runs of this project: a script and its arguments, or None."""
    image = next((i for i, word in enumerate(words) if re.fullmatch(r"kfac(:\w+|\.sif)?", word)), None)
    if image is not None and "run" in words[:image]:
        return entrypoint.command(words[image + 1 :], _IN_IMAGE)[1:]
    script = next((i for i, word in enumerate(words) if word.startswith("scripts/") and word.endswith(".py")), None)
    return None if script is None else words[script:]


@pytest.mark.parametrize(("page", "block"), _blocks())
def test_a_shell_block_is_shell_and_its_make_targets_exist(page, block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in _words(block):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets


# One process for all commands of a script, whose imports take seconds; it prints the command that is refused.
_PARSE = """
import importlib, json, sys
from absl import flags
sys.path.insert(0, "scripts")
importlib.import_module(sys.argv[1])
import command
for words in json.load(sys.stdin):
    try:
        command._parse_flags(words)
    except Exception:
        print(*words)
        raise
    flags.FLAGS.unparse_flags()
"""


@pytest.mark.slow
def test_every_documented_command_is_accepted_by_its_script(tmp_path):
    programs = [program for _, block in _blocks() for words in _words(block) if (program := _program(words))]
    assert {Path(program[0]).name for program in programs} >= {
        "run_trial.py",
        "run_sweep.py",
        "report.py",
        "prepare_data.py",
    }
    by_script = collections.defaultdict(list)
    for program in programs:
        if program[:2] == ["-m", "pytest"]:
            assert (ROOT / program[-1]).exists()
        else:
            by_script[Path(program[0]).stem].append(program)
    for script, commands in by_script.items():
        process = [sys.executable, "-c", _PARSE, script]
        done = subprocess.run(process, input=json.dumps(commands), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "api" / "index.html").read_text(encoding="utf-8").count("doc-function") > 5
