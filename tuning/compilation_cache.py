"""Compiled programs kept from one process to the next."""

import logging
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax

_LOG = logging.getLogger(__name__)
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def use(folder: str) -> None:
    """Keeps every compiled program in `folder`. It keeps none if the name is empty or the folder cannot be written.

    An entry may be damaged by a killed process or a full disk. It is removed when it is first read, so that its program
    is compiled and stored again. JAX alone would keep the entry, and warn of it every time.
    """
    if not folder:
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _LOG.warning("compiled programs are not kept (%s); give another --compilation_cache_dir", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _remove_damaged_entries(path)


def _remove_damaged_entries(folder: Path) -> None:
    """Removes entries that JAX warns of, as it does not replace them. The warning names the program, not the entry."""
    show = warnings.showwarning

    def show_or_remove(message: Warning | str, *others: Any, **named: Any) -> None:
        warning = _DAMAGED.match(str(message))
        if warning is None:
            return show(message, *others, **named)
        for entry in folder.glob(f"{warning[1]}-*-cache"):
            entry.unlink(missing_ok=True)
        _LOG.warning("a damaged entry of the compilation cache is removed, and %s compiled anew", warning[1])

    warnings.showwarning = show_or_remove
