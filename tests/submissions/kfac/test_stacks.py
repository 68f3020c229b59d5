"""Stacks of matrices, split over devices."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac.eigenbasis import eigenvectors
from submissions.kfac.roots import inverse_root
from submissions.kfac.stacks import one_by_one

# In a process of its own, as the number of (simulated) devices is.
_ON_TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from submissions.kfac import find_layers, kfac_muon
from submissions.kfac.eigenbasis import identity, refresh
from submissions.kfac.precondition import damped_inverses, init_inverses
from submissions.kfac.stacks import map_by_size

mesh, rng, seen = Mesh(np.array(jax.devices()), ("batch",)), np.random.default_rng(0), []
assert mesh.size == 2
stacks = {"a": (3, 5), "b": (2, 5), "c": (1, 4), "d": (4, 6)}
given = {key: (jnp.asarray(rng.normal(size=(k, n, n))),) for key, (k, n) in stacks.items()}

def doubled(stack):
    seen.append(stack.shape)
    return 2 * stack, stack.sum((1, 2))

got = jax.jit(lambda given: map_by_size(doubled, given, mesh))(given)
print("shares", sorted(seen))  # of 3 + 2, of 1 and of 4 matrices
for key, (stack,) in given.items():
    np.testing.assert_allclose(got[key][0], 2 * stack, rtol=1e-6)
    np.testing.assert_allclose(got[key][1], stack.sum((1, 2)), rtol=1e-5)

def covariances(k, n):
    rows = rng.normal(size=(k, 2 * n, n))
    return jnp.asarray(np.einsum("kri,krj->kij", rows, rows) / n, jnp.float32)

factors = {"5x4": (covariances(3, 5), covariances(3, 4)), "4x1": (covariances(1, 4), covariances(1, 1))}
shapes = {name: [f.shape for f in pair] for name, pair in factors.items()}
for is_full in (None, jnp.asarray(False)):
    start = {name: identity(*pair) for name, pair in shapes.items()}
    one, two = (jax.jit(lambda f, s, m=m: refresh(f, s, is_full, m))(factors, start) for m in (None, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
params = {name: {"kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)} for name in "abc"}
pairs = {name: (covariances(1, 5)[0], None) for name in params}
def muon(mesh):
    optimizer = kfac_muon(find_layers(params), learning_rate=1.0, mesh=mesh)
    return jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p, factors=pairs, refresh=True)[0])(params)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), muon(None), muon(mesh))
start = {name: init_inverses(*pair) for name, pair in shapes.items()}
informed = {name: jnp.ones(len(pair[0]), bool) for name, pair in factors.items()}
inverted = lambda f, mesh: damped_inverses(f, jnp.float32(0.1), start, informed, mesh)
one, two = (jax.jit(lambda f, m=m: inverted(f, m))(factors) for m in (None, mesh))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)
"""


@pytest.mark.slow
def test_each_device_works_on_its_share():
    """Rounded up, and with the results of one device."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _ON_TWO_DEVICES]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "shares [(1, 4, 4), (2, 6, 6), (3, 5, 5)]"


def test_no_batch_of_decompositions_reaches_a_cpu_even_under_vmap():
    """jaxlib's batched LAPACK kernels can wait for each other forever."""
    seeds = jnp.broadcast_to(jnp.eye(4), (2, 3, 4, 4))
    for function in (one_by_one(eigenvectors), functools.partial(inverse_root, power=0.25)):
        program = jax.jit(jax.vmap(function)).trace(seeds).lower(lowering_platforms=("cpu",)).as_text()
        calls = [line for line in program.splitlines() if "custom_call" in line and "syevd" in line]
        assert calls and all("tensor<4x4xf32>" in line and "x4x4x" not in line for line in calls), calls
        np.testing.assert_allclose(jax.vmap(function)(seeds)[1], function(seeds[0]), atol=1e-5)
