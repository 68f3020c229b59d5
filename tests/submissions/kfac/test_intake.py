"""What an update takes in: here, clipping beside gradients that are lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac.intake import clip_finite
from submissions.kfac.layers import find_layers

PARAMS = {
    "one": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)},
    "other": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)},
    "scale": jnp.zeros(4),
}


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e20])
def test_a_lost_gradient_takes_no_part_in_the_clip(broken):
    """A norm that is not finite would make all gradients zero, or no numbers."""
    gradients = jax.tree.map(lambda x: x + 3.0, PARAMS)
    gradients["other"]["bias"] = jnp.asarray([1.0, broken])
    clip = clip_finite(find_layers(PARAMS), 1.0)
    clipped, state = clip.update(gradients, clip.init(PARAMS))
    kept = 3.0 / (3.0 * np.sqrt(3 * 2 + 2 + 4))
    np.testing.assert_allclose(clipped["one"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(clipped["scale"], kept, rtol=1e-6)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(clipped["other"]))
    assert state.fallbacks == (0, 1)
