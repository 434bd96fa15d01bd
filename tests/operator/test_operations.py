"""KVOperations without a cluster: each step from what is seen, what a status says, when a drill is due."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from operator_world import facts_of

from fencekv.partitioning import HashPartitioning, Partitioning, RangePartitioning
from fencekv_operator import drill_schedule, operations, verify
from fencekv_operator.drill_load import NoKey, keys_in
from fencekv_operator.facts import PartitionFacts, Trouble
from fencekv_operator.operations import Operation, Progress, failed, new_status, running, succeeded, unhealthy
from fencekv_operator.reports import Replica
from fencekv_operator.status import table_status
from fencekv_operator.switchovers import Ask, next_step

Object = dict[str, Any]

NOW = datetime.datetime(2026, 1, 1, 10, 7, 31, tzinfo=datetime.UTC).timestamp()
PARTITION: Object = {
    "metadata": {"name": "orders-0", "namespace": "default", "uid": "u-0"},
    "spec": {"replicas": ["sample-0", "sample-1", "sample-2"], "table": "orders", "index": 0},
}


def stamp(unix: float) -> str:
    return datetime.datetime.fromtimestamp(unix, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def operation(spec: Mapping[str, Any], status: Mapping[str, Any] | None = None, *, age: float = 0.0) -> Operation:
    return Operation.parse(
        {
            "metadata": {
                "name": "op-1",
                "namespace": "default",
                "uid": "op-uid",
                "resourceVersion": "7",
                "generation": 1,
                "creationTimestamp": stamp(NOW - age),
            },
            "spec": {"table": "orders", **spec},
            "status": dict(status or {}),
        }
    )


def switchover(status: Mapping[str, Any] | None = None, *, to: str = "", age: float = 0.0) -> Operation:
    spec = {"type": "switchover", "partition": "orders-0", **({"switchover": {"to": to}} if to else {})}
    return operation(spec, status, age=age)


BEGUN = {"phase": "Running", "step": "Asking", "message": "m", "epoch": 4, "startedAt": stamp(NOW - 5)}
LATE = {**BEGUN, "startedAt": stamp(NOW - 100)}


def seen(owner: str = "sample-0", epoch: int = 4, *, serving: bool = True) -> PartitionFacts:
    return facts_of(PARTITION, owner=owner, epoch=epoch, serving=serving)


@pytest.mark.parametrize(
    ("asked", "facts", "held", "wanted"),
    [
        (switchover(), seen(), None, ("Running", "Asking")),
        (switchover(to="sample-0"), seen(), None, ("Succeeded", "Done")),
        (switchover(), seen(), "repairs", ("Failed", "Held")),
        (switchover(), seen(), "", ("Failed", "Held")),
        (switchover(), None, None, ("Pending", "Looking")),
        (switchover(age=31), None, None, ("Failed", "NoOwner")),
        (switchover(BEGUN), None, None, ("Running", "Looking")),
        (switchover(BEGUN), seen(), None, ""),
        (switchover(BEGUN, to="sample-2"), seen(), None, "sample-2"),
        (switchover(BEGUN), seen("sample-1", 5, serving=False), None, ("Running", "Serving")),
        (switchover(BEGUN), seen("sample-1", 5), None, ("Succeeded", "Done")),
        (switchover(BEGUN), seen("sample-0", 5), None, ("Succeeded", "Done")),  # the releaser got it back
        (switchover(BEGUN, to="sample-2"), seen("sample-1", 5), None, ("Failed", "WentElsewhere")),
        (switchover(LATE), seen(), None, ("Failed", "TimedOut")),
        (switchover(LATE), seen("sample-1", 5, serving=False), None, ("Failed", "TimedOut")),
        (switchover(LATE), seen("sample-1", 5), None, ("Succeeded", "Done")),  # the operator was away meanwhile
    ],
)
def test_each_step_of_a_switchover_follows_from_its_status_and_what_is_seen(
    asked: Operation, facts: PartitionFacts | None, held: str | None, wanted: tuple[str, str] | str
) -> None:
    step = next_step(asked, facts, held=held, now_unix=NOW)
    if isinstance(step, Ask):
        assert step.target == wanted
    else:
        assert (str(step.phase), step.reason or step.step) == wanted
        if step.phase in operations.FINAL and facts is not None and held is None:
            assert facts.lease is not None
            assert step.fields["result"]["epochAfter"] == facts.lease.epoch


def test_an_operation_that_has_begun_is_not_begun_again_with_another_epoch() -> None:
    step = next_step(switchover(), seen(), held=None, now_unix=NOW)
    assert isinstance(step, Progress)
    status = new_status(switchover(), step, now_unix=NOW)
    assert status is not None
    again = next_step(switchover(status), seen("sample-1", 5), held=None, now_unix=NOW + 1)
    assert isinstance(again, Progress)
    assert (again.fields["result"]["epochBefore"], again.fields["result"]["epochAfter"]) == (4, 5)


CONDITIONS = {
    "Pending": (operations.waiting("Waiting", "m"), {"Reconciling"}),
    "Running": (running("Writing", "m"), {"Reconciling"}),
    "Succeeded": (succeeded("m", {"verdict": "Moved"}), {"Ready", "Complete"}),
    "Failed": (failed("Broken", "m", {"verdict": "Broken"}), {"Stalled", "Failed"}),
}


@pytest.mark.parametrize("phase", CONDITIONS)
def test_a_status_speaks_kstatus_and_is_written_only_when_it_changes(phase: str) -> None:
    progress, wanted = CONDITIONS[phase]
    before = operation({"type": "verify"}, {"runner": "r", "epoch": 4})
    status = new_status(before, progress, now_unix=NOW)
    assert status is not None
    assert {one["type"] for one in status["conditions"] if one["status"] == "True"} == wanted
    assert (status["phase"], status["runner"], status["epoch"]) == (phase, "r", 4)
    assert ("startedAt" in status, "finishedAt" in status) == (
        phase != "Pending",
        phase in {"Succeeded", "Failed"},
    )
    after = operation({"type": "verify"}, status)
    if phase in {"Succeeded", "Failed"}:
        with pytest.raises(AssertionError):
            new_status(after, progress, now_unix=NOW + 9)
    else:
        assert new_status(after, progress, now_unix=NOW + 9) is None


def test_a_drill_needs_a_healthy_partition_with_two_standbys() -> None:
    pair = facts_of(PARTITION, in_sync=("sample-0", "sample-1"))
    assert unhealthy(facts_of(PARTITION)) == ""
    assert "1 standbys are in sync" in unhealthy(pair)
    assert unhealthy(pair, standbys_min=1) == ""
    assert "nobody owns it" in unhealthy(None)
    assert "nobody owns it" in unhealthy(replace(pair, lease=None))
    assert "gone" in unhealthy(facts_of(PARTITION, trouble=Trouble.DEGRADED, detail="sample-1 is gone"))
    assert "not heard" in unhealthy(facts_of(PARTITION, alive=False))
    assert "handing it over" in unhealthy(facts_of(PARTITION, released="1.9"))
    assert "does not say that it serves" in unhealthy(facts_of(PARTITION, serving=False))


# Verify


def replica(pod: str, *, last: int, commit: int, role: str = "standby") -> Replica:
    return Replica(
        uid="u-0",
        partition="orders-0",
        replica=pod,
        promised=1,
        epoch=1,
        last_epoch=1,
        last_seq=last,
        last_txid=last,
        applied_seq=0,
        commit_seq=commit,
        set_version=1,
        members=(),
        role=role,
        serving=role == "owner",
        closed_epoch=0,
        suspect=False,
    )


REPLICAS = {
    "sample-0": replica("sample-0", last=100, commit=98, role="owner"),
    "sample-1": replica("sample-1", last=99, commit=97),
    "sample-2": replica("sample-2", last=120, commit=90),  # a tail that was not cut off yet
}


@pytest.mark.parametrize(
    ("differs_from", "silent", "wanted"),
    [
        ({}, set(), ("Same", 98)),
        ({"sample-2": 99}, set(), ("Same", 98)),  # not committed, so it may differ
        ({"sample-2": 98}, set(), ("Different", 98)),
        ({"sample-2": 41}, set(), ("Different", 41)),
        ({"sample-1": 0}, set(), ("Different", 0)),
        ({"sample-1": 7}, {"sample-2"}, ("Different", 7)),
        ({}, {"sample-2"}, ("Incomplete", 98)),
    ],
)
async def test_replicas_are_compared_up_to_what_is_committed_and_the_first_difference_is_found(
    differs_from: Mapping[str, int], silent: set[str], wanted: tuple[str, int]
) -> None:
    async def chain(pod: str, seq: int) -> str | None:
        if pod in silent:
            return None
        return f"{seq}-other" if seq >= differs_from.get(pod, 1000) else f"{seq}"

    compared = await verify.compare("orders-0", REPLICAS, wanted=sorted(REPLICAS), chain=chain)
    assert (compared.verdict, compared.seq) == wanted
    for pod in [*differs_from, *silent] if compared.verdict != "Same" else []:
        assert pod in compared.message or compared.verdict == "Different"


async def test_a_replica_without_a_report_is_never_taken_to_agree() -> None:
    async def chain(_pod: str, _seq: int) -> str | None:
        return "x"

    two = {pod: REPLICAS[pod] for pod in ("sample-0", "sample-1")}
    compared = await verify.compare("orders-0", two, wanted=sorted(REPLICAS), chain=chain)
    assert (compared.verdict, "sample-2" in compared.message) == ("Incomplete", True)
    nothing = await verify.compare("orders-0", {}, wanted=sorted(REPLICAS), chain=chain)
    assert nothing.verdict == "Incomplete"
    assert verify.result([compared, nothing])["verdict"] == "Incomplete"
    assert verify.result([])["verdict"] == "Incomplete"


# Drills


SPLIT = RangePartitioning(("a", "ab", "b"))


@pytest.mark.parametrize(
    ("partitioning", "index"),
    [*((HashPartitioning(64), index) for index in (0, 63)), *((SPLIT, index) for index in range(4))],
)
def test_the_keys_of_a_drill_lie_in_its_partition(partitioning: Partitioning, index: int) -> None:
    keys = keys_in(partitioning, index, drill="d", wanted=17)
    assert len(set(keys)) == 17
    assert {partitioning.partition_of(key) for key in keys} == {index}


def test_where_no_key_fits_a_drill_is_refused() -> None:
    with pytest.raises(NoKey):
        keys_in(RangePartitioning(("a", "a!")), 1, drill="d", wanted=1)


def table(*drills: Object, age: float = 86400.0, **spec: Any) -> Object:
    metadata = {"name": "orders", "namespace": "default", "uid": "t", "creationTimestamp": stamp(NOW - age)}
    return {"metadata": metadata, "spec": {"namespace": "sample", "drills": list(drills), **spec}}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (table(), 0),
        (table({"schedule": "*/5 * * * *", "fault": "kill"}), 1),
        (table({"schedule": "7 10 * * *", "fault": "kill"}), 1),  # this very minute
        (table({"schedule": "2 10 * * *", "fault": "kill"}), 0),  # 5 minutes and a half ago
        (table({"schedule": "0 3 * * *", "fault": "kill"}), 0),
        (table({"schedule": "*/5 * * * *", "fault": "kill"}, age=60), 0),  # the table is younger
        (table({"schedule": "*/5 * * * *", "fault": "kill"}, paused=True), 0),
        (table({"schedule": "99 * * * *", "fault": "kill"}), 0),
        (table({"schedule": "0 0 30 2 *", "fault": "kill"}), 0),  # never
        (table({"schedule": "7 10 * * *", "fault": "kill"}, {"schedule": "7 10 * * *", "fault": "freeze"}), 2),
    ],
)
def test_a_drill_is_due_once_and_by_one_name(given: Object, names: int) -> None:
    due = drill_schedule.due(given, now_unix=NOW)
    assert len({body["metadata"]["name"] for body in due}) == names
    assert due == drill_schedule.due(given, now_unix=NOW + 20)


def test_a_schedule_that_cannot_be_read_is_named() -> None:
    bad = {"schedule": "99 * * * *", "fault": "kill"}
    assert drill_schedule.unreadable(table(bad, {"schedule": "* * * * *", "fault": "kill"})) == ["99 * * * *"]


def test_a_table_keeps_the_last_ten_results_and_each_once() -> None:
    results: list[Object] = []
    for number in range(12):
        status = {"phase": "Succeeded", "finishedAt": stamp(NOW + number), "result": {"verdict": "Passed"}}
        ended = operation({"type": "drill", "drill": {"fault": "kill"}}, status)
        ended = replace(ended, name=f"op-{number}")
        kept = drill_schedule.with_result(results, ended)
        assert kept is not None
        results = kept
        assert drill_schedule.with_result(results, ended) is None
    assert [one["operation"] for one in results] == [f"op-{number}" for number in range(11, 1, -1)]
    old = replace(operation({"type": "drill", "drill": {"fault": "kill"}}, {**status, "finishedAt": stamp(NOW)}))
    assert drill_schedule.with_result(results, old) is None, "what fell out does not come back"


@pytest.mark.parametrize(
    ("passed", "wanted"), [((), "False"), ((True, False), "False"), ((False, True), "True")], ids=str
)
def test_a_table_says_whether_its_last_drill_failed_and_keeps_what_others_wrote_of_drills(
    passed: tuple[bool, ...], wanted: str
) -> None:
    results = [{"operation": f"d-{place}", "passed": one, "verdict": "Slow"} for place, one in enumerate(passed)]
    of = {**table(), "status": {"drills": results} if results else {}}
    patch = table_status(of, [], wanted=0, unprotected=False, stalled=None, short="", now=stamp(NOW))
    assert patch is not None
    assert "drills" not in patch, "a stale copy must not overwrite a newer result, nor a null remove it"
    [found] = [one for one in patch["conditions"] if one["type"] == "DrillFailed"]
    assert found["status"] == wanted
    assert ("d-0" in found["message"]) == (wanted == "True")
