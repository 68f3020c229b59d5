"""Many small graphs in a few flat arrays, and their file."""

import dataclasses
import hashlib
import os
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")
MISSING = -1

Graph = tuple[np.ndarray, np.ndarray, np.ndarray]  # node features, bond features, bond ends


@dataclasses.dataclass(frozen=True)
class PackedGraphs:
    """Graph g owns nodes `node_offsets[g]:node_offsets[g + 1]`; bonds (undirected edges) likewise."""

    node_features: np.ndarray  # [n_nodes, d_v] uint8
    node_offsets: np.ndarray  # [n_graphs + 1] int64
    bond_features: np.ndarray  # [n_bonds, d_e] uint8
    bond_ends: np.ndarray  # [n_bonds, 2] uint16, node indices within the bond's own graph
    bond_offsets: np.ndarray  # [n_graphs + 1] int64
    labels: np.ndarray  # [n_graphs, n_tasks] int8: 0, 1, or MISSING
    split_codes: np.ndarray  # [n_graphs] uint8, index into SPLITS

    def indices(self, split: str) -> np.ndarray:
        """Graphs of "train", "validation" or "test", ascending."""
        return np.flatnonzero(self.split_codes == SPLITS.index(split))


def pack(graphs: Sequence[Graph], labels: np.ndarray, split_codes: np.ndarray) -> PackedGraphs:
    """Packs many graphs.

    Args:
        labels: [n_graphs, n_tasks] 0, 1, or NaN where missing.

    Raises:
        ValueError: a feature does not fit into a byte, a label is neither 0, 1 nor NaN, or a graph has 65,536 nodes.
    """
    nodes, bonds, ends = zip(*graphs, strict=True)
    if max(map(len, nodes), default=0) >= 2**16:
        raise ValueError(f"graph {int(np.argmax([*map(len, nodes)]))} has 65,536 nodes or more")
    for kind, parts in (("node", nodes), ("bond", bonds)):
        wrong = [i for i, part in enumerate(parts) if len(part) and not 0 <= np.min(part) <= np.max(part) <= 255]
        if wrong:
            raise ValueError(f"graph {wrong[0]} has a {kind} feature outside 0..255, which no molecule has")
    labels = np.asarray(labels)
    present = ~np.isnan(labels)
    if not np.isin(labels[present], (0, 1)).all():
        raise ValueError("labels must be 0, 1, or NaN where missing")
    return PackedGraphs(
        node_features=np.concatenate(nodes).astype(np.uint8),
        node_offsets=np.cumsum([0, *map(len, nodes)], dtype=np.int64),
        bond_features=np.concatenate(bonds).astype(np.uint8),
        bond_ends=np.concatenate(ends).astype(np.uint16),
        bond_offsets=np.cumsum([0, *map(len, bonds)], dtype=np.int64),
        labels=np.where(present, labels, MISSING).astype(np.int8),
        split_codes=np.asarray(split_codes, dtype=np.uint8),
    )


def save(graphs: PackedGraphs, path: Path, *, source: str) -> None:
    """Writes a complete file, or none. `source` names what the graphs were made from.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(graphs)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:  # other users of the data folder could not read a file of `tempfile`
            members: dict[str, Any] = {**arrays, "header": np.array(_header(arrays, source))}
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, *, source: str) -> PackedGraphs:
    """Reads the file that `save` wrote for the same `source`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has another format, or was made from another source.
    """
    names = [field.name for field in dataclasses.fields(PackedGraphs)]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
            header = str(file["header"])
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or has another format: it must be made again") from error
    if header != _header(arrays, source):
        raise ValueError(f"{path} is damaged, or from another version or source: it must be made again")
    return PackedGraphs(**arrays)


def _arrays(graphs: PackedGraphs) -> dict[str, np.ndarray]:
    return {field.name: getattr(graphs, field.name) for field in dataclasses.fields(graphs)}


def _header(arrays: dict[str, np.ndarray], source: str) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return f"packed graphs, format {FORMAT_VERSION}, source {source}, sha256 {digest.hexdigest()}"
