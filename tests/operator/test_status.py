"""What the custom resources say: conditions, phases, and when a status is worth a write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_world import facts_of

from fencekv_operator import status
from fencekv_operator.events import condition_notices, transition_notice
from fencekv_operator.facts import PartitionFacts, Reason, Transition, Trouble
from fencekv_operator.status import Condition, Failover, Placing, PoolState

Object = dict[str, Any]
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
PODS = ["sample-0", "sample-1", "sample-2"]


def partition(*, generation: int = 1, deleting: bool = False, **spec: Any) -> Object:
    meta: Object = {"name": "orders-0", "namespace": "default", "uid": "u-p", "generation": generation}
    if deleting:
        meta["deletionTimestamp"] = NOW
    full = {"replicas": PODS, "durability": "replicated", "minInSync": 1, "table": "orders"}
    return {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVPartition",
        "metadata": meta,
        "spec": {**full, **spec},
    }


def written(obj: Object, facts: PartitionFacts | None, *, now: str = NOW, **more: Any) -> Object | None:
    """The object after its status was written; None: nothing was."""
    patch = status.partition_status(
        obj, facts, more.pop("failover", None), now=now, refresh=more.pop("refresh", False)
    )
    if patch is None:
        return None
    merged = {**(obj.get("status") or {}), **patch}
    return {**obj, "status": {key: value for key, value in merged.items() if value is not None}}


def must(obj: Object, facts: PartitionFacts | None, **more: Any) -> Object:
    result = written(obj, facts, **more)
    assert result is not None
    return result


def condition(obj: Object, kind: str) -> Object:
    return next(each for each in obj["status"]["conditions"] if each["type"] == kind)


P = partition()
SHOWN = [
    # what, facts, phase, Ready, its reason, conditions that are true beside it
    ("served by its owner with every standby", facts_of(P), "Ready", "True", "Serving", set()),
    ("nothing known", None, "Pending", "False", "NotGranted", {"Reconciling"}),
    (
        "one standby behind",
        facts_of(P, in_sync=("sample-0", "sample-1")),
        "Ready",
        "True",
        "Serving",
        {"Degraded"},
    ),
    (
        "too few standbys for a write",
        facts_of(P, in_sync=("sample-0",)),
        "Pending",
        "False",
        "TooFewStandbys",
        {"Reconciling", "Degraded"},
    ),
    (
        "granted and not yet serving",
        facts_of(P, serving=False),
        "Pending",
        "False",
        "OwnerStarting",
        {"Reconciling"},
    ),
    ("owner over", facts_of(P, alive=False), "FailingOver", "False", "OwnerGone", {"Reconciling"}),
    ("released", facts_of(P, released="1.10"), "FailingOver", "False", "Released", {"Reconciling"}),
    (
        "owner silent",
        facts_of(P, trouble=Trouble.WAITING, detail="sample-0 is silent"),
        "FailingOver",
        "False",
        "Waiting",
        {"Reconciling"},
    ),
    (
        "nobody reachable",
        facts_of(P, trouble=Trouble.DEGRADED, alive=False),
        "Degraded",
        "False",
        "Degraded",
        {"Reconciling", "Degraded"},
    ),
    (
        "held by a person",
        facts_of(P, trouble=Trouble.HELD, alive=False, detail="its failover is held"),
        "Blocked",
        "False",
        "Held",
        {"Reconciling", "Blocked"},
    ),
    (
        "owner alone",
        facts_of(P, trouble=Trouble.BLOCKED, detail="sample-1"),
        "Blocked",
        "False",
        "Blocked",
        {"Reconciling", "Blocked"},
    ),
    (
        "record lost",
        facts_of(P, trouble=Trouble.SUSPECT, detail="sample-2"),
        "Suspect",
        "False",
        "RecordSuspect",
        {"Reconciling", "RecordSuspect"},
    ),
]


@pytest.mark.parametrize(
    ("what", "facts", "phase", "ready", "reason", "also"), SHOWN, ids=[case[0].replace(" ", "-") for case in SHOWN]
)
def test_a_partition_shows(
    what: str, facts: PartitionFacts | None, phase: str, ready: str, reason: str, also: set[str]
) -> None:
    obj = must(P, facts)
    assert obj["status"]["phase"] == phase
    head = condition(obj, "Ready")
    assert (head["status"], head["reason"]) == (ready, reason)
    true = {each["type"] for each in obj["status"]["conditions"] if each["status"] == "True"} - {"Ready"}
    assert true == also


def test_a_table_without_standbys_is_unprotected() -> None:
    obj = partition(durability="standard", minInSync=0, replicas=["sample-0"])
    assert condition(must(obj, facts_of(obj)), "Unprotected")["status"] == "True"
    assert condition(must(P, facts_of(P)), "Unprotected")["status"] == "False"


def test_who_is_missing_is_named() -> None:
    suspect = must(P, facts_of(P, trouble=Trouble.SUSPECT, detail="sample-2 has not reported"))
    assert "sample-2" in condition(suspect, "RecordSuspect")["message"]
    behind = must(P, facts_of(P, in_sync=("sample-0", "sample-2")))
    assert "sample-1" in condition(behind, "Degraded")["message"]


def test_a_time_changes_with_its_condition_and_with_nothing_else() -> None:
    first = must(P, facts_of(P))
    second = must(first, facts_of(P, in_sync=("sample-0", "sample-1")), now=LATER)
    assert condition(second, "Ready")["lastTransitionTime"] == NOW
    assert condition(second, "Degraded")["lastTransitionTime"] == LATER
    third = must(second, facts_of(P, in_sync=("sample-0",)), now="2026-01-01T00:02:00Z")
    assert condition(third, "Degraded")["lastTransitionTime"] == LATER
    assert condition(third, "Ready")["lastTransitionTime"] == "2026-01-01T00:02:00Z"


def test_what_stands_is_not_written_again() -> None:
    first = must(P, facts_of(P))
    assert written(first, facts_of(P), now=LATER) is None
    assert written(first, None, now=LATER) is None, "an operator that knows nothing yet wipes nothing"


def test_token_and_lag_wait_for_the_refresh_or_for_another_change() -> None:
    first = must(P, facts_of(P))
    moved = {"sample-0": 30, "sample-1": 25, "sample-2": 30}
    assert written(first, facts_of(P, seqs=moved)) is None
    refreshed = must(first, facts_of(P, seqs=moved), refresh=True)
    assert (refreshed["status"]["token"], refreshed["status"]["lag"]) == ("1.30", 5)
    along = must(first, facts_of(P, seqs=moved, in_sync=("sample-0", "sample-2")))
    assert (along["status"]["token"], along["status"]["lag"]) == ("1.30", 0)


def test_epoch_and_set_version_never_fall() -> None:
    high = must(P, facts_of(P, epoch=7))
    low = must(high, facts_of(P, epoch=2, owner="sample-1"))
    assert (low["status"]["epoch"], low["status"]["setVersion"]) == (7, 7)


def test_an_owner_that_is_gone_is_taken_out_of_the_status() -> None:
    first = must(P, facts_of(P))
    lost = facts_of(P, trouble=Trouble.SUSPECT)
    nothing = PartitionFacts(
        name=lost.name,
        uid=lost.uid,
        lease=None,
        owner_alive=False,
        replicas=lost.replicas,
        trouble=lost.trouble,
        detail="",
    )
    second = must(first, nothing)
    assert "owner" not in second["status"]
    assert second["status"]["epoch"] == 1
    assert second["status"]["token"] == "1.10", "how far it was stays"


def test_a_new_generation_is_observed() -> None:
    first = must(P, facts_of(P))
    assert (
        must({**first, "metadata": {**P["metadata"], "generation": 2}}, facts_of(P))["status"][
            "observedGeneration"
        ]
        == 2
    )


def test_a_partition_that_goes_says_so() -> None:
    assert must(partition(deleting=True), facts_of(P))["status"]["phase"] == "Deleting"


CHANGE = Transition(
    partition="orders-0",
    partition_uid="u-p",
    reason=Reason.TERMINATED,
    from_pod="sample-0",
    to_pod="sample-1",
    from_epoch=1,
    to_epoch=2,
    seconds=0.61234,
)


def test_the_last_failover_says_when_why_and_how_long() -> None:
    first = must(P, facts_of(P))
    second = must(first, facts_of(P, epoch=2, owner="sample-1"), failover=Failover(transition=CHANGE, when=LATER))
    assert second["status"]["lastFailover"] == {
        "when": LATER,
        "reason": "ContainerTerminated",
        "seconds": 0.612,
        "fromEpoch": 1,
        "toEpoch": 2,
    }
    third = must(second, facts_of(P, epoch=2, owner="sample-1", in_sync=("sample-1", "sample-2")))
    assert third["status"]["lastFailover"]["toEpoch"] == 2, "it stays"


def granted_to(pod: str) -> PartitionFacts:
    """Epoch 2 was granted to a pod, which does not serve it yet."""
    facts = facts_of(P, epoch=2, owner=pod, serving=False)
    replicas = tuple(replace(each, role="granted") if each.pod == pod else each for each in facts.replicas)
    return replace(facts, replicas=replicas)


def test_a_planned_move_leaves_a_partition_ready_for_as_long_as_one_takes() -> None:
    first = must(P, facts_of(P))
    draining = must(first, facts_of(P, serving=False), now=LATER)
    assert condition(draining, "Ready")["status"] == "True"
    assert draining["status"]["phase"] == "Moving"
    assert condition(draining, "Reconciling")["status"] == "True"
    assert written(draining, facts_of(P, released="1.10"), now=LATER) is None, "it goes on"
    starting = replace(granted_to("sample-1"), planned=True)
    granted = must(draining, starting, now=LATER)
    assert (condition(granted, "Ready")["status"], condition(granted, "Ready")["reason"]) == ("True", "Moving")
    stuck = must(granted, starting, now="2026-01-01T00:01:06Z")
    assert (condition(stuck, "Ready")["status"], stuck["status"]["phase"]) == ("False", "Pending")
    served = must(granted, facts_of(P, epoch=2, owner="sample-1"), now=LATER)
    assert (served["status"]["phase"], condition(served, "Reconciling")["status"]) == ("Ready", "False")


def test_no_failover_is_taken_for_a_planned_move() -> None:
    first = must(P, facts_of(P))
    after = must(first, granted_to("sample-1"), failover=Failover(transition=CHANGE, when=LATER))
    assert condition(after, "Ready")["status"] == "False"
    fresh = must(P, facts_of(P, released="1.10"))
    assert condition(fresh, "Ready")["status"] == "False", "it was not ready before"


def table() -> Object:
    return {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVTable",
        "metadata": {"name": "orders", "namespace": "default", "uid": "u-t", "generation": 3},
    }


def of_table(
    partitions: list[Object],
    *,
    wanted: int = 2,
    stalled: Condition | None = None,
    short: str = "",
    placing: Placing | None = None,
) -> Object:
    patch = status.table_status(
        table(),
        partitions,
        wanted=wanted,
        unprotected=False,
        stalled=stalled,
        short=short,
        placing=placing,
        now=NOW,
    )
    assert patch is not None
    return {**table(), "status": patch}


def test_a_table_is_ready_when_all_its_partitions_are() -> None:
    ready = must(P, facts_of(P))
    assert condition(of_table([ready, ready]), "Ready")["status"] == "True"
    one = of_table([ready])
    assert (condition(one, "Ready")["status"], one["status"]["readyPartitions"]) == ("False", 1)
    assert condition(one, "Reconciling")["status"] == "True"
    assert one["status"]["observedGeneration"] == 3


def placing(**what: Any) -> Placing:
    return Placing(**{"pending": (), "missing": "", "size": 3, **what})


@pytest.mark.parametrize(
    ("what", "ready", "reconciling", "reason", "degraded"),
    [
        (placing(), "True", "False", "Settled", "False"),
        (placing(pending=("orders-0",)), "True", "True", "Moving", "False"),
        (placing(missing="no pod runs in zone z"), "True", "True", "PlacementUnsatisfiable", "True"),
    ],
)
def test_a_table_whose_replicas_move_serves_and_is_on_its_way(
    what: Placing, ready: str, reconciling: str, reason: str, degraded: str
) -> None:
    whole = must(P, facts_of(P))
    obj = of_table([whole], wanted=1, placing=what)
    assert [condition(obj, kind)["status"] for kind in ("Ready", "Reconciling", "Degraded")] == [
        ready,
        reconciling,
        degraded,
    ]
    assert condition(obj, "Reconciling")["reason"] == reason


def test_a_further_copy_on_its_way_degrades_no_table() -> None:
    four = partition(replicas=[*PODS, "sample-3"])
    joining = must(four, facts_of(four, in_sync=tuple(PODS)))
    assert condition(joining, "Degraded")["status"] == "True"
    assert condition(of_table([joining], wanted=1, placing=placing()), "Degraded")["status"] == "False"
    assert condition(of_table([joining], wanted=1), "Degraded")["status"] == "True", "as far as anybody looked"
    behind = must(four, facts_of(four, in_sync=tuple(PODS[:2])))
    assert condition(of_table([behind], wanted=1, placing=placing()), "Degraded")["status"] == "True"


def test_a_stalled_table_is_neither_ready_nor_on_its_way() -> None:
    stalled = Condition(type="Stalled", status=True, reason="QuotaExceeded", message="tables: 1 at most")
    obj = of_table([], stalled=stalled)
    assert [condition(obj, kind)["status"] for kind in ("Ready", "Reconciling", "Stalled")] == [
        "False",
        "False",
        "True",
    ]
    assert condition(obj, "Ready")["reason"] == "QuotaExceeded"


def test_many_troubled_partitions_are_named_up_to_a_bound() -> None:
    bad = must(P, facts_of(P, trouble=Trouble.BLOCKED))
    many = [{**bad, "metadata": {**bad["metadata"], "name": f"orders-{number}"}} for number in range(40)]
    message = condition(of_table(many, wanted=40), "Blocked")["message"]
    assert "orders-0" in message
    assert message.endswith("and 35 more")


UP = PoolState(wanted=3, there=3, ready=3, updated=3)


def namespace_with(
    pool: PoolState, *, error: str = "", paused: bool = False, before: Object | None = None
) -> Object:
    kvns = {
        "metadata": {"name": "sample", "namespace": "default", "uid": "u-n", "generation": 1},
        **(before or {}),
    }
    patch = status.namespace_status(kvns, pool, tables=1, partitions=[], paused=paused, error=error, now=NOW)
    assert patch is not None
    return {**kvns, "status": patch}


def true_of(obj: Object) -> dict[str, str]:
    """The conditions that hold, and their reasons."""
    return {each["type"]: each["reason"] for each in obj["status"]["conditions"] if each["status"] == "True"}


def test_a_pool_that_starts_is_not_degraded_and_one_that_lost_a_shard_is() -> None:
    assert true_of(namespace_with(PoolState(wanted=3, there=0, ready=0, updated=0))) == {
        "Reconciling": "ShardsNotReady"
    }
    up = namespace_with(UP)
    assert true_of(up) == {"Ready": "AllShardsReady"}
    worse = namespace_with(
        replace(UP, ready=2, troubles="sample-1: not ready yet"), before={"status": up["status"]}
    )
    assert true_of(worse) == {"Reconciling": "ShardsNotReady", "Degraded": "ShardsNotReady"}
    assert condition(worse, "Ready")["message"] == "2 of 3 shards are ready; sample-1: not ready yet"


POOLS = [
    ("an update", replace(UP, updated=1, rolling="1 of 3 shards updated"), {"Ready", "Reconciling:RollingUpdate"}),
    (
        "an update with a shard down",
        replace(UP, ready=2, updated=2, rolling="2 of 3 shards updated"),
        {"Reconciling:RollingUpdate"},
    ),
    ("shrinking", replace(UP, there=4, scaling="1 shards are to go"), {"Ready", "Reconciling:ScalingDown"}),
    ("a surplus shard that leaves", replace(UP, there=4), {"Ready", "Reconciling:ScalingDown"}),
    ("growing volumes", replace(UP, growing="volumes are growing"), {"Ready", "Reconciling:VolumesGrowing"}),
    (
        "an image that is not there",
        replace(UP, ready=2, troubles="sample-2: ErrImagePull", hopeless="sample-2: ErrImagePull"),
        {"Stalled:ShardsFailing"},
    ),
]


@pytest.mark.parametrize(("what", "pool", "holds"), POOLS, ids=[each[0] for each in POOLS])
def test_a_namespace_says_what_its_pool_is_at(what: str, pool: PoolState, holds: set[str]) -> None:
    found = true_of(namespace_with(pool))
    ready = {"Ready"} if found.pop("Ready", "") else set()
    assert ready | {f"{kind}:{reason}" for kind, reason in found.items()} == holds, what


def test_a_refusal_stalls_a_namespace_and_takes_nothing_from_shards_that_serve() -> None:
    obj = namespace_with(UP, error="403 Forbidden: no")
    assert true_of(obj) == {"Ready": "AllShardsReady", "Stalled": "Refused"}
    assert "Forbidden" in condition(obj, "Stalled")["message"]
    down = namespace_with(replace(UP, ready=0), error="403 Forbidden: no")
    assert condition(down, "Ready")["reason"] == "Refused"


def test_a_namespace_that_is_paused_says_so_and_reconciles_nothing() -> None:
    obj = namespace_with(replace(UP, updated=1, rolling="1 of 3 shards updated"), paused=True)
    assert true_of(obj) == {"Ready": "AllShardsReady", "Paused": "Requested"}


def test_each_condition_that_turns_is_one_event() -> None:
    first = must(P, facts_of(P))
    second = must(first, facts_of(P, trouble=Trouble.SUSPECT, detail="sample-2"), now=LATER)
    notices = condition_notices(first, second["status"]["conditions"])
    assert {(each.reason, each.warning) for each in notices} == {("NotReady", True), ("RecordSuspect", True)}
    assert condition_notices(second, second["status"]["conditions"]) == []
    assert [(each.reason, each.warning) for each in condition_notices(second, first["status"]["conditions"])] == [
        ("Ready", False),
        ("NotRecordSuspect", False),
    ]


def test_that_a_new_partition_is_ready_is_said_by_its_table() -> None:
    first = must(P, facts_of(P))
    assert condition_notices(P, first["status"]["conditions"]) == []
    pending = must(P, None)
    notices = condition_notices(pending, first["status"]["conditions"])
    assert [(each.reason, each.warning) for each in notices] == [("Ready", False)]


def test_events_of_one_occurrence_have_one_name_and_those_of_another_another() -> None:
    told, again = transition_notice(P, CHANGE), transition_notice(P, CHANGE)
    other = transition_notice(P, replace(CHANGE, to_epoch=3))
    assert told is not None
    assert again is not None
    assert other is not None
    assert again.name == told.name != other.name
    assert len(told.name) <= 253


def test_a_first_owner_is_no_event() -> None:
    """A thousand new partitions would be a thousand writes more, while they need the API server for themselves."""
    assert transition_notice(P, replace(CHANGE, reason=Reason.CREATED)) is None
