"""What ran, on what: commits, machines and versions of the trials."""

from collections import defaultdict
from collections.abc import Sequence

from tuning.report.reading import Phase, Trial

_VERSIONS = ("python", "jax", "jaxlib", "flax", "optax", "numpy")


def of(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Name -> the different values, in order."""
    found: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        e = trial.environment
        if e.get("git_commit"):
            dirty = " with uncommitted changes" if e.get("git_dirty") else ""
            found["commit"].add(str(e["git_commit"])[:10] + dirty)
        hardware = [str(e[name]) for name in ("cpu_model", "n_cpu_cores", "memory_gib") if e.get(name)]
        if hardware:
            found["machine"].add(", ".join(hardware) + (" GiB" if e.get("memory_gib") else ""))
        if e.get("device_kind"):
            found["devices"].add(f"{e.get('n_devices', 1)} × {e['device_kind']}")
        for name in _VERSIONS:
            if e.get(name):
                found[name].add(str(e[name]))
        if trial.rng_seed is not None:
            found["seeds"].add(str(trial.rng_seed))
    return {name: sorted(values) for name, values in found.items()}


def differences(trials: Sequence[Trial]) -> list[str]:
    """A warning for each thing in which the trials of a search, or those that are timed for it, differ.

    Seeds are meant to differ, and so may a search, whose trials share the cores, from what is timed alone.
    """
    timed = [trial for trial in trials if trial.phase in (Phase.REPEAT, Phase.REFERENCE)]
    searched = [trial for trial in trials if trial.phase in (Phase.SEARCH, Phase.CONFIRM)]
    found = [
        f"The trials differ in {name}: {', '.join(values)}."
        for group in (searched, timed)
        for name, values in of(group).items()
        if name != "seeds" and len(values) > 1
    ]
    return list(dict.fromkeys(found))
