"""Compiled programs kept from one process to the next."""

import os
from pathlib import Path

import jax


def use(folder: str) -> None:
    """Keep every compiled program in `folder`; an empty name keeps none."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def default_folder() -> str:
    """Where compiled programs are kept between processes: under XDG_CACHE_HOME, or ~/.cache."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "algoperf-kfac", "jax")
