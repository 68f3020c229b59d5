"""Many small graphs in a few flat arrays, and their file."""

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class PackedGraphs:
    """Graph g owns nodes `node_offsets[g]:node_offsets[g + 1]`; bonds (undirected edges) likewise."""

    node_features: np.ndarray  # [n_nodes, d_v] uint8
    node_offsets: np.ndarray  # [n_graphs + 1] int64
    bond_features: np.ndarray  # [n_bonds, d_e] uint8
    bond_ends: np.ndarray  # [n_bonds, 2] int32, node indices within the bond's own graph
    bond_offsets: np.ndarray  # [n_graphs + 1] int64
    labels: np.ndarray  # [n_graphs, n_tasks] float32, NaN where missing
    split_codes: np.ndarray  # [n_graphs] uint8, index into SPLITS

    @property
    def n_graphs(self) -> int:
        return len(self.labels)

    def indices(self, split: str) -> np.ndarray:
        """Graphs of "train", "validation" or "test", ascending."""
        return np.flatnonzero(self.split_codes == SPLITS.index(split))


def pack(
    graphs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], labels: np.ndarray, split_codes: np.ndarray
) -> PackedGraphs:
    """One (node features, bond features, bond ends) per graph -> `PackedGraphs`."""
    nodes, bonds, ends = zip(*graphs, strict=True)
    return PackedGraphs(
        node_features=np.concatenate(nodes).astype(np.uint8),
        node_offsets=np.cumsum([0, *map(len, nodes)], dtype=np.int64),
        bond_features=np.concatenate(bonds).astype(np.uint8),
        bond_ends=np.concatenate(ends).astype(np.int32),
        bond_offsets=np.cumsum([0, *map(len, bonds)], dtype=np.int64),
        labels=np.asarray(labels, dtype=np.float32),
        split_codes=np.asarray(split_codes, dtype=np.uint8),
    )


def save(graphs: PackedGraphs, path: Path, *, source: str) -> None:
    """Write `graphs` whole or not at all; `source` names what they were made from.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(graphs)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays, header=np.array(_header(arrays, source)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: Path, *, source: str) -> PackedGraphs:
    """Read what `save` wrote from the same `source`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another format, or made from another source.
    """
    names = [field.name for field in dataclasses.fields(PackedGraphs)]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
            header = str(file["header"])
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another format: delete it, and it is made anew") from error
    if header != _header(arrays, source):
        raise ValueError(
            f"{path} is damaged, or from another version or source: delete it, and it is made anew"
        )
    return PackedGraphs(**arrays)


def _arrays(graphs: PackedGraphs) -> dict[str, np.ndarray]:
    return {field.name: getattr(graphs, field.name) for field in dataclasses.fields(graphs)}


def _header(arrays: dict[str, np.ndarray], source: str) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return f"packed graphs, format {FORMAT_VERSION}, source {source}, sha256 {digest.hexdigest()}"
