"""Trial folders written by hand, in this project's form and in the official harness's."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRIC = "accuracy"
_COLUMNS = ("global_step", "preemption_count", "score", "total_duration", "accumulated_submission_time")
_COLUMNS += ("accumulated_eval_time", "accumulated_logging_time", "validation/loss", f"validation/{METRIC}")


def write_trial(
    folder: Path,
    values: Sequence[float],
    *,
    point: Mapping[str, Any],
    steps: int = 10,
    seconds_a_step: float = 0.1,
    target: float | None = 0.8,
    budget: int = 100,
    outcome: Mapping[str, Any] | None = None,
    seed: int = 0,
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """A trial that was evaluated every `steps` steps, with these values of the metric.

    Args:
        outcome: what is to stand in outcome.json beside what follows from the rest; None for no such file.
    """
    folder.mkdir(parents=True)
    rows = []
    for i, value in enumerate(values, start=1):
        spent = i * steps * seconds_a_step
        rows.append([i * steps, 0, spent, spent + i, spent, 0.5 * i, 0.25 * i, 1.0, value])
    with open(folder / "eval_measurements.csv", "w", newline="") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])
    (folder / "hparams.json").write_text(json.dumps(point))
    described = {"workload.target_metric_name": METRIC, "workload.validation_target_value": target}
    described |= {"workload.step_hint": budget, "workload.max_allowed_runtime_sec": 1_000, "rng_seed": seed}
    (folder / "meta_data_0.json").write_text(json.dumps(described | dict(meta or {})))
    if outcome is not None:
        (folder / "outcome.json").write_text(json.dumps(_outcome(values, point, steps, target, budget, seed, outcome)))
    return folder


def _outcome(values, point, steps, target, budget, seed, more) -> dict[str, Any]:
    hit = next((i for i, value in enumerate(values, start=1) if target is not None and value >= target), None)
    found = {
        "target_metric": METRIC,
        "target_value": target,
        "hyperparameters": dict(point),
        "rng_seed": seed,
        "steps_to_target": None if hit is None else hit * steps,
        "reason": None if hit is not None else "budget",
        "compile_seconds": 0.0,
        "compile_seconds_to_target": None if hit is None else 0.0,
        "step_budget": budget,
        "environment": {"git_commit": "c0ffee" * 5, "jax": "0.10.2", "device_kind": "cpu", "n_devices": 1},
    }
    return found | dict(more)


def write_comparison(root: Path) -> Path:
    """Two submissions as a comparison leaves them: three searched points, the best one again on three seeds.

    kfac: hits at steps 20, 30, 40 of its repetitions, of which 1, 1, 1 seconds are compilation.
    sgd: hits at 50 and 70, and misses its 100 steps once; nothing compiled.
    """
    plans = {
        "kfac": (["damping"], [(2, 0.2), (3, 0.1), (4, 0.1)], 1.0),
        "sgd": ([], [(5, 0.1), (7, 0.1), (None, 0.1)], 0.0),
    }
    for name, (more, hits, compile_seconds) in plans.items():
        own = {"workload": "digits", "submission": name, "compile_seconds": compile_seconds}

        def trial(place: str, hit: int | None, point, seconds=0.1, seed=0, own=own, name=name) -> None:
            values = [0.5] * 10 if hit is None else [0.5] * (hit - 1) + [0.81]
            reached = {} if hit is None else {"compile_seconds_to_target": own["compile_seconds"]}
            write_trial(
                root / "digits" / name / place,
                values,
                point=point,
                seconds_a_step=seconds,
                seed=seed,
                outcome=own | reached,
            )

        for index, hit in enumerate((None, hits[0][0], 9), start=1):
            point = {"learning_rate": 0.1 * index} | {key: 1e-3 * index for key in more}
            trial(f"search/trial_{index}", hit, point)
        best = {"learning_rate": 0.2} | {key: 2e-3 for key in more}
        for seed, (hit, seconds) in enumerate(hits, start=1):
            trial(f"repeat/trial_2_seed_{seed}", hit, best, seconds, seed)
    return root
