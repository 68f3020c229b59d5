"""SMILES strings to labelled, packed graphs and a scaffold split; the only file that needs RDKit and ogb."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Molecule(NamedTuple):
    """Features as in ogbg-molpcba (`ogb.utils.mol.smiles2graph`); one row per bond, not per direction."""

    atoms: np.ndarray  # [n_atoms, 9] uint8
    bonds: np.ndarray  # [n_bonds, 3] uint8
    bond_ends: np.ndarray  # [n_bonds, 2] int: the two atoms' indices within the molecule
    scaffold: str  # Bemis-Murcko scaffold as SMILES without chirality; "" if there is no ring


def featurise(smiles: Sequence[str]) -> Iterator[Molecule | None]:
    """One `Molecule` per string, None where RDKit cannot parse it.

    Raises:
        ImportError: RDKit or ogb is not installed.
    """
    try:
        from ogb.utils.mol import smiles2graph
        from rdkit import Chem, RDLogger
        from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
    except ImportError as error:
        raise ImportError(
            f"featurising molecules needs {error.name}: run `pip install rdkit && pip install --no-deps ogb==1.3.6`"
        ) from error
    RDLogger.DisableLog("rdApp.*")
    try:
        for text in smiles:
            parsed = Chem.MolFromSmiles(text)
            if parsed is None:
                yield None
                continue
            graph = smiles2graph(text)
            # smiles2graph lists each bond as two neighbouring columns, one per direction.
            yield Molecule(
                atoms=_as_bytes(graph["node_feat"]),
                bonds=_as_bytes(graph["edge_feat"][::2]),
                bond_ends=graph["edge_index"].T[::2],
                scaffold=MurckoScaffoldSmiles(mol=parsed, includeChirality=False),
            )
    finally:
        RDLogger.EnableLog("rdApp.*")


def _as_bytes(features: np.ndarray) -> np.ndarray:
    if features.size and not 0 <= features.min() <= features.max() <= 255:
        raise ValueError("a molecule's feature does not fit into a byte: another version of ogb is installed")
    return features.astype(np.uint8)


def scaffold_split(scaffolds: Sequence[str], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (ascending) of an 80/10/10 train/validation/test split that never divides a scaffold.

    Groups of one scaffold that would fill more than half of the validation set go into train. The others follow in an
    order drawn from `seed`: into train while it has room, then validation, then test. Taking them by size instead, as
    MoleculeNet does, leaves validation and test with scaffolds seen once and other shares of each class than train.
    Source: the balanced scaffold split of Yang et al. 2019, arXiv 1904.01561.
    """
    groups: dict[str, list[int]] = {}
    for index, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(index)
    members = list(groups.values())
    drawn = [members[i] for i in np.random.default_rng(seed).permutation(len(members))]
    is_large = [len(group) > 0.05 * len(scaffolds) for group in drawn]
    ordered = [g for g, large in zip(drawn, is_large, strict=True) if large]
    ordered += [g for g, large in zip(drawn, is_large, strict=True) if not large]
    train_limit, validation_limit = 0.8 * len(scaffolds), 0.9 * len(scaffolds)
    train, validation, test = [], [], []
    for group in ordered:
        if len(train) + len(group) <= train_limit:
            train += group
        elif len(train) + len(validation) + len(group) <= validation_limit:
            validation += group
        else:
            test += group
    return tuple(np.array(sorted(part), dtype=np.int64) for part in (train, validation, test))
