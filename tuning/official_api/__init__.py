"""The documented API of the official harness, for submissions that import it.

A submission written for mlcommons/algorithmic-efficiency has `from algoperf import spec, jax_sharding_utils`. It must
get this project's forward-pass modes: those of another enum would silently turn dropout off.
"""

import importlib
import sys

_NAME = "algoperf"
_MODULES = ("spec", "jax_sharding_utils")


def provide() -> None:
    """Makes `import algoperf` find this package in place of an installed one."""
    if sys.modules.get(_NAME) is sys.modules[__name__]:
        return
    for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
        del sys.modules[name]
    sys.modules[_NAME] = sys.modules[__name__]
    for name in _MODULES:
        sys.modules[f"{_NAME}.{name}"] = importlib.import_module(f"{__name__}.{name}")
