"""Whether a student that crashed is started again, and when: a pure choice but for its jitter; no clock, no process."""

from __future__ import annotations

from dataclasses import dataclass

from tenacity import RetryCallState, wait_exponential, wait_random

__all__ = ["Restarts"]


@dataclass(frozen=True)
class Restarts:
    """At most `limit` starts in a row after crashes; before each a pause that doubles, from `first_s` to `longest_s`."""

    limit: int
    first_s: float
    longest_s: float

    def pause_s(self, crashes: int) -> float | None:
        """Seconds to wait after so many crashes in a row, jittered upwards by at most the first pause; None gives up."""
        if crashes > self.limit:
            return None
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        state.attempt_number = crashes
        wait = wait_exponential(multiplier=self.first_s, max=self.longest_s) + wait_random(0, self.first_s)
        return min(self.longest_s, float(wait(state)))
