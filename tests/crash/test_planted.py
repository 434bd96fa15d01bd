"""The suite is proved by bugs planted in the real code: it finds each, and as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash.explore import run
from crash.planted import PLANTED
from crash.recorder import LIVES

STATES_MAX = 8000

WORDS = {
    "without sync": "cannot be opened",  # a root that never came: LMDB itself cannot read it
    "without metasync": "promised epoch 0, told 1",
    "state in a transaction of its own": "the journal ends at",
    "acknowledged before the commit": "were durable",
    "without fsync of files": "a torn tail",
    "without fsync of folders": "cannot be opened",
    "trimmed before the checkpoint": "the last checkpoint that is there speaks of",
    "base in a transaction of its own": "was not noted",
    "ends in a transaction of their own": "the state does not follow from the journal",
    "moved aside before the seed is complete": "were durable",
}

# The lives that a bug can show in; the others, in all of them.
KINDS = {
    "acknowledged before the commit": ("threads",),
    "without fsync of files": ("standby",),
    "trimmed before the checkpoint": ("trimming",),
    "base in a transaction of its own": ("trimming",),
    "ends in a transaction of their own": ("standby",),
    "moved aside before the seed is complete": ("seeded",),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, library: Path, scratch: Path) -> None:
    tally = run(library, scratch, states=STATES_MAX, planted=name, kinds=KINDS.get(name, LIVES))
    assert any(WORDS[name] in finding for finding in tally.findings), tally.findings
