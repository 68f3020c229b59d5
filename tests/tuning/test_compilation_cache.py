"""Compiled programs between processes: healed where damaged, and left out where they cannot be kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, jax, jax.numpy as jnp
from tuning import compilation_cache
compilation_cache.use(sys.argv[1])
print(float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(3))))
"""


def run(folder, **environment):
    wanted = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    own = {name: value for name, value in wanted.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], cwd=ROOT, env=own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_cut_off_entry_heals(tmp_path):
    assert run(tmp_path).stderr == ""
    entries = {path: path.stat().st_size for path in tmp_path.glob("*-cache")}
    for path in entries:
        path.write_bytes(path.read_bytes()[:100])
    damaged = run(tmp_path)
    assert all("is removed, and jit_" in line for line in damaged.stderr.splitlines()) and damaged.stderr
    assert {path: path.stat().st_size for path in tmp_path.glob("*-cache")} == pytest.approx(entries, rel=0.1)
    assert run(tmp_path).stderr == ""


def test_where_nothing_can_be_kept_one_line_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "cache")
    (line,) = done.stderr.splitlines()
    assert "compiled programs are not kept" in line and "--compilation_cache_dir" in line
