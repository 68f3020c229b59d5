"""The tables of the bench, and the suite for GPUs: what it runs, in which order, and what it says it did not run."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import flavours, tables
from benchmarks.timing import Deadline


@dataclasses.dataclass
class After(Deadline):
    """A deadline that passes after so many questions."""

    n_questions: int
    minutes: float = 8

    @property
    def has_passed(self):
        self.n_questions -= 1
        return self.n_questions < 0


@pytest.fixture
def options(tmp_path):
    names = {field.name: None for field in dataclasses.fields(tables.Options)}
    return lambda n: tables.Options(**names | {"out": tmp_path, "n_rounds": 3, "seed": 0, "deadline": After(n)})


@pytest.mark.parametrize(("n_questions", "n_models", "n_tables"), [(0, 1, 0), (2, 3, 0), (4, 4, 1), (9, 4, 3)])
def test_the_gpu_suite_stops_at_its_deadline_and_names_what_it_left_out(
    n_questions, n_models, n_tables, options, monkeypatch, tmp_path
):
    models, written, said = [], [], []
    monkeypatch.setattr(tables, "_workload_steps", lambda options, name, parts: models.append(name) or f"## {name}\n")
    monkeypatch.setattr(tables, "write", lambda name, options: written.append((name, options.batch_sizes)) or name)
    monkeypatch.setattr("benchmarks.kfac_jax_mlp.available", lambda: True)
    tables.write_gpu_suite(options(n_questions), said.append)
    assert models == ["imagenet_vit", "ogbg", "cifar10_wrn", "imagenet_vit"][:n_models]
    assert [name for name, _ in written] == ["flavours", "orthogonalisation", "kfac_jax"][:n_tables]
    assert all(sizes == (128, 256, 512, 1024, 2048) for _, sizes in written)
    text = (tmp_path / "steps.md").read_text()
    assert text.count("Not run, as the 8 minutes were over") == 4 - n_models
    assert sum("minutes were over" in line for line in said) == 3 - n_tables


def test_of_the_batch_sizes_the_first_is_measured_and_the_left_out_are_named(monkeypatch):
    class Compiled:
        bytes = 2**30

    monkeypatch.setattr(
        flavours.registry, "load", lambda name: type("W", (), {"synthetic_queue": lambda *_: iter([0])})
    )
    monkeypatch.setattr(flavours, "programs", lambda *_: dict.fromkeys(flavours.PROGRAMS, Compiled))
    monkeypatch.setattr(flavours, "milliseconds", lambda programs, n_rounds: dict.fromkeys(programs, 1.0))
    table = flavours.step_table("cifar10_wrn", (128, 256, 512), n_rounds=1, seed=0, deadline=After(0))
    assert "| 128 | expand |" in table and "| 256 |" not in table
    assert table.endswith("Not run, as the 8 minutes were over: 256, 512.")


@pytest.mark.parametrize(
    ("flag", "cure"),
    [
        ("--widths=a", "must be positive numbers, as 16,32"),
        ("--batch_sizes=16,0", "must be positive numbers, as 16,32"),
        ("--tables=steps,unknown", "must be of steps,operations"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_measured(flag, cure, tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "bench_step.py"
    command = [sys.executable, script, flag, f"--out={tmp_path / 'out'}"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode and process.stderr.startswith("error: ") and cure in process.stderr
    assert process.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
