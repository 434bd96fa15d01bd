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
OF_A_COMMIT = {"write", "sync"}
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
    recorder: Recorder,
    life: str,
    seed: int,
    *,
    terms: int,
    worker: int = 0,
    workers: int = WORKERS,
    failures: Iterable[str] = FAILURES,
    planted: str | None = None,
) -> Iterator[tuple[str, Recording]]:
    """The life with each call failing once, in each way; each worker takes its share."""
    untroubled = recorder.record(life, seed, terms=terms)
    assert untroubled.status == 0, untroubled.said
    for nth in range(1 + worker, calls(untroubled) + 1, workers):
        for name in failures:
            fail: dict[str, Any] = {"nth": nth, **FAILURES[name]}
            recording = recorder.record(life, seed, terms=terms, fail=fail, planted=planted)
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
        Explorer(scratch, random.Random(worker), choices_max=6) as explorer,
    ):
        for name, recording in lives_with_failures(recorder, "owner", 5, terms=2, worker=worker):
            fault = fault_of(recording)
            call = recording.events[fault].path
            failed[call] += 1
            if call not in OF_A_COMMIT:  # the opening of the second term
                assert recording.status in {0, 3}, (name, recording.status, recording.said)
                continue
            assert recording.status == COMMIT_FAILED, (name, recording.status, recording.said)
            assert "commit failed" in recording.said, name
            for word in ("acknowledged", "appended", "promised", "closed", "applied"):
                assert all(place < fault for place in recording.marks(word)), (name, word)
            errors = {recording.events[place].mark()[1]["error"] for place in recording.marks("answered")}
            assert errors <= {"Unknown", "NotOwner"}, (name, errors)
            tally = explorer.explore(recording, first=fault)
            assert tally.findings == [], name
    assert failed["write"] > 0, failed
    assert failed["sync"] > 0, failed


@pytest.mark.parametrize("worker", range(WORKERS))
def test_a_failing_call_of_a_standby_leaves_what_it_confirmed(worker: int, library: Path, scratch: Path) -> None:
    ended: Counter[int] = Counter()
    with (
        Recorder(library, scratch / "lives") as recorder,
        Explorer(scratch, random.Random(worker), choices_max=4) as explorer,
    ):
        for name, recording in lives_with_failures(
            recorder, "standby", 11, terms=2, worker=worker, failures=("EIO", "short write", "EIO from then on")
        ):
            assert recording.status in {0, 3, COMMIT_FAILED}, (name, recording.status, recording.said)
            tally = explorer.explore(recording, first=fault_of(recording), distinct_max=DISTINCT_MAX)
            assert tally.findings == [], (name, recording.said)
            ended[recording.status] += 1
    assert ended[COMMIT_FAILED] > 0, ended


@pytest.mark.parametrize(("life", "seed"), [("trimming", 3), ("seeded", 5)])
def test_a_failing_call_of_trimming_or_seeding_leaves_base_and_journal_whole(
    life: str, seed: int, library: Path, scratch: Path
) -> None:
    ended: Counter[int] = Counter()
    with (
        Recorder(library, scratch / "lives") as recorder,
        Explorer(scratch, random.Random(seed), choices_max=4) as explorer,
    ):
        for name, recording in lives_with_failures(recorder, life, seed, terms=2, failures=("EIO",)):
            assert recording.status in {0, 3, COMMIT_FAILED}, (name, recording.status, recording.said)
            tally = explorer.explore(recording, first=fault_of(recording), distinct_max=DISTINCT_MAX // 2)
            assert tally.findings == [], (name, recording.said)
            ended[recording.status] += 1
    assert ended[COMMIT_FAILED] > 0, ended


@pytest.mark.parametrize(
    ("planted", "life", "word"),
    [
        ("failed commits taken for good", "owner", "were durable"),
        ("failed fsyncs tried again", "standby", "a torn tail"),
    ],
)
def test_a_planted_bug_that_shows_on_a_failing_disk_is_found(
    planted: str, life: str, word: str, library: Path, scratch: Path
) -> None:
    findings: list[str] = []
    with (
        Recorder(library, scratch / "lives") as recorder,
        Explorer(scratch, random.Random(1)) as explorer,
    ):
        troubled = lives_with_failures(recorder, life, 11, terms=2, workers=1, failures=("EIO",), planted=planted)
        for _, recording in troubled:
            findings += explorer.explore(recording, first=fault_of(recording), distinct_max=DISTINCT_MAX).findings
            if any(word in finding for finding in findings):
                return
    raise AssertionError(findings)
