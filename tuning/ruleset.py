"""AlgoPerf's tuning rulesets, which say who chooses the hyperparameters and how long a trial may last.

Source: mlcommons/algorithmic-efficiency, `submission_runner.py`, v0.6.
"""

from enum import StrEnum


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
