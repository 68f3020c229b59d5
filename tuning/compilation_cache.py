"""Compiled programs kept from one process to the next."""

import logging
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax

_LOG = logging.getLogger(__name__)
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def use(folder: str) -> None:
    """Keeps every compiled program in `folder`; an empty name keeps none, and neither does one that cannot be written.

    An entry that a killed process or a full disk cut off is removed when it is first read, so that the program, which
    is compiled anew, takes its place. JAX would warn of it for ever.
    """
    if not folder:
        return
    try:
        place = Path(folder).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _LOG.warning("compiled programs are not kept (%s); give another --compilation_cache_dir", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _heal(place)


def default_folder() -> str:
    """Where compiled programs are kept between processes: under XDG_CACHE_HOME, or ~/.cache."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "algoperf-kfac", "jax")


def _heal(place: Path) -> None:
    """Removes the entries that JAX warns of: it never replaces one. JAX tells the program's name, but not the entry."""
    show = warnings.showwarning

    def show_or_heal(message: Warning | str, *others: Any, **named: Any) -> None:
        found = _DAMAGED.match(str(message))
        if found is None:
            return show(message, *others, **named)
        for entry in place.glob(f"{found[1]}-*-cache"):
            entry.unlink(missing_ok=True)
        _LOG.warning("a damaged entry of the compilation cache is removed, and %s compiled anew", found[1])

    warnings.showwarning = show_or_heal
