"""What a drill's records say, counted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from history import Records, Verdict, again_seconds, handovers, judge, strays, waited_seconds

END = {"end": True, "stopped": 10.0, "read_error": ""}


def put(key: str, version: str, sent: float, at: float, *, partition: str = "p-0", **more: str) -> dict[str, Any]:
    return {"key": key, "sent": sent, "at": at, "partition": partition, "version": version, **more}


def read(key: str, version: str, value: str = "") -> dict[str, Any]:
    return {"read": key, "value": value or f"value of {key}", "version": version}


def records(*lines: dict[str, Any], partitions: tuple[str, ...] = ("p-0",)) -> Records:
    gathered = Records()
    for line in ({"begin": True, "partitions": list(partitions)}, *lines, END):
        gathered.add(line)
    return gathered


def judged(*lines: dict[str, Any], partitions: tuple[str, ...] = ("p-0",)) -> Verdict:
    return judge(records(*lines, partitions=partitions))


ALL_WELL = (put("a", "1.0", 1.0, 1.1), put("b", "1.1", 9.0, 9.5), read("a", "1.0"), read("b", "1.1"))


def test_all_is_well() -> None:
    verdict = judged(*ALL_WELL)
    assert verdict == Verdict(
        acknowledged=2,
        pause_seconds=pytest.approx(8.4),
        slowest_seconds=pytest.approx(0.5),
        failed=0,
        unknown=0,
        lost=0,
        stale=0,
        doubled=0,
        stubborn_acknowledged=0,
        examples=(),
    )


@pytest.mark.parametrize(
    ("field", "lines"),
    [
        ("lost", [put("a", "1.0", 1, 2)]),
        ("lost", [put("a", "1.0", 1, 2), read("a", "2.0")]),
        ("lost", [put("a", "1.0", 1, 2), read("a", "1.0", "another value")]),
        ("lost", [put("a", "1.0", 1, 2, shard="s-0:7070")]),
        ("stale", [put("a", "2.1", 1, 2), put("b", "1.2", 3, 4), read("a", "2.1"), read("b", "1.2")]),
        (
            "stale",
            [put("a", "2.1", 1, 2), put("b", "1.2", 3, 4, shard="s-0:7070"), read("a", "2.1"), read("b", "1.2")],
        ),
        ("doubled", [put("a", "1.1", 1, 2), put("b", "2.1", 1, 4), read("a", "1.1"), read("b", "2.1")]),
        ("failed", [{"key": "a", "sent": 1, "at": 2, "error": "Unavailable", "detail": ""}]),
        ("unknown", [{"key": "a", "sent": 1, "at": 2, "error": "Unknown", "detail": ""}]),
    ],
)
def test_what_is_wrong_is_counted_once(field: str, lines: list[dict[str, Any]]) -> None:
    verdict = judged(*lines)
    fields = ("lost", "stale", "doubled", "failed", "unknown")
    assert {each: getattr(verdict, each) for each in fields if getattr(verdict, each)} == {field: 1}
    assert verdict.examples or field == "doubled"


@pytest.mark.parametrize(
    "lines",
    [
        [put("a", "2.1", 1, 3), put("b", "1.2", 2, 4), read("a", "2.1"), read("b", "1.2")],
        [
            put("a", "2.1", 1, 2),
            put("b", "1.2", 3, 4, partition="p-1"),
            read("a", "2.1"),
            read("b", "1.2"),
        ],
    ],
    ids=["sent before the higher epoch acknowledged", "of another partition"],
)
def test_what_is_not_stale(lines: list[dict[str, Any]]) -> None:
    assert judged(*lines, partitions=("p-0", "p-1")).stale == 0


def test_what_stubborn_writers_are_refused_is_no_failure() -> None:
    refused = {"key": "x", "sent": 1, "at": 2, "error": "NotOwner", "detail": "", "shard": "s-0:7070"}
    verdict = judged(*ALL_WELL, refused)
    assert (verdict.failed, verdict.unknown) == (0, 0)


def test_a_partition_that_acknowledges_nothing_any_more_is_paused_to_the_end() -> None:
    lines = [put("a", "1.0", 1.0, 1.1), read("a", "1.0"), put("b", "1.1", 1.1, 1.2), read("b", "1.1")]
    assert judged(*lines).pause_seconds == pytest.approx(10 - 1.2)


def test_a_partition_that_never_acknowledged_is_paused_without_end() -> None:
    assert judged(*ALL_WELL, partitions=("p-0", "p-1")).pause_seconds == math.inf


def test_each_change_of_an_owner_counts_for_itself() -> None:
    lines = (
        put("a", "1.0", 1.0, 1.1),
        put("b", "1.1", 1.2, 1.5),
        put("x", "1.2", 1.5, 1.7, shard="s-0:7070"),  # of somebody who asks one shard alone
        put("c", "2.3", 1.3, 2.0),
        put("d", "1.2", 1.3, 2.1),  # acknowledged long before, and heard of late
        put("e", "2.4", 2.1, 2.2),
        put("f", "4.5", 2.3, 2.6),
        put("g", "7.0", 1.0, 1.4, partition="p-1"),
        put("h", "8.1", 1.5, 3.4, partition="p-1"),
    )
    gathered = records(*lines, partitions=("p-0", "p-1"))
    assert handovers(gathered) == pytest.approx([0.5, 0.4, 2.0])


def test_the_last_partition_counts_from_a_moment_on() -> None:
    lines = [put("a", "1.0", 1, 2), put("b", "1.1", 4, 5), put("c", "1.0", 4, 6.5, partition="p-1")]
    seen = records(*lines, partitions=("p-0", "p-1"))
    assert again_seconds(seen, since=4.0) == pytest.approx(2.5)
    assert again_seconds(seen, since=6.0) == math.inf


def refused(sent: float, at: float, *, partition: str = "p-0", **more: str) -> dict[str, Any]:
    return {
        "key": "x",
        "sent": sent,
        "at": at,
        "partition": partition,
        "error": "Unavailable",
        "detail": "",
        **more,
    }


# The fault comes just after 4; p-0 is the victim's, under epoch 1, and is back at 6; p-1 is another one's.
FAULT, EPOCHS = 4.0, {"p-0": 1}
STRUCK = (
    *(put("a", "1.0", 1, 2), put("b", "2.2", 5, 6), put("c", "2.3", 7, 7.5)),
    *(put("d", "1.0", 1, 2, partition="p-1"), put("e", "1.1", 8, 9, partition="p-1")),
)


@pytest.mark.parametrize(
    ("failure", "is_stray"),
    [
        (refused(3.9, 4.5), False),
        (refused(5.9, 15.0), False),
        (refused(2, 3.9), True),
        (refused(6, 6.1), True),
        (refused(5, 5.5, partition="p-1"), True),
        (refused(5, 5.5, partition=""), True),
        (refused(7, 8, shard="s-0:7070"), False),
    ],
    ids=[
        "under way when the fault came",
        "sent just before the partition was back",
        "over before the fault",
        "sent when it was back",
        "of a partition that was not hit",
        "of nobody knows which",
        "of a stubborn writer",
    ],
)
def test_only_what_met_the_fault_may_fail(failure: dict[str, Any], is_stray: bool) -> None:
    found = strays(records(*STRUCK, failure, partitions=("p-0", "p-1")), since=FAULT, epochs=EPOCHS)
    assert [each.sent for each in found] == ([failure["sent"]] if is_stray else [])


def test_a_partition_is_back_for_all_as_soon_as_anybody_is_acknowledged() -> None:
    stubborn = put("s", "2.1", 4.5, 5, shard="s-1:7070")
    seen = records(*STRUCK, stubborn, refused(5.5, 5.6))
    assert len(strays(seen, since=FAULT, epochs=EPOCHS)) == 1


def test_while_a_partition_is_not_back_all_of_its_requests_may_fail() -> None:
    seen = records(put("a", "1.0", 1, 2), refused(9, 9.5))
    assert strays(seen, since=FAULT, epochs=EPOCHS) == []


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([], 1.0),  # nobody asked before 5
        ([refused(4.2, 4.9)], 1.8),
        ([refused(2, 4.9)], 2.0),  # what was under way already has waited since the fault
        ([refused(4.2, 4.9, partition="p-1")], 1.0),
        ([put("f", "1.1", 3, 4.1)], 1.0),  # the last word of the old owner
        ([put("s", "2.1", 4.5, 5, shard="s-1:7070")], 1.0),
    ],
)
def test_a_partition_is_missed_from_the_first_request_to_it_on(
    lines: list[dict[str, Any]], seconds: float
) -> None:
    seen = records(*STRUCK, *lines, partitions=("p-0", "p-1"))
    assert waited_seconds(seen, since=FAULT, epochs=EPOCHS) == pytest.approx(seconds)


def test_the_partition_that_was_missed_longest_counts_and_one_that_stays_away_is_missed_without_end() -> None:
    third = (put("g", "1.0", 1, 2, partition="p-2"), put("h", "2.1", 4.5, 8, partition="p-2"))
    seen = records(*STRUCK, *third, partitions=("p-0", "p-1", "p-2"))
    assert waited_seconds(seen, since=FAULT, epochs={"p-0": 1, "p-2": 1}) == pytest.approx(3.5)
    assert waited_seconds(seen, since=FAULT, epochs={"p-0": 1, "p-1": 1}) == math.inf


@pytest.mark.parametrize("end", [None, {"end": True, "stopped": 1.0, "read_error": "Unavailable: nobody"}])
def test_a_load_that_has_no_end_is_no_evidence(end: dict[str, Any] | None) -> None:
    gathered = Records()
    for line in (*ALL_WELL, *([end] if end else [])):
        gathered.add(line)
    with pytest.raises(ValueError, match="no end"):
        judge(gathered)
