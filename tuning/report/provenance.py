"""Commits, machines and versions of the trials."""

from collections import defaultdict
from collections.abc import Sequence

from tuning.report.reading import Trial

_HARDWARE = {"cpu_model": "", "n_cpu_cores": " cores", "memory_gib": " GiB"}  # field -> unit
_VERSIONS = ("python", "jax", "jaxlib", "flax", "optax", "numpy")


def of(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Name -> the different values, sorted."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        e = trial.environment
        if e.get("git_commit"):
            dirty = " with uncommitted changes" if e.get("git_dirty") else ""
            by_name["commit"].add(str(e["git_commit"])[:10] + dirty)
        hardware = [f"{e[name]}{unit}" for name, unit in _HARDWARE.items() if e.get(name)]
        if hardware:
            by_name["machine"].add(", ".join(hardware))
        if e.get("device_kind"):
            by_name["devices"].add(f"{e.get('n_devices', 1)} × {e['device_kind']}")
        for name in _VERSIONS:
            if e.get(name):
                by_name[name].add(str(e[name]))
        if trial.rng_seed is not None:
            by_name["seeds"].add(str(trial.rng_seed))
    return {name: sorted(values) for name, values in by_name.items()}


def differences(trials: Sequence[Trial]) -> list[str]:
    """A warning for each name whose values differ among a search's trials, or among the timed trials.

    Seeds are meant to differ. A search, whose trials share the cores, may differ from the timed trials.
    """
    timed = [trial for trial in trials if trial.phase.is_timed]
    searched = [trial for trial in trials if not trial.phase.is_timed]
    warnings = [
        f"The trials differ in {name}: {'; '.join(values)}."
        for group in (searched, timed)
        for name, values in of(group).items()
        if name != "seeds" and len(values) > 1
    ]
    return list(dict.fromkeys(warnings))
