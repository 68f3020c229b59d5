"""The modules of the official harness that its submissions import, as far as the documented API goes.

A submission that was written for mlcommons/algorithmic-efficiency says `from algoperf import spec, jax_sharding_utils`.
Its modes must be this project's: another enum's would silently turn dropout off.
"""

import importlib
import sys

_NAME = "algoperf"
_MODULES = ("spec", "jax_sharding_utils")


def provide() -> None:
    """Make `import algoperf` find this package, in place of an installed one."""
    if sys.modules.get(_NAME) is sys.modules[__name__]:
        return
    for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
        del sys.modules[name]
    sys.modules[_NAME] = sys.modules[__name__]
    for name in _MODULES:
        sys.modules[f"{_NAME}.{name}"] = importlib.import_module(f"{__name__}.{name}")
