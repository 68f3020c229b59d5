"""Seconds since counters last changed, by one process's own monotonic clock.

Workers on many machines show that they live by raising a counter. A process that watches them compares no clocks of
different machines: it records when it saw each counter change. So a wrong or adjusted clock has no effect.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any


class CounterAges:
    """Seconds since each counter, such as a worker's heartbeats, last changed.

    Args:
        longest_step_s: the most seconds that one call of `look` adds: while the watcher is suspended it sees no change.
        clock: monotonic seconds.
    """

    def __init__(self, longest_step_s: float, clock: Callable[[], float] = time.monotonic):
        self._longest_step_s, self._clock = longest_step_s, clock
        self._latest: dict[Hashable, tuple[Any, float]] = {}  # key -> counter, seconds without a change
        self._looked_at = clock()

    def look(self, counters: Mapping[Hashable, Any]) -> dict[Hashable, float]:
        """Seconds since each counter last changed; 0 for a new one."""
        now = self._clock()
        step, self._looked_at = min(now - self._looked_at, self._longest_step_s), now
        ages_s = {}
        for key, counter in counters.items():
            latest = self._latest.get(key)
            ages_s[key] = 0.0 if latest is None or latest[0] != counter else latest[1] + step
        self._latest = {key: (counter, ages_s[key]) for key, counter in counters.items()}
        return ages_s
