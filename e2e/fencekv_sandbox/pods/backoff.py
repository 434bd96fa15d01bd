"""How long a container that ended waits for its next start. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """As a kubelet does it: the first restart at once, then ever later, and anew after a long run."""

    seconds: float = 10.0
    seconds_max: float = 300.0
    reset_seconds: float = 600.0

    def after(self, *, restarts_in_row: int, ran_seconds: float) -> tuple[float, int]:
        """Seconds to wait, and the restarts in a row with the one that follows."""
        if ran_seconds >= self.reset_seconds or restarts_in_row == 0:
            return 0.0, 1
        return min(self.seconds * 2.0 ** (restarts_in_row - 1), self.seconds_max), restarts_in_row + 1
