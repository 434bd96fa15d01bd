"""Each drill once. What holds of many runs, and how long they take, is in docs/drills.md."""

from __future__ import annotations

import pytest

from kubectl import Cluster
from rows import ROWS, Row, cannot, run

# A machine that does much else at the same time is slower than a limit that 20 runs on a quiet one have to keep.
BUSY_SECONDS = 4.0


@pytest.mark.timeout(420)
@pytest.mark.parametrize("row", [row for row in ROWS if row.partitions is None], ids=lambda row: row.name)
def test_a_drill_loses_nothing(cluster: Cluster, row: Row) -> None:
    if why := cannot(row):
        pytest.skip(why)
    done = run(cluster, row, 0)
    assert done.wrong(row, more_seconds=BUSY_SECONDS) == [], done.examples
