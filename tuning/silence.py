"""How long something has shown no change, by one process's own monotonic clock.

Workers on many machines show that they live by raising a counter. Whoever watches them compares no clocks: it notes
when it saw each counter change, so that a clock that is wrong, or set anew, changes nothing.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any


class Silence:
    """Watches counters.

    Args:
        longest_step_s: what one look adds at most. A watcher that was stopped itself could see no change meanwhile.
        clock: seconds that only grow.
    """

    def __init__(self, longest_step_s: float, clock: Callable[[], float] = time.monotonic):
        self._longest_step_s, self._clock = longest_step_s, clock
        self._seen: dict[Hashable, tuple[Any, float]] = {}  # key -> counter, seconds without a change
        self._looked_at = clock()

    def look(self, counters: Mapping[Hashable, Any]) -> dict[Hashable, float]:
        """Seconds for which each counter has been the same; 0 for one seen for the first time."""
        now = self._clock()
        step, self._looked_at = min(now - self._looked_at, self._longest_step_s), now
        silent_s = {}
        for key, counter in counters.items():
            before = self._seen.get(key)
            silent_s[key] = 0.0 if before is None or before[0] != counter else before[1] + step
        self._seen = {key: (counter, silent_s[key]) for key, counter in counters.items()}
        return silent_s
