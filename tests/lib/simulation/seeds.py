"""Which seeds a test runs."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(count: int, *, fast: int) -> list[Any]:
    """The seeds 1 to `count`, of which those behind the first `fast` are slow."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(fast + 1, count + 1)]
    return [*range(1, fast + 1), *slow]
