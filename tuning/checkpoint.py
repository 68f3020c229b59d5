"""Checkpoints of a running trial: the newest few, each of them complete.

A checkpoint holds the trial's arrays (parameters, model state, optimizer state), its description, and its record as
plain data: counters, the rows of its files, the position in the input queue. Random keys are not saved: they are
derived from (seed, trial, step). A checkpoint is one file, `STEP.checkpoint`: a line with the SHA-256 of the rest, then
Flax's msgpack of the content. For one file a single rename commits it, and a single sync brings it to the disk. A
thread writes it, from a copy, while the training continues.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from tuning.claim import Claim
from tuning.description import START_AGAIN, TrialDescription
from tuning.errors import MachineFault, UserError, one_line

PyTree = Any
_SUFFIX = ".checkpoint"
_LOG = logging.getLogger(__name__)


class Damaged(ValueError):
    """A checkpoint's content is not what was written."""


class AllDamaged(UserError):
    """No checkpoint of a trial is what was written."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read."""

    arrays: PyTree
    record: dict[str, Any]
    changes: dict[str, list[Any]]  # of description and environment, name: [earlier value, new value]


class Checkpoints:
    """The checkpoints of one trial.

    Args:
        claim: of the trial's folder, whose subfolder `checkpoints` holds the files.
        description: a checkpoint must agree with it to belong to this trial.
        environment: versions and hardware, which may differ from an earlier process's.
        keep: how many of the newest to keep.
    """

    def __init__(self, claim: Claim, description: TrialDescription, environment: Mapping[str, Any], *, keep: int = 2):
        self._claim, self._description, self._environment, self._keep = claim, description, environment, keep
        self._folder = claim.folder / "checkpoints"
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def save(self, step: int, arrays: PyTree, record: Mapping[str, Any]) -> None:
        """Begins to write the checkpoint of `step`, once the one before it is on disk.

        The arguments may change afterwards. Raises the error of the checkpoint before, if that failed.
        """
        self.wait()
        metadata = {
            "description": self._description.to_json(),
            "environment": dict(self._environment),
            "arrays": _layout(arrays),
            "record": dict(record),
        }
        leaves = {str(i): np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(arrays))}
        self._pending = self._writer.submit(self._write, step, json.dumps(metadata), leaves)

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk. Raises its error, if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Ends the thread, once it has written its checkpoint."""
        self._writer.shutdown()

    def _write(self, step: int, metadata: str, leaves: Mapping[str, np.ndarray]) -> None:
        content = serialization.msgpack_serialize({"about": metadata, "leaves": leaves})
        head = hashlib.sha256(content).hexdigest().encode() + b"\n"
        self._claim.write(self._folder / f"{step}{_SUFFIX}", head + content)
        for old in self._steps()[self._keep :]:
            self._claim.discard(self._folder / f"{old}{_SUFFIX}")

    def newest(self, like: PyTree) -> Restored | None:
        """The newest checkpoint that can be read, with arrays in the structure of `like`; None if there is none.

        If a checkpoint is damaged, it logs a warning, reads the one before it, and then removes the damaged one.

        Raises:
            UserError: a checkpoint belongs to another trial, another version of the submission with other arrays, or
                another version of this project; or, as `AllDamaged`, all are damaged.
            MachineFault: a checkpoint cannot be read now, but may be intact.
        """
        self._refuse_other_formats()
        damaged: list[Path] = []
        for step in self._steps():
            file = self._folder / f"{step}{_SUFFIX}"
            try:
                metadata, leaves = _read(file)
            except Damaged as error:
                _LOG.warning("checkpoint %d in %s is damaged and left out: %s", step, self._folder, one_line(error))
                damaged.append(file)
                continue
            changes = self._description.changes_from(metadata["description"], f"the checkpoint {str(file)!r}")
            self._refuse_other_arrays(metadata["arrays"], _layout(like))
            changes |= self._changed_environment(metadata["environment"])
            for other in damaged:
                self._claim.discard(other)
            return Restored(jax.tree.unflatten(jax.tree.structure(like), leaves), metadata["record"], changes)
        if damaged:
            cure = "to train the trial from its beginning, remove its folder, or give another --experiment_name"
            raise AllDamaged(f"every checkpoint in {str(self._folder)!r} is damaged: {cure}")
        return None

    def _steps(self) -> list[int]:
        """Newest first."""
        names = [path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _changed_environment(self, earlier: Mapping[str, Any]) -> dict[str, list[Any]]:
        names = [name for name, value in self._environment.items() if earlier.get(name) != value]
        for name in names:
            _LOG.warning("going on with another %s: %s, it was %s", name, self._environment[name], earlier.get(name))
        return {f"environment.{name}": [earlier.get(name), self._environment[name]] for name in names}

    def _refuse_other_formats(self) -> None:
        names = [path.name for path in self._folder.glob("*") if path.suffix != _SUFFIX]
        others = [name for name in names if not name.startswith(".") and not name.endswith("~")]  # no editor's backups
        if others:
            problem = f"{str(self._folder)!r} holds {others[0]!r}, which this version of the project cannot read"
            raise UserError(f"{problem}: {START_AGAIN}")

    def _refuse_other_arrays(self, saved: list[str], expected: list[str]) -> None:
        if saved != expected:
            others = sorted(set(saved) ^ set(expected))
            raise UserError(
                f"the checkpoint in {self._folder} holds other arrays than this version of the submission has "
                f"({len(others)} differ, as {others[0] if others else 'their order'}): resume it with the version that "
                f"made it, or {START_AGAIN}"
            )


def _read(file: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        head, _, content = file.read_bytes().partition(b"\n")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Damaged(f"it is no file: {error.strerror}") from error
    except OSError as error:
        cure = "fix that and run the command again; to go on from the checkpoint before, remove this one"
        raise MachineFault(f"cannot read the checkpoint {str(file)!r} ({error.strerror}): {cure}") from error
    if hashlib.sha256(content).hexdigest().encode() != head:
        raise Damaged("its checksum does not fit its content")
    restored = serialization.msgpack_restore(content)
    leaves = restored["leaves"]
    return json.loads(restored["about"]), [leaves[str(i)] for i in range(len(leaves))]


def _layout(arrays: PyTree) -> list[str]:
    """Path, shape and dtype of every array."""
    leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
    return [f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {leaf.dtype}" for path, leaf in leaves]
