"""Prepares the TFDS data sets of the full-size workloads as array_record files; here alone TensorFlow is needed.

An interrupted preparation is run again: finished data sets, downloads and extractions are kept, a half-written data set
is made anew.
"""

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workloads import tfds_data
from workloads.graphs import molpcba
from workloads.images import cifar10_wrn, imagenet_vit
from workloads.tfds_data import Dataset


@dataclasses.dataclass(frozen=True)
class _Known:
    """A data set that can be prepared.

    Attributes:
        archives: files that TFDS makes it from, looked for in the manual folder.
        source: where to get those by hand; None where TFDS downloads what is not in the manual folder.
        finish: makes of it, in the data folder, what training reads; anew if its second argument is true.
    """

    dataset: Dataset
    n_examples: Mapping[str, int]
    archives: tuple[str, ...]
    source: str | None = None
    finish: Callable[[str, bool], Any] | None = None


_KNOWN = {
    known.dataset.name: known
    for known in (
        _Known(
            molpcba.DATASET,
            {"train": 350_343, "validation": 43_793, "test": 43_793},
            ("pcba.zip",),
            finish=molpcba.prepare_store,
        ),
        _Known(
            imagenet_vit.TRAINING,
            {"train": 1_281_167, "validation": 50_000},
            ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
            source="https://image-net.org/download-images, after registration",
        ),
        _Known(imagenet_vit.TEST, {"test": 10_000}, ("imagenetv2-matched-frequency.tar.gz",)),
        _Known(cifar10_wrn.DATASET, {"train": 50_000, "test": 10_000}, ("cifar-10-binary.tar.gz",)),
    )
}
NAMES = tuple(_KNOWN)


def prepare(
    name: str,
    data_dir: str,
    manual_dir: str,
    *,
    overwrite: bool = False,
    allow_other_archives: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Prepare one data set, or check the one that is there.

    Args:
        manual_dir: folder of archives that were got by hand; what is not there is downloaded, where it may be.
        overwrite: remove what is there, and prepare it again.
        allow_other_archives: take archives whose checksums, or numbers of examples, are not the published ones.

    Raises:
        ValueError: no such data set, a wrong checksum or a wrong number of examples.
        FileNotFoundError: an archive is missing and cannot be downloaded.
        ImportError: TensorFlow is not installed.
        OSError: the folder cannot be written.
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(NAMES)}")
    known, root = _KNOWN[name], tfds_data.folder(data_dir)
    place = root / known.dataset.path
    if overwrite and place.exists():
        shutil.rmtree(place)
    is_there = (place / "dataset_info.json").exists()
    if is_there:
        say(f"{place} is there already")
    else:
        for leftover in place.parent.glob(f"{known.dataset.version}.incomplete*"):
            shutil.rmtree(leftover)
        _generate(known, root, Path(manual_dir).expanduser(), allow_other_archives)
    _check_counts(known, tfds_data.prepared_builder(known.dataset, data_dir), allow_other_archives, say)
    if known.finish is not None:
        say("packing: a few minutes for the whole data set, unless it is done already")
        known.finish(data_dir, not is_there)
    say(f"{known.dataset.path} is ready in {root}")


def _generate(known: _Known, root: Path, manual: Path, allow_other_archives: bool) -> None:
    # TFDS itself would notice only when it is half-way through.
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError("preparing data sets needs TensorFlow: run `make setup-prepare`")
    import tensorflow_datasets as tfds

    missing = [archive for archive in known.archives if not (manual / archive).is_file()]
    if known.source and missing:
        raise FileNotFoundError(f"put {' and '.join(missing)} into {manual}: from {known.source}")
    parts = [known.dataset.name, *([known.dataset.config] if known.dataset.config else [])]
    builder = tfds.builder(f"{'/'.join(parts)}:{known.dataset.version}", data_dir=root, file_format="array_record")
    if allow_other_archives:
        _accept(builder, known, manual)
    config = tfds.download.DownloadConfig(manual_dir=manual if manual.is_dir() else None)
    try:
        builder.download_and_prepare(download_config=config)
    except tfds.download.DownloadError as error:
        raise FileNotFoundError(_by_hand(builder, known, manual)) from error
    except tfds.core.download.download_manager.NonMatchingChecksumError as error:
        raise ValueError(
            f"{' or '.join(known.archives)} has a wrong checksum: delete it from {manual} and download it again"
        ) from error
    except ConnectionError as error:
        raise FileNotFoundError(_by_hand(builder, known, manual)) from error


def _accept(builder: Any, known: _Known, manual: Path) -> None:
    """Registers the checksums of the archives that are there in place of the published ones."""
    from tensorflow_datasets.core.download import checksums

    by_file = {info.filename: url for url, info in builder.url_infos.items()}
    for archive in known.archives:
        if (manual / archive).is_file() and archive in by_file:
            builder.url_infos[by_file[archive]] = checksums.compute_url_info(manual / archive)


def _by_hand(builder: Any, known: _Known, manual: Path) -> str:
    urls = [url for url, info in builder.url_infos.items() if info.filename in known.archives]
    return f"cannot download {' and '.join(urls)}: get it on another machine, and put it into {manual}"


def _check_counts(known: _Known, builder: Any, allow_other: bool, say: Callable[[str], None]) -> None:
    found = {name: builder.info.splits[name].num_examples for name in known.n_examples if name in builder.info.splits}
    if found == known.n_examples:
        return
    differs = f"{builder.data_dir} has {found or 'no'} examples, not {dict(known.n_examples)}"
    if not allow_other:
        raise ValueError(f"{differs}: check the archives, and prepare it again with --overwrite")
    say(differs)
