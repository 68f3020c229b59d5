"""Random molecules that are about as large as those of molpcba."""

import numpy as np

from workloads.graphs.store import PackedGraphs, pack

# On average molpcba has 26 atoms and 28 bonds a molecule, three bonds more than a tree; 40 % of its labels are missing.
_MEAN_ATOMS, _STDDEV_ATOMS, _RING_BONDS, _MISSING = 26, 6, 3, 0.4
_MAX_FEATURE = 8


def synthetic_molecules(
    n_graphs: int, *, n_tasks: int, node_feature_dim: int, bond_feature_dim: int, seed: int | tuple[int, ...]
) -> PackedGraphs:
    """Random trees with a few additional bonds, random features and random labels, all in the "train" split."""
    generator = np.random.default_rng(seed)
    sizes = np.clip(np.rint(generator.normal(_MEAN_ATOMS, _STDDEV_ATOMS, n_graphs)), 2, 2 * _MEAN_ATOMS).astype(int)
    graphs = []
    for n_atoms in sizes:
        children = np.arange(1, n_atoms)
        tree = np.stack([generator.integers(0, children), children], axis=1)
        ends = np.concatenate([tree, generator.integers(0, n_atoms, (_RING_BONDS, 2))])
        atoms = generator.integers(0, _MAX_FEATURE, (n_atoms, node_feature_dim))
        graphs.append((atoms, generator.integers(0, _MAX_FEATURE, (len(ends), bond_feature_dim)), ends))
    labels = generator.integers(0, 2, (n_graphs, n_tasks)).astype(np.float32)
    labels[generator.random(labels.shape) < _MISSING] = np.nan
    return pack(graphs, labels, np.zeros(n_graphs))
