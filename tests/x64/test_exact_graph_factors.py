"""Graphs have unequal numbers of shared positions: mean-input, sum-gradient factors are exact under mean pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from submissions.kfac import Fisher, Geometry, LossKind, Sharing, estimate, find_layers, graph_layout

# Graph 1 has no edges; graphs 2 and 5 are padding, one of them between real graphs and both of them not empty.
N_NODE = np.array([3, 2, 2, 4, 1, 3])
N_EDGE = np.array([4, 0, 3, 6, 1, 2])
IS_EXAMPLE = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
LABEL_WEIGHTS = IS_EXAMPLE[:, None] * np.ones(3)


class DeepLinearGraph(nn.Module):
    """Linear layers on nodes and on edges, pooled per graph, then a linear layer on graphs."""

    is_mean: bool

    @nn.compact
    def __call__(self, nodes, edges):
        nodes = nn.Dense(2, name="node_out")(nn.Dense(4, name="node_in")(nodes))
        edges = nn.Dense(2, name="edge_out")(nn.Dense(3, name="edge_in")(edges))
        return nn.Dense(3, name="head")(self._pool(nodes, N_NODE) + self._pool(edges, N_EDGE))

    def _pool(self, rows, counts):
        membership = np.repeat(np.eye(len(counts)), counts, axis=1)  # [graphs, rows]
        if self.is_mean:
            membership = membership / np.maximum(counts, 1)[:, None]
        return jnp.asarray(membership) @ rows


def summed_square(z):
    return (LABEL_WEIGHTS * z**2).sum()


@pytest.fixture
def errors(randomized, kronecker_error):
    """Layer name -> relative error of A ⊗ B."""

    def of(is_mean: bool, sharing: Sharing) -> dict[str, float]:
        rng = np.random.default_rng(2)
        nodes, edges = jnp.asarray(rng.normal(size=(15, 3))), jnp.asarray(rng.normal(size=(16, 2)))
        model = DeepLinearGraph(is_mean)
        params = randomized(jax.eval_shape(model.init, jax.random.key(0), nodes, edges)["params"])

        def outputs(p):
            return model.apply({"params": p}, nodes, edges)

        @jax.jit
        def compare(params):
            layers = find_layers(params)
            result = estimate(
                lambda p: (outputs(p), None),
                lambda z: (summed_square(z), jnp.asarray(LABEL_WEIGHTS).sum()),
                params,
                layers=layers,
                layout=graph_layout(jnp.asarray(N_NODE), jnp.asarray(N_EDGE), 15, 16, jnp.asarray(IS_EXAMPLE)),
                sharing=sharing,
                fisher=Fisher.EXACT,
                geometry=Geometry(LossKind.SQUARE, 2.0),
                weights=jnp.asarray(LABEL_WEIGHTS),
            )
            case = outputs, summed_square, params
            n_terms = LABEL_WEIGHTS.sum()
            return {
                layer.name: kronecker_error(*case, layer.path, n_terms, result.factors[layer.name]) for layer in layers
            }

        return jax.tree.map(float, compare(params))

    return of


def test_reduce_is_exact_under_mean_pooling(errors):
    found = errors(is_mean=True, sharing=Sharing.REDUCE)
    assert len(found) == 5 and max(found.values()) < 1e-9, found


@pytest.mark.parametrize(
    ("is_mean", "sharing"), [(False, Sharing.REDUCE), (True, Sharing.EXPAND), (False, Sharing.EXPAND)]
)
def test_other_pairs_are_exact_only_after_the_pooling(errors, is_mean, sharing):
    found = errors(is_mean, sharing)
    assert found.pop("head") < 1e-9
    assert len(found) == 4 and min(found.values()) > 1e-2, found
