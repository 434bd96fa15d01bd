"""A disk that fails: nothing more is acknowledged, the process ends, and the next one finds what is durable."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash.explore import Explorer
from crash.recorder import Recorder, Recording
from crash.shim import Op

COMMIT_FAILED = 74
ALL = 1 << 30
WORKERS = 2
DISTINCT_MAX = 40  # states after a failure that a standby survived
FAILURES = {
    "EIO": {"error": errno.EIO},
    "ENOSPC": {"error": errno.ENOSPC},
    "short write": {"error": errno.ENOSPC, "short": True},
    "EIO from then on": {"error": errno.EIO, "count": ALL},
}


def calls(recording: Recording) -> int:
    """How many calls of a life can be made to fail."""
    (started,) = recording.marks("started")
    recorded = [event for event in recording.events[started:] if event.op not in {Op.MARK, Op.FORGET, Op.FAULT}]
    return len(recorded)


def lives_with_failures(
    recorder: Recorder, life: str, seed: int, *, terms: int, worker: int, failures: Iterable[str] = FAILURES
) -> Iterator[tuple[str, Recording]]:
    """The life with each call failing once, in each way; each worker takes its share."""
    untroubled = recorder.record(life, seed, terms=terms)
    assert untroubled.status == 0, untroubled.said
    for nth in range(1 + worker, calls(untroubled) + 1, WORKERS):
        for name in failures:
            fail: dict[str, Any] = {"nth": nth, **FAILURES[name]}
            recording = recorder.record(life, seed, terms=terms, fail=fail)
            if any(event.op is Op.FAULT for event in recording.events):
                yield f"{life} {seed}, call {nth}: {name}", recording


def fault_of(recording: Recording) -> int:
    return next(at for at, event in enumerate(recording.events) if event.op is Op.FAULT)


@pytest.mark.parametrize("worker", range(WORKERS))
def test_a_failing_call_of_a_commit_ends_the_process_and_is_never_acknowledged(
    worker: int, library: Path, scratch: Path
) -> None:
    failed: Counter[str] = Counter()
    with (
        Recorder(library, scratch / "lives") as recorder,
        Explorer(scratch, random.Random(worker), choices_max=8) as explorer,
    ):
        for name, recording in lives_with_failures(recorder, "owner", 5, terms=1, worker=worker):
            fault = fault_of(recording)
            assert recording.status == COMMIT_FAILED, (name, recording.status, recording.said)
            assert "commit failed" in recording.said, name
            for word in ("acknowledged", "appended", "promised", "closed", "applied"):
                assert all(place < fault for place in recording.marks(word)), (name, word)
            errors = {recording.events[place].mark()[1]["error"] for place in recording.marks("answered")}
            assert errors <= {"Unknown", "NotOwner"}, (name, errors)
            tally = explorer.explore(recording, first=fault)
            assert tally.findings == [], name
            failed[recording.events[fault].path] += 1
    assert failed["write"] > 20, failed
    assert failed["sync"] > 10, failed


@pytest.mark.parametrize("worker", range(WORKERS))
def test_a_failing_call_of_a_standby_leaves_what_it_confirmed(worker: int, library: Path, scratch: Path) -> None:
    ended: Counter[int] = Counter()
    with (
        Recorder(library, scratch / "lives") as recorder,
        Explorer(scratch, random.Random(worker), choices_max=4) as explorer,
    ):
        for name, recording in lives_with_failures(
            recorder, "standby", 4, terms=2, worker=worker, failures=("EIO", "short write", "EIO from then on")
        ):
            assert recording.status in {0, 3, COMMIT_FAILED}, (name, recording.status, recording.said)
            tally = explorer.explore(recording, first=fault_of(recording), distinct_max=DISTINCT_MAX)
            assert tally.findings == [], (name, recording.said)
            ended[recording.status] += 1
    assert ended[COMMIT_FAILED] > 20, ended
