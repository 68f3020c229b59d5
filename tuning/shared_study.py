"""An Optuna study of a sweep's points that many workers share; the first one fills it."""

import functools
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from tuning import disk, study_storage
from tuning.errors import UserError, short_json
from tuning.point_status import points_only
from tuning.trial_rows import TrialRows


class SharedStudy:
    """The study of that name, which is created and filled with points if it does not exist.

    Args:
        identity: what must be equal for a later worker to join.
        points: all points of the study, in order.
        grace_s: how long to wait for another worker that is filling the study.
        id_file: in the trials' folder, with a random id that the study has, too: another folder of the same name is
            refused. Paths are not compared, since machines may mount one folder at different ones. None for a storage
            that is itself in the trials' folder.

    Raises:
        UserError: the storage cannot be reached or written, or holds a study of this name with another identity
            or another folder.
    """

    def __init__(
        self,
        location: study_storage.Location,
        name: str,
        identity: Mapping[str, Any],
        points: Sequence[Mapping[str, Any]],
        grace_s: float,
        id_file: Path | None = None,
    ):
        self._id_file = id_file
        self._points, self._grace_s = [json.loads(json.dumps(dict(point))) for point in points], grace_s
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with study_storage.errors_explained(location, "use"):
            self.storage = study_storage.open_shared(location)
            self.rows = TrialRows(self.storage)
            join = functools.partial(self._join, name, json.loads(json.dumps(dict(identity))))
            study_storage.retry_while_unavailable(location, join, study_storage.is_locked)

    def trials(self) -> list[FrozenTrial]:
        """The trials of the points, by number."""
        return points_only(self.storage.get_all_trials(self.id, deepcopy=False))

    def enqueue(self, indices: Sequence[int], intermediate_values: dict[int, float] | None = None) -> None:
        """Adds a trial for each of the points, or for none of them if that fails."""
        values_of = {name: [point[name] for point in self._points] for name in self._points[0]}
        distributions = {name: _distribution(values) for name, values in values_of.items()}
        trials = [
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params={name: _plain(value) for name, value in self._points[index - 1].items()},
                distributions=distributions,
                user_attrs={"index": index, "point": self._points[index - 1]},
                intermediate_values=intermediate_values,
            )
            for index in indices
        ]
        self.rows.add_trials(self.id, trials)

    def _join(self, name: str, identity: Mapping[str, Any]) -> None:
        is_new_folder = self._id_file is not None and not self._id_file.exists()
        folder = {} if self._id_file is None else {"folder": _folder_id(self._id_file)}
        try:  # even if the study exists: a user who may not write is refused here, not in the first trial
            self.study = optuna.create_study(storage=self.storage, study_name=name)
            self.id = self.storage.get_study_id_from_name(name)
            self.storage.set_study_user_attr(self.id, "identity", {**identity, **folder})
        except optuna.exceptions.DuplicatedStudyError:
            self.study = optuna.load_study(storage=self.storage, study_name=name)
            self.id = self.storage.get_study_id_from_name(name)
            self._wait_for_creator(lambda: "identity" in self.storage.get_study_user_attrs(self.id))
            if "identity" not in self.storage.get_study_user_attrs(self.id):
                self.storage.set_study_user_attr(
                    self.id, "identity", {**identity, **folder}
                )  # its creator died at once
            self._refuse_other_identity(name, identity)
            self._wait_for_creator(lambda: not self._missing())
        try:
            self._refuse_other_folder(name, folder)
        except UserError:
            if is_new_folder and self._id_file is not None:
                self._id_file.unlink()
            raise
        if missing := self._missing():
            self.enqueue(missing)

    def _missing(self) -> list[int]:
        present = {trial.user_attrs["index"] for trial in self.trials()}
        return [index for index in range(1, len(self._points) + 1) if index not in present]

    def _wait_for_creator(self, is_ready: Callable[[], bool]) -> None:
        """Waits until the worker that created the study has filled it, or has added no trial for `grace_s`."""
        n_before, since = -1, time.monotonic()
        while not is_ready() and time.monotonic() - since < self._grace_s:
            n_trials = self.storage.get_n_trials(self.id)
            if n_trials != n_before:
                n_before, since = n_trials, time.monotonic()
            time.sleep(0.05)

    def _refuse_other_identity(self, name: str, identity: Mapping[str, Any]) -> None:
        stored = self.storage.get_study_user_attrs(self.id).get("identity", {})
        for key, value in identity.items():
            if stored.get(key) != value:
                difference = f"another {key}: {short_json(stored.get(key))}, not {short_json(value)}"
                cure = "give another --experiment_name, or use the settings and code that it was made with"
                raise UserError(f"study {name!r} in the storage has {difference}; {cure}")

    def _refuse_other_folder(self, name: str, folder: Mapping[str, str]) -> None:
        """Refuses a study whose trials are in another folder. Studies of earlier versions store no folder's id."""
        stored = self.storage.get_study_user_attrs(self.id).get("identity", {})
        if self._id_file is None or "folder" not in stored or stored["folder"] == folder["folder"]:
            return
        cure = "give the --experiment_dir that it was made with, or another --experiment_name"
        raise UserError(
            f"study {name!r} in the storage has its trials in another folder than {str(self._id_file.parent)!r}; {cure}"
        )


def _folder_id(id_file: Path) -> str:
    """The folder's random id, which the first caller makes."""
    with disk.errors_explained(id_file.parent):
        try:
            with id_file.open("x", encoding="utf-8") as file:
                file.write(uuid.uuid4().hex)
        except FileExistsError:
            pass
        for _ in range(20):
            if text := id_file.read_text(encoding="utf-8", errors="replace").strip():
                return text
            time.sleep(0.1)  # another process has made the file, and not yet written it
    raise UserError(f"{str(id_file)!r} is empty: remove it, and run the command again")


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """The distribution of a hyperparameter, by which Optuna's own tools show it."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution(list(dict.fromkeys(_plain(value) for value in values)))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)
