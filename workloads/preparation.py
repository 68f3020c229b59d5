"""Prepares the TFDS data sets of the full-size workloads as array_record files. Only this module needs TensorFlow.

It can be run again after an interruption: finished data sets, downloads and extractions are kept, and an incomplete
data set is prepared again.
"""

import importlib.util
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workloads import registry, tfds_data
from workloads.tfds_data import PreparedData


def data_sets() -> dict[str, PreparedData]:
    """Name -> a data set that a registered workload reads."""
    workloads = map(registry.load, registry.names())
    return {data.dataset.name: data for workload in workloads for data in workload.prepared_data}


def prepare(
    name: str,
    data_dir: str,
    manual_dir: str,
    *,
    overwrite: bool = False,
    allow_other_archives: bool = False,
    log: Callable[[str], None] = print,
) -> None:
    """Prepares one data set, or checks it if it exists.

    Args:
        manual_dir: folder of archives downloaded by hand; others are downloaded if their provider allows it.
        overwrite: remove the prepared data set, and prepare it again.
        allow_other_archives: accept archives with other checksums or numbers of examples than the published ones.

    Raises:
        ValueError: there is no such data set, or a checksum or a number of examples is wrong.
        FileNotFoundError: an archive is missing and cannot be downloaded.
        ImportError: TensorFlow is not installed.
        OSError: the folder cannot be written.
    """
    known = data_sets()
    if name not in known:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(known)}")
    data, root = known[name], tfds_data.folder(data_dir)
    folder = root / data.dataset.path
    if (folder / "dataset_info.json").exists() and not overwrite:
        log(f"{folder} is there already")
    else:
        if data.packed is not None:
            (root / data.packed).unlink(missing_ok=True)
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        for leftover in tfds_data.leftovers(folder.parent, data.dataset.version):
            shutil.rmtree(leftover)
        _generate(data, root, Path(manual_dir).expanduser(), allow_other_archives)
    _check_counts(data, tfds_data.prepared_builder(data.dataset, data_dir), allow_other_archives, log)
    if data.finish is not None:
        log("packing: a few minutes for the whole data set, unless it is done already")
        data.finish(data_dir)
    log(f"{data.dataset.path} is ready in {root}")


def _generate(data: PreparedData, root: Path, manual: Path, allow_other_archives: bool) -> None:
    # TFDS itself would raise the error only half-way through.
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError("preparing data sets needs TensorFlow: run `make setup-prepare`")
    import requests
    import tensorflow_datasets as tfds

    missing = [archive for archive in data.archives if not (manual / archive).is_file()]
    if data.source and missing:
        raise FileNotFoundError(f"{manual} lacks {' and '.join(missing)}: download from {data.source}")
    parts = [data.dataset.name, *([data.dataset.config] if data.dataset.config else [])]
    builder = tfds.builder(f"{'/'.join(parts)}:{data.dataset.version}", data_dir=root, file_format="array_record")
    if allow_other_archives:
        _accept_archives(builder, data, manual)
    config = tfds.download.DownloadConfig(manual_dir=manual if manual.is_dir() else None)
    try:
        builder.download_and_prepare(download_config=config)
    except (tfds.download.DownloadError, requests.exceptions.RequestException, ConnectionError) as error:
        raise FileNotFoundError(_download_message(builder, data, manual)) from error
    except tfds.core.download.download_manager.NonMatchingChecksumError as error:
        raise ValueError(_damage_message(data, manual, "has a wrong checksum")) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, tfds.core.download.extractor.ExtractError) as error:
        raise ValueError(_damage_message(data, manual, f"is damaged ({error})")) from error


def _accept_archives(builder: Any, data: PreparedData, manual: Path) -> None:
    """Replaces the published checksums by those of the archives in the manual folder."""
    from tensorflow_datasets.core.download import checksums

    by_file = {info.filename: url for url, info in builder.url_infos.items()}
    for archive in data.archives:
        if (manual / archive).is_file() and archive in by_file:
            builder.url_infos[by_file[archive]] = checksums.compute_url_info(manual / archive)


def _download_message(builder: Any, data: PreparedData, manual: Path) -> str:
    urls = [url for url, info in builder.url_infos.items() if info.filename in data.archives]
    return f"cannot download {' and '.join(urls)}: get it on another machine, and put it into {manual}"


def _damage_message(data: PreparedData, manual: Path, problem: str) -> str:
    own = [archive for archive in data.archives if (manual / archive).is_file()]
    if not own:
        return f"the download of {' or '.join(data.archives)} {problem}: run the command again"
    return f"{' or '.join(own)} in {manual} {problem}: download that file again"


def _check_counts(data: PreparedData, builder: Any, allow_other: bool, log: Callable[[str], None]) -> None:
    n_examples = {
        name: builder.info.splits[name].num_examples for name in data.n_examples if name in builder.info.splits
    }
    if n_examples == data.n_examples:
        return
    differs = f"{builder.data_dir} has {n_examples or 'no'} examples, not {dict(data.n_examples)}"
    if not allow_other:
        raise ValueError(f"{differs}: check the archives, and prepare it again with --overwrite")
    log(differs)
