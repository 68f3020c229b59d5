"""Converts SMILES strings to graphs. Only this file needs RDKit and ogb."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Molecule(NamedTuple):
    """Features as in ogbg-molpcba (`ogb.utils.mol.smiles2graph`); one row per bond, not per direction."""

    atoms: np.ndarray  # [n_atoms, 9] int64
    bonds: np.ndarray  # [n_bonds, 3] int64
    bond_ends: np.ndarray  # [n_bonds, 2] int64: the two atoms' indices within the molecule


def featurise(smiles: Sequence[str]) -> Iterator[Molecule | None]:
    """One `Molecule` per string, None where RDKit cannot parse it.

    Raises:
        ImportError: RDKit or ogb is not installed.
    """
    try:
        from ogb.utils.mol import smiles2graph
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ImportError(
            f"featurising molecules needs {error.name}: run `pip install rdkit && pip install --no-deps ogb==1.3.6`"
        ) from error
    rdBase.DisableLog("rdApp.*")
    try:
        for text in smiles:
            parsed = Chem.MolFromSmiles(text)
            if parsed is None:
                yield None
                continue
            graph = smiles2graph(text)
            # smiles2graph lists each bond as two adjacent columns, one per direction.
            yield Molecule(
                atoms=graph["node_feat"],
                bonds=graph["edge_feat"][::2],
                bond_ends=graph["edge_index"].T[::2],
            )
    finally:
        rdBase.EnableLog("rdApp.*")
