"""Gradients at the start of an update: those that are lost, and the clip of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac.accumulation import usable_gradients
from submissions.kfac.factors import Use, output_factor
from submissions.kfac.groups import group_by_shape, join, split
from submissions.kfac.layers import find_layers
from submissions.kfac.sharing import Rows, Sharing


@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_gradients_that_are_not_finite_give_no_harmless_zeros(sharing, broken):
    rows = Rows(2, jnp.asarray([0, 0, 1, 1]))
    gradients = jnp.ones((4, 3)).at[0, 0].set(broken)
    assert not jnp.isfinite(output_factor([Use(gradients, rows)], sharing, jnp.ones([]))).all()


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
    groups = group_by_shape(find_layers(PARAMS))
    parts, n_lost = usable_gradients(split(gradients, groups), 1.0)
    clipped = join(PARAMS, groups, parts)
    kept = 3.0 / (3.0 * np.sqrt(3 * 2 + 2 + 4))
    np.testing.assert_allclose(clipped["one"]["kernel"], kept, rtol=1e-6)
    np.testing.assert_allclose(clipped["scale"], kept, rtol=1e-6)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(clipped["other"]))
    assert n_lost == 1
