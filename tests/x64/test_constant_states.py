"""The state of an optimiser keeps its dtypes, so that a step may be the body of a loop."""

import jax
import jax.numpy as jnp
import pytest

from submissions.kfac import eigenbasis_adam, find_layers, kfac, kfac_muon

SETTINGS = {"learning_rate": 0.1, "damping": 0.01}
OPTIMIZERS = {
    "kfac": lambda layers: kfac(layers, **SETTINGS),
    "kfac_muon": lambda layers: kfac_muon(layers, **SETTINGS),
    "eigenbasis_adam": lambda layers: eigenbasis_adam(layers, learning_rate=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_state_keeps_its_dtypes(name, dtype, randomized):
    shapes = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}, "norm": {"scale": jnp.zeros(2)}}
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), randomized(shapes))
    optimizer = OPTIMIZERS[name](find_layers(params))

    def step(state, _):
        factors = {"dense": (jnp.eye(4, dtype=jnp.float64), jnp.eye(2, dtype=jnp.float64))}
        updates, state = optimizer.update(params, state, params, factors=factors, refresh=True)
        return state, updates

    begun = optimizer.init(params)
    ended, updates = jax.lax.scan(step, begun, length=2)
    assert jax.tree.map(jnp.dtype, jax.tree.map(lambda leaf: leaf.dtype, ended)) == jax.tree.map(
        lambda leaf: leaf.dtype, begun
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    averages = [leaf for leaf in jax.tree.leaves(ended) if leaf.ndim == 3]
    assert {leaf.dtype for leaf in averages} == {jnp.dtype(dtype)}
