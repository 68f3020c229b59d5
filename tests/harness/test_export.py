"""An exported submission is complete, is what it was exported from, and costs next to nothing to import."""

import ast
import importlib
import json
import re
import subprocess
import sys
import uuid
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import submissions
from tests.harness.runner import Run
from tests.harness.test_conformance import FIRST_ORDER, SETTINGS
from tests.harness.workloads import KINDS
from tuning.errors import UserError
from tuning.export import export
from tuning.ruleset import TuningRuleset

FOLDER = Path(submissions.__path__[0])
INFO = {"submission_name": "K-FAC: reduce", "authors": "A. Author, B. Author", "affiliations": "", "version": "1.0"}

# CPU seconds, which other processes do not lengthen.
IMPORT = """
import sys, time
import flax.linen, jax, optax
start = time.process_time()
import {module} as submission
seconds = time.process_time() - start
from jax._src import xla_bridge
own = {{name.split(".")[0] for name in sys.modules}} & {{"submissions", "tuning", "workloads", "kfac", "algoperf"}}
print(seconds, xla_bridge.backends_are_initialized(), sorted(own), submission.get_batch_size("wmt"))
"""


def third_party(folder: Path) -> set[str]:
    text = "\n".join(file.read_text() for file in folder.rglob("*.py"))
    return set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE)) - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("name", "ruleset"),
    [(name, r) for name in ("kfac_reduce", "kfac_muon_reduce") for r in TuningRuleset]
    + [("soap", TuningRuleset.EXTERNAL)],
)
def test_an_exported_folder_is_complete(name, ruleset, tmp_path):
    target = export(FOLDER / name, ruleset, tmp_path / "out", INFO)
    assert target == tmp_path / "out" / ruleset.folder_name / name and (target / "submission.py").exists()
    assert (target / "tuning_search_space.json").exists() == (ruleset is TuningRuleset.EXTERNAL)
    assert "Apache License" in (target / "LICENSE").read_text()
    info = yaml.safe_load((target / "submission_info.yml").read_text())
    assert info["submission_name"] == "K-FAC: reduce" and info["authors"] == "A. Author, B. Author"
    assert info["ruleset"] == ("external" if ruleset is TuningRuleset.EXTERNAL else "self-tuning")
    assert info["submission_folder"] == name and info["framework"] == "JAX"
    required = {line.split(">")[0] for line in (target / "requirements.txt").read_text().split()}
    assert {"jax", "optax"} <= required == third_party(target)
    for file in target.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert target in (file.parents[node.level - 1] / "x").parents, f"{file} imports from outside"
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(module=f"{ruleset.folder_name}.{name}.submission")],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, initialised, own, batch_size = done.stdout.split(maxsplit=1)[0], *done.stdout.split()[1:]
    assert float(seconds) < 1 and (initialised, own, batch_size) == ("False", "[]", "128")


def test_an_exported_submission_trains_as_the_original(tmp_path, monkeypatch, quick_compilation):
    export(FOLDER / FIRST_ORDER, TuningRuleset.EXTERNAL, tmp_path, INFO)
    monkeypatch.syspath_prepend(tmp_path)
    modules = [f"submissions.{FIRST_ORDER}.submission", f"external_tuning.{FIRST_ORDER}.submission"]
    workload = KINDS["criteo1tb"]()
    runs = [Run(importlib.import_module(name), workload, SETTINGS[FIRST_ORDER]).train(3) for name in modules]
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(UserError, match="nadamw.*no SELF_TUNING.*--ruleset=external_tuning"):
        export(FOLDER / "nadamw", TuningRuleset.SELF, tmp_path, INFO)
    export(FOLDER / "nadamw", TuningRuleset.EXTERNAL, tmp_path, INFO)
    with pytest.raises(UserError, match="nadamw' exists; remove it"):
        export(FOLDER / "nadamw", TuningRuleset.EXTERNAL, tmp_path, INFO)
    other = tmp_path / "package" / "mine"
    other.mkdir(parents=True)
    functions = ("init_optimizer_state", "update_params", "get_batch_size", "data_selection")
    (other / "tuning_search_space.json").write_text(json.dumps([{"a": 1}]))
    for library, words in (
        ("yaml", "imports yaml, which the official harness does not have"),
        ("workloads.spec", "imports '.*workloads/__init__.py' from outside '.*package'; move that code"),
    ):
        text = f"import {library}\n" + "\n".join(f"def {f}(*a, **k): pass" for f in functions)
        (other / "submission.py").write_text(text)
        with pytest.raises(UserError, match=words):
            export(other, TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert not (tmp_path / "external_tuning" / "mine").exists()


_FUNCTIONS = ("init_optimizer_state", "update_params", "get_batch_size", "data_selection")


def _own_submission(tmp_path: Path, text: str) -> Path:
    """A submission of `text` and the contract's functions, in a package of a name of its own."""
    folder = tmp_path / f"package_{uuid.uuid4().hex}" / "mine"
    folder.mkdir(parents=True)
    (folder / "tuning_search_space.json").write_text(json.dumps([{"a": 1}]))
    (folder / "submission.py").write_text(text + "\n" + "\n".join(f"def {f}(*a, **k): pass" for f in _FUNCTIONS))
    return folder


def test_what_the_official_harness_has_may_be_imported(tmp_path, monkeypatch):
    (tmp_path / "harness" / "algoperf").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "harness")
    own = _own_submission(tmp_path, "import algoperf\nfrom absl import logging\nimport jaxlib")
    target = export(own, TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert (target / "requirements.txt").read_text().strip() == ""


def test_an_absolute_import_of_an_own_module_is_refused(tmp_path, monkeypatch):
    own = _own_submission(tmp_path, "import own_helper_of_mine")
    (own / "own_helper_of_mine.py").touch()
    monkeypatch.syspath_prepend(own)
    with pytest.raises(UserError, match="imports own_helper_of_mine absolutely: write a relative import"):
        export(own, TuningRuleset.EXTERNAL, tmp_path, INFO)


def test_an_optax_that_the_official_harness_does_not_have_is_warned_of(tmp_path, caplog):
    export(FOLDER / "muon", TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert "it needs optax>=0.2.7, but the official harness pins optax==0.2.2" in caplog.text
    caplog.clear()
    export(FOLDER / "soap", TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert not caplog.text


def test_a_damaged_search_space_is_refused(tmp_path):
    own = _own_submission(tmp_path, "")
    (own / "tuning_search_space.json").write_text('{"learning_rate": {"min": 1e-3, ')
    with pytest.raises(UserError, match="tuning_search_space.json"):
        export(own, TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert not (tmp_path / "external_tuning").exists()


def test_data_files_are_exported_too(tmp_path):
    own = _own_submission(tmp_path, "")
    (own / "tables").mkdir()
    (own / "tables" / "table.json").write_text("[1]")
    (own / ".hidden").touch()
    (own / "LICENSE").write_text("its own")
    (own / "requirements.txt").write_text("of an earlier export")
    target = export(own, TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert (target / "requirements.txt").read_text().strip() == "" and (target / "LICENSE").read_text() == "its own"
    assert (target / "tables" / "table.json").read_text() == "[1]" and not (target / ".hidden").exists()


@pytest.mark.parametrize("line", ["\x0c\nfrom  ..shared_by_mine import z", "from ..shared_by_mine import z"])
def test_relative_imports_are_found_after_a_form_feed_and_wide_spaces(tmp_path, line):
    own = _own_submission(tmp_path, line)
    for folder in (own, own.parent):
        (folder / "__init__.py").touch()
    (own.parent / "shared_by_mine.py").write_text("z = 1")
    target = export(own, TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert "from .shared_by_mine import z" in (target / "submission.py").read_text()


def test_annotated_settings_count(tmp_path):
    own = _own_submission(tmp_path, "import optax\nSELF_TUNING: dict = {}\nOLDEST_OPTAX: str = '0.2.3'")
    target = export(own, TuningRuleset.SELF, tmp_path, INFO)
    assert (target / "requirements.txt").read_text() == "optax>=0.2.3\n"


def test_two_files_that_would_have_one_place_in_the_export_are_refused(tmp_path):
    own = tmp_path / "colliding" / "mine"
    own.mkdir(parents=True)
    functions = ("init_optimizer_state", "update_params", "get_batch_size", "data_selection")
    text = "from . import common\nfrom .. import common as shared\n"
    (own / "submission.py").write_text(text + "\n".join(f"def {f}(*a, **k): pass" for f in functions))
    (own / "tuning_search_space.json").write_text(json.dumps([{"a": 1}]))
    for folder in (own, own.parent):
        (folder / "__init__.py").touch()
        (folder / "common.py").write_text(f"# of {folder.name}")
    words = "colliding/(mine/)?common.py' and '.*common.py' would both be 'common.py' in the export; rename one"
    with pytest.raises(UserError, match=words):
        export(own, TuningRuleset.EXTERNAL, tmp_path, INFO)
    assert not (tmp_path / "external_tuning").exists()
