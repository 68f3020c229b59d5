"""Checkpoints of a running trial, by Orbax: the newest few, each whole or not there.

A checkpoint holds the trial's arrays (parameters, model state, optimizer state) and its record, plain data: counters,
the rows of its files, the place in the input queue. Random keys need no saving: they come from (seed, trial, step).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuning.errors import UserError, one_line

PyTree = Any
_LOG = logging.getLogger(__name__)


class Checkpoints:
    """Of one trial.

    Args:
        folder: where they lie; made when the first is saved.
        identity: what must be equal for a checkpoint to be this trial's: workload, submission, search point, seed.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, keep: int = 2):
        self._folder, self._identity, self._keep = folder.absolute(), dict(identity), keep
        self._open: Any = None  # Orbax's manager, once it is needed: importing Orbax takes seconds

    def save(self, step: int, arrays: PyTree, record: Mapping[str, Any]) -> None:
        """Writes the checkpoint of `step`; it is on disk when this returns."""
        import orbax.checkpoint as ocp

        content = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave(
                {"identity": self._identity, "arrays": _description(arrays), "record": dict(record)}
            ),
        )
        self._manager.save(step, args=content)
        self._manager.wait_until_finished()

    def newest(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """(arrays in the structure of `like`, record) of the newest that can be read; None if there is none.

        One that cannot be read is said so, deleted, and the one before it taken.

        Raises:
            UserError: a checkpoint is of another workload, submission, search point or seed, or its arrays are others,
                as those of another version of the submission.
        """
        if not self._folder.is_dir():
            return None
        import orbax.checkpoint as ocp

        on_host = jax.tree.map(np.asarray, like)  # arrays come back on no device in particular, as a fresh start's
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
                self._refuse_another(found["identity"])
                self._refuse_other_arrays(found.get("arrays"), _description(like))
                restore = ocp.args.Composite(arrays=ocp.args.StandardRestore(on_host))
                return self._manager.restore(step, args=restore)["arrays"], found["record"]
            except UserError:
                raise
            except Exception as error:  # whatever a damaged file leads to
                cause = one_line(error)[:200]
                _LOG.warning("checkpoint %d in %s is damaged and left out: %s", step, self._folder, cause)
                self._manager.delete(step)
        return None

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def _manager(self) -> Any:
        if self._open is None:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, enable_async_checkpointing=False)
            self._open = ocp.CheckpointManager(self._folder, options=options)
        return self._open

    def _refuse_other_arrays(self, saved: list[str] | None, own: list[str]) -> None:
        if saved != own:
            others = sorted(set(saved or ()) ^ set(own))
            raise UserError(
                f"the checkpoint in {self._folder} holds other arrays than this version of the submission has "
                f"({len(others)} differ, as {others[0] if others else 'their order'}): resume it with the version that "
                "made it, or give --overwrite or another --experiment_name"
            )

    def _refuse_another(self, identity: Mapping[str, Any]) -> None:
        for key, own in self._identity.items():
            if identity.get(key) != own:
                raise UserError(
                    f"the checkpoint in {self._folder} has {key} {identity.get(key)!r}, not {own!r}: "
                    "resume what it belongs to, or give --overwrite or another --experiment_name"
                )


def _description(arrays: PyTree) -> list[str]:
    """Path, shape and dtype of every array."""
    leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
    return [f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {leaf.dtype}" for path, leaf in leaves]
