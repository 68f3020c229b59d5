"""Small archives in the form of the published data sets, made of real digits and real molecules."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from workloads.graphs.store import PackedGraphs
from workloads.images.memory import LabelledImages

N_TASKS = 128


def jpeg(digit: np.ndarray, height: int = 120, width: int = 160) -> bytes:
    """A digit [28, 28, 1], upscaled, as a JPEG in colour."""
    picture = Image.fromarray(digit[..., 0]).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    Image.merge("RGB", [picture, picture.rotate(90), picture.rotate(180)]).save(file, "JPEG")
    return file.getvalue()


def imagenet(folder: Path, digits: LabelledImages, wnids: list[str], n_train: int, n_validation: int) -> None:
    """ILSVRC2012_img_train.tar, a tar of a tar for each class, and ILSVRC2012_img_val.tar."""
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for index, wnid in enumerate(wnids):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as one_class:
                for i in range(index, n_train, len(wnids)):
                    _add(one_class, f"{wnid}_{i}.JPEG", jpeg(digits.pixels[i]))
            _add(train, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as validation:
        for i in range(n_validation):
            _add(validation, f"ILSVRC2012_val_{i + 1:08d}.JPEG", jpeg(digits.pixels[i]))


def imagenet_v2(folder: Path, digits: LabelledImages, n: int) -> None:
    with tarfile.open(folder / "imagenetv2-matched-frequency.tar.gz", "w:gz") as archive:
        for i in range(n):
            _add(archive, f"imagenetv2-matched-frequency-format-val/{i % 1000}/{i}.jpeg", jpeg(digits.pixels[i]))


def cifar10(folder: Path, digits: LabelledImages, n_a_file: int) -> None:
    """Binary batches: a byte of label, then 32 x 32 bytes of red, of green and of blue."""
    padded = np.pad(digits.pixels, [(0, 0), (2, 2), (2, 2), (0, 0)]).repeat(3, axis=-1).transpose(0, 3, 1, 2)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for index, name in enumerate(names):
            rows = range(index * n_a_file, (index + 1) * n_a_file)
            content = b"".join(bytes([digits.labels[i]]) + padded[i].tobytes() for i in rows)
            _add(archive, f"cifar-10-batches-bin/{name}", content)
        classes = "airplane automobile bird cat deer dog frog horse ship truck".replace(" ", "\n")
        _add(archive, "cifar-10-batches-bin/batches.meta.txt", f"{classes}\n".encode())


def molpcba(folder: Path, graphs: PackedGraphs, n_graphs: int, seed: int = 0) -> np.ndarray:
    """pcba.zip of the first graphs, a tenth each in validation and test; the made-up labels, NaN where missing."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (n_graphs, N_TASKS)).astype(float)
    labels[generator.random(labels.shape) < 0.4] = np.nan
    n_nodes, n_bonds = np.diff(graphs.node_offsets)[:n_graphs], np.diff(graphs.bond_offsets)[:n_graphs]
    nodes, bonds = graphs.node_offsets[n_graphs], graphs.bond_offsets[n_graphs]
    raw = {
        "edge": graphs.bond_ends[:bonds],
        "num-node-list": n_nodes[:, None],
        "num-edge-list": n_bonds[:, None],
        "node-feat": graphs.node_features[:nodes],
        "edge-feat": graphs.bond_features[:bonds],
        "graph-label": labels,
    }
    part = np.arange(n_graphs) % 10
    splits = {"train": part < 8, "valid": part == 8, "test": part == 9}
    with zipfile.ZipFile(folder / "pcba.zip", "w") as archive:
        for name, table in raw.items():
            archive.writestr(f"pcba/raw/{name}.csv.gz", _csv(table))
        for name, chosen in splits.items():
            archive.writestr(f"pcba/split/scaffold/{name}.csv.gz", _csv(np.flatnonzero(chosen)[:, None]))
    return labels


def _csv(table: np.ndarray) -> bytes:
    lines = (",".join("" if np.isnan(x) else f"{x:g}" for x in row) for row in np.asarray(table, float))
    return gzip.compress("\n".join(lines).encode() + b"\n")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
