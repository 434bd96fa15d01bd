"""A machine can stop at any point: no state that it leaves makes the replica forget or lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash.explore import run

STATES = 5000  # a sample; `make test-crash` opens many more
WORKERS = 2


@pytest.mark.timeout(900)
@pytest.mark.parametrize("worker", range(WORKERS))
def test_every_state_a_crash_can_leave_holds_what_was_promised(worker: int, library: Path, scratch: Path) -> None:
    tally = run(library, scratch, states=STATES // WORKERS, first=1 + worker, step=WORKERS, choices_max=8)
    assert tally.findings == []
    assert tally.distinct >= STATES // WORKERS
    assert tally.acknowledged > 0
