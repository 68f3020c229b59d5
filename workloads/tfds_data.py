"""Reads the TFDS data sets that `scripts/prepare_data.py` makes, array_record files, without TensorFlow."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEFAULT_DATA_DIR = "~/data"
_FILE_FORMAT = "array_record"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One version of a TFDS data set, with an optional configuration."""

    name: str
    version: str
    config: str | None = None

    @property
    def path(self) -> Path:
        """The folder of the data set, relative to the folder of all data sets."""
        return Path(self.name, *([self.config] if self.config else []), self.version)


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A data set that a workload reads, and how `scripts/prepare_data.py` makes it.

    Attributes:
        n_examples: split -> the published number of examples.
        archives: files that TFDS prepares it from, looked for in the manual folder.
        source: where to download the archives by hand; None if TFDS downloads them itself.
        finish: called after the preparation with the data folder, to convert the data set for training, or to check
            what was converted before; None if training reads it as it is.
        packed: the file that `finish` makes, relative to the data folder. It is removed before a new preparation, so
            that after an interruption it is not taken for one of the new data.
    """

    dataset: Dataset
    n_examples: Mapping[str, int]
    archives: tuple[str, ...]
    source: str | None = None
    finish: Callable[[str], Any] | None = None
    packed: Path | None = None


def folder(data_dir: str | None) -> Path:
    return Path(data_dir or DEFAULT_DATA_DIR).expanduser()


def leftovers(parent: Path, version: str) -> list[Path]:
    """Folders that TFDS was preparing when it was ended."""
    return [*parent.glob(f"incomplete.*_{version}"), *parent.glob(f"{version}.incomplete*")]


def read(dataset: Dataset, split: str, data_dir: str | None, *, skip_decoding: Sequence[str] = ()) -> Sequence[Any]:
    """The examples of a split, with random access: dicts of NumPy arrays, and bytes for features of `skip_decoding`.

    Raises:
        FileNotFoundError: the data set is missing or incomplete, or has no such split.
        ValueError: the data set has another version or file format.
        ImportError: tensorflow-datasets or array-record is not installed.
    """
    builder = prepared_builder(dataset, data_dir)
    if split not in builder.info.splits:
        raise FileNotFoundError(
            f"{builder.data_dir} has no split {split!r}, only {', '.join(sorted(builder.info.splits)) or 'none'}: "
            f"put the archive of that split into the manual folder, and {_cure(dataset, data_dir)} --overwrite"
        )
    import tensorflow_datasets as tfds

    decoders = {name: tfds.decode.SkipDecoding() for name in skip_decoding}
    return builder.as_data_source(split=split, decoders=decoders or None)


def n_examples(dataset: Dataset, data_dir: str | None) -> dict[str, int] | None:
    """Split -> number of examples, from the data set's description; None if it is not prepared. It imports no TFDS."""
    try:
        info = json.loads((folder(data_dir) / dataset.path / "dataset_info.json").read_bytes())
    except FileNotFoundError:
        return None
    return {split["name"]: sum(map(int, split.get("shardLengths", ()))) for split in info.get("splits", ())}


def prepared_builder(dataset: Dataset, data_dir: str | None) -> Any:
    """The read-only TFDS builder of a prepared data set; raises as `read`."""
    import tensorflow_datasets as tfds

    root = folder(data_dir)
    path = root / dataset.path
    if not (path / "dataset_info.json").is_file():
        versions = sorted(child.name for child in path.parent.glob("*") if (child / "dataset_info.json").is_file())
        if versions:
            raise ValueError(
                f"{path.parent} holds {', '.join(versions)}, not {dataset.version}: {_cure(dataset, data_dir)}"
            )
        state = "is only half prepared" if leftovers(path.parent, dataset.version) else "is not there"
        raise FileNotFoundError(f"data set {dataset.path} {state} in {root}: {_cure(dataset, data_dir)}")
    builder = tfds.builder_from_directory(path)
    if builder.info.file_format is None or builder.info.file_format.value != _FILE_FORMAT:
        file_format = builder.info.file_format.value if builder.info.file_format else "unknown"
        raise ValueError(
            f"{path} holds {file_format} files, not {_FILE_FORMAT}, which random access needs: "
            f"{_cure(dataset, data_dir)} --overwrite"
        )
    return builder


def _cure(dataset: Dataset, data_dir: str | None) -> str:
    return f"run python scripts/prepare_data.py --dataset={dataset.name} --data_dir={data_dir or DEFAULT_DATA_DIR}"
