"""An Optuna study that many workers fill with a sweep's points, and share."""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from tuning import study_storage
from tuning.errors import UserError
from tuning.point_status import points_only
from tuning.trial_rows import TrialRows


class SharedStudy:
    """The study of that name, made and filled if it is not there.

    Args:
        identity: what must be equal for a later worker to join.
        points: all of them, in order.
        grace_s: how long to wait for another worker that is filling the study.

    Raises:
        UserError: the storage cannot be reached or written, or holds a study of this name with another identity.
    """

    def __init__(
        self,
        place: study_storage.Place,
        name: str,
        identity: Mapping[str, Any],
        points: Sequence[Mapping[str, Any]],
        grace_s: float,
    ):
        self._points, self._grace_s = [json.loads(json.dumps(dict(point))) for point in points], grace_s
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with study_storage.told(place, "use"):
            self.storage = study_storage.open_shared(place)
            self.rows = TrialRows(self.storage)
            joined = functools.partial(self._join, name, json.loads(json.dumps(dict(identity))))
            study_storage.patiently(place, joined, study_storage.is_locked)

    def trials(self) -> list[FrozenTrial]:
        """Of the points, by number."""
        return points_only(self.storage.get_all_trials(self.id, deepcopy=False))

    def enqueue(self, indices: Sequence[int], intermediate_values: dict[int, float] | None = None) -> None:
        """All of the points, or none of them."""
        spread = {name: [point[name] for point in self._points] for name in self._points[0]}
        distributions = {name: _distribution(values) for name, values in spread.items()}
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
        try:  # also where the study is known to be there: who may not write is refused here, not in the first trial
            self.study = optuna.create_study(storage=self.storage, study_name=name)
            self.id = self.storage.get_study_id_from_name(name)
            self.storage.set_study_user_attr(self.id, "identity", identity)
        except optuna.exceptions.DuplicatedStudyError:
            self.study = optuna.load_study(storage=self.storage, study_name=name)
            self.id = self.storage.get_study_id_from_name(name)
            self._wait_for_the_maker(lambda: "identity" in self.storage.get_study_user_attrs(self.id))
            if "identity" not in self.storage.get_study_user_attrs(self.id):
                self.storage.set_study_user_attr(self.id, "identity", identity)  # its maker died at once
            self._refuse_another(name, identity)
            self._wait_for_the_maker(lambda: not self._missing())
        if missing := self._missing():
            self.enqueue(missing)

    def _missing(self) -> list[int]:
        present = {trial.user_attrs["index"] for trial in self.trials()}
        return [index for index in range(1, len(self._points) + 1) if index not in present]

    def _wait_for_the_maker(self, is_ready: Callable[[], bool]) -> None:
        """Waits while the worker that made the study is still filling it, unless it has stopped doing so."""
        seen, since = -1, time.monotonic()
        while not is_ready() and time.monotonic() - since < self._grace_s:
            n_trials = self.storage.get_n_trials(self.id)
            if n_trials != seen:
                seen, since = n_trials, time.monotonic()
            time.sleep(0.05)

    def _refuse_another(self, name: str, identity: Mapping[str, Any]) -> None:
        found = self.storage.get_study_user_attrs(self.id).get("identity", {})
        for key, own in identity.items():
            if found.get(key) != own:
                raise UserError(
                    f"study {name!r} in the storage has another {key}: {_short(found.get(key))}, not {_short(own)}; "
                    "give another --experiment_name, or run what it was made with"
                )


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """What Optuna's own tools need to show a hyperparameter."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values))
    return CategoricalDistribution(list(dict.fromkeys(_plain(value) for value in values)))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}…"
