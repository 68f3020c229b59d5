"""JAX random keys as seeds for generators that run on the host."""

from typing import Any

import jax
import numpy as np


def host_seed(rng: Any) -> tuple[int, ...]:
    """Entropy for `numpy.random.SeedSequence`, from a raw `PRNGKey`, a typed key or an int."""
    if isinstance(rng, (int, np.integer)):
        return (int(rng),)
    if jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.key_data(rng)
    return tuple(int(word) for word in np.asarray(rng).ravel())
