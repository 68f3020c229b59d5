"""Loads a submission: a folder with `submission.py`, or the file, that defines AlgoPerf's functions."""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any

from tuning import disk, official_api
from tuning.errors import UserError, setup_phase

_OWN = Path(__file__).resolve().parents[1] / "submissions"
_REQUIRED = ("init_optimizer_state", "update_params", "get_batch_size", "data_selection")


def submission_path(name: str) -> str:
    """The folder of one of this project's submissions, wherever the command is run."""
    return str(_OWN / name)


@dataclass(frozen=True)
class Submission:
    """The contract's functions of one submission."""

    name: str  # the folder's name, or the file's when it is not called submission.py
    file: Path
    init_optimizer_state: Callable[..., Any]
    update_params: Callable[..., Any]
    get_batch_size: Callable[[str], int]
    data_selection: Callable[..., Any]
    prepare_for_eval: Callable[..., Any] | None
    get_eval_batch_size: Callable[[str], int] | None

    @property
    def search_space_file(self) -> Path:
        """The path of the submission's own search space, which may not exist.

        Official baselines in NAME/jax/ have it in NAME/.
        """
        beside = self.file.parent / "tuning_search_space.json"
        above = self.file.parents[1] / beside.name
        return above if above.exists() and not beside.exists() else beside

    def with_batch_sizes(self, training: int | None, evaluation: int | None) -> "Submission":
        """The submission with other batch sizes, for a machine with less memory; None keeps the submission's own."""
        by_name = {"get_batch_size": training, "get_eval_batch_size": evaluation}
        sizes: dict[str, Any] = {
            name: lambda workload_name, size=size: size for name, size in by_name.items() if size is not None
        }
        return replace(self, **sizes)

    def training_batch_size(self, workload_name: str, workload: Any) -> int:
        """The submission's own batch size for this name, or else the workload's.

        Raises:
            ValueError: neither has one, or the submission's is no positive whole number.
        """
        return self._batch_size(self.get_batch_size, workload_name, getattr(workload, "training_batch_size", None))

    def evaluation_batch_size(self, workload_name: str, workload: Any) -> int:
        """As `training_batch_size`; a submission need not have the function."""
        if self.get_eval_batch_size is None:
            return workload.eval_batch_size
        return self._batch_size(self.get_eval_batch_size, workload_name, workload.eval_batch_size)

    def _batch_size(self, own: Callable[[str], int], workload_name: str, of_workload: int | None) -> int:
        try:
            size = own(workload_name)
        except ValueError:
            if of_workload is None:
                raise
            return of_workload
        if not isinstance(size, Integral) or size < 1:
            problem = f"submission {self.name!r} has the batch size {size!r} for {workload_name!r}"
            raise ValueError(f"{problem}; return a positive whole number, or raise ValueError for an unknown name")
        return int(size)

    @property
    def needs_train_state(self) -> bool:
        return "train_state" in inspect.signature(self.update_params).parameters


def load(path: str | Path) -> Submission:
    """Imports the submission at `path` (a folder or a .py file), as part of its package if it is in one.

    Raises:
        UserError: there is no submission, its import fails, or a function of the contract is missing.
    """
    file = _submission_file(disk.expanded(str(path)))
    official_api.provide()
    with setup_phase():
        functions = vars(_import(file))
    missing = [name for name in _REQUIRED if not callable(functions.get(name))]
    if missing:
        raise UserError(f"submission {str(path)!r} does not define {', '.join(missing)}; add them")
    return Submission(
        name=file.parent.name if file.stem == "submission" else file.stem,
        file=file,
        prepare_for_eval=functions.get("prepare_for_eval"),
        get_eval_batch_size=functions.get("get_eval_batch_size"),
        **{name: functions[name] for name in _REQUIRED},
    )


def _submission_file(path: Path) -> Path:
    file = path / "submission.py" if path.is_dir() else path
    if file.is_file() and file.suffix == ".py":
        return file.resolve()
    folder = path if path.is_dir() and _submissions_in(path) else path.parent
    names = _submissions_in(folder)
    cure = f"{str(folder)!r} has {', '.join(names)}" if names else "give a folder with submission.py, or the file"
    raise UserError(f"no submission at {str(path)!r}; {cure}")


def _submissions_in(folder: Path) -> list[str]:
    return sorted(file.parent.name for file in folder.glob("*/submission.py"))


def _import(file: Path) -> ModuleType:
    folders: list[Path] = []
    root = file.parent
    while (root / "__init__.py").exists():
        folders.insert(0, root)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if folders and all(path.name.isidentifier() for path in [*folders, file.with_suffix("")]):
        name = ".".join([*(folder.name for folder in folders), file.stem])
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() != file:
            problem = f"submission {str(file)!r} has the same module name, {name}, as {module.__file__!r}"
            raise UserError(f"{problem}; rename its package")
        return module
    return _import_by_path(folders, file)


def _import_by_path(folders: list[Path], file: Path) -> ModuleType:
    """Imports a file outside any package, or in a folder whose name no import statement can hold, such as `kfac.v2`."""
    package = ""
    for folder in folders:
        package += _module_name(folder.name)
        if package not in sys.modules:
            if folder.name.isidentifier():
                importlib.import_module(package)
            else:
                _execute(package, folder / "__init__.py", [str(folder)])
        package += "."
    prefix = "" if folders else f"{_module_name(file.parent.name)}_"
    return _execute(f"{package}{prefix}{_module_name(file.stem)}", file, None)


def _module_name(name: str) -> str:
    """The name itself if it is a Python identifier; otherwise an identifier that no other name gives."""
    return name if name.isidentifier() else f"_{re.sub(r'[^0-9A-Za-z]', '_', name)}_{name.encode().hex()}"


def _execute(name: str, file: Path, package_folders: list[str] | None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=package_folders)
    if spec is None or spec.loader is None:
        raise UserError(f"cannot import {str(file)!r}; give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
