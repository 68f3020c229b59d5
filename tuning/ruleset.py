"""AlgoPerf's tuning rulesets, which say who chooses the hyperparameters and how long a trial may last.

Source: mlcommons/algorithmic-efficiency, `submission_runner.py`, v0.6.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

from tuning import search_space
from tuning.errors import UserError


class TuningRuleset(StrEnum):
    """The values are those of AlgoPerf's flag."""

    EXTERNAL = "external"  # every trial has a point of a search space
    SELF = "self"  # a study is one trial, whose hyperparameters the submission chooses

    @property
    def folder_name(self) -> str:
        """AlgoPerf's folder of the submissions under this ruleset."""
        return f"{self}_tuning"

    @property
    def budget_factor(self) -> float:
        """The factor of the workload's time limit, and in this project of its number of steps, too."""
        return 1.5 if self is TuningRuleset.SELF else 1.0


def space_and_points(
    ruleset: TuningRuleset,
    space_file: str | None,
    default_file: Path,
    n_points: int,
    seed: int,
    sampling: search_space.Sampling = search_space.Sampling.RANDOM,
) -> tuple[dict | list | None, list[dict[str, Any]]]:
    """The search space and its first points; None and one empty point under the self-tuning ruleset.

    Args:
        space_file: is used in place of the submission's own file, `default_file`.

    Raises:
        UserError: a search space that cannot be used; a search space, or several points, for self-tuning.
    """
    if ruleset is TuningRuleset.SELF:
        if space_file is not None:
            raise UserError("--tuning_search_space is for --tuning_ruleset=external; leave out one of them")
        if n_points != 1:
            cure = "give --num_tuning_trials=1; other seeds, or a sweep's --num_studies, repeat it"
            raise UserError(f"under --tuning_ruleset=self a study is one trial; {cure}")
        return None, [{}]
    space = search_space.read(space_file or default_file)
    return space, search_space.points(space, n_points, seed, sampling)
