"""Counts of a compiled program, beside those of a program whose collectives and factorisations are known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scaling

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from benchmarks.scaling import counts

mesh = Mesh(np.array(jax.devices()), ("batch",))

def factorise(stack):
    return jax.lax.map(jnp.linalg.cholesky, stack)

def step(batch, stack):
    spread = jax.shard_map(factorise, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))(stack)
    return batch.sum(0), jax.lax.with_sharding_constraint(spread, NamedSharding(mesh, P()))

split, everywhere = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
shapes = jax.ShapeDtypeStruct((8, 100), jnp.float32), jax.ShapeDtypeStruct((8, 5, 5), jnp.float32)
compiled = jax.jit(step, in_shardings=(split, everywhere), out_shardings=everywhere).lower(*shapes).compile()
print(*counts(compiled.as_text()))
"""


@pytest.mark.parametrize(("n_devices", "n_bytes", "work"), [(1, 0, 8 * 5**3), (4, 4 * 100 + 4 * 8 * 25, 2 * 5**3)])
def test_collectives_and_factorisations_are_counted_with_their_loops(n_devices, n_bytes, work):
    """Four devices sum 100 numbers, and gather eight matrices of 5 × 5, of which each has factorised two in a loop."""
    own = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(n_bytes), str(work)]


@pytest.mark.slow
def test_a_table_of_a_real_workload():
    rows = [row.split("|")[1:-1] for row in scaling.table("mnist_vit", 8, ["kfac_reduce"], 0).splitlines()[2:]]
    shares = {int(row[2]): (float(row[5]), float(row[6])) for row in rows if row[1].strip() == "refresh"}
    assert shares[1] == (1.0, 1.0) and all(ideal <= share <= 1 for share, ideal in shares.values())
    assert shares[8][0] < shares[2][0] < 1
    sent = {(row[1].strip(), int(row[2])): float(row[3]) for row in rows}
    assert sent["step", 1] == sent["refresh", 1] == 0
    assert 0 < sent["step", 8] < sent["refresh", 8]
