"""A workload's target, from its first-order references, before any other training algorithm has run.

Random points of each reference over the whole budget; the best point of the better one again on five seeds; the
target is the median of the best validation metric. The test target is the median of the test metric at that same
evaluation.
"""

import csv
import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuning.comparison import Protocol, best_metric, repetition_place, search_and_repeat
from tuning.errors import UserError
from tuning.outcome import Outcome
from workloads import registry

N_SEEDS = 5


def find_target(workload_name: str, references: list[str], protocol: Protocol) -> dict[str, Any]:
    """The procedure's result: the targets, the point they come from, and every trial.

    Raises:
        UserError: the workload's target is set: trials would stop there, and a target is set once.
    """
    if math.isfinite(registry.load(workload_name).validation_target_value):
        raise UserError(f"the target of {workload_name} is set and frozen; to set it anew, make it infinite first")
    searched = search_and_repeat(workload_name, references, _without_repetitions(protocol), _by_metric)
    searches = dict(zip(references, searched, strict=True))
    best = max(searches, key=lambda path: max(map(best_metric, searches[path].search)))
    (result,) = search_and_repeat(workload_name, [best], protocol, _by_metric)
    folder = protocol.folder / workload_name / result.submission
    tested = [_test_metric(o, folder / repetition_place(result.best_trial, o.rng_seed)) for o in result.repetitions]
    return {
        "workload": workload_name,
        "reference": result.submission,
        "hyperparameters": result.repetitions[0].hyperparameters,
        "validation_target": statistics.median(map(best_metric, result.repetitions)),
        "test_target": statistics.median(tested),
        "repetitions": [_summary(outcome) for outcome in result.repetitions],
        "searches": {r.submission: [_summary(outcome) for outcome in r.search] for r in searches.values()},
        "environment": result.repetitions[0].environment,
    }


def _without_repetitions(protocol: Protocol) -> Protocol:
    return Protocol(**{**asdict(protocol), "seeds": ()})


def _by_metric(outcome: Outcome) -> float:
    return -best_metric(outcome)


def _summary(outcome: Outcome) -> dict[str, Any]:
    names = ("rng_seed", "hyperparameters", "best_validation_metric", "best_validation_step", "submission_seconds")
    return {name: getattr(outcome, name) for name in names}


def _test_metric(outcome: Outcome, folder: Path) -> float:
    with (folder / "eval_measurements.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if int(row["global_step"]) == outcome.best_validation_step)
    return float(row[f"test/{outcome.target_metric}"])


def write(found: dict[str, Any], folder: Path) -> Path:
    path = folder / f"{found['workload']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path
