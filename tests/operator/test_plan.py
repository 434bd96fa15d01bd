"""What is decided from what is seen: the order of actions, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_world import OPERATOR, facts_of, kvns_object, table_object

from fencekv.kube import SERVICES
from fencekv_operator.actions import (
    Action,
    Create,
    Delete,
    DeleteAll,
    DeleteOrphan,
    DropLease,
    Emit,
    MakeLease,
    PatchStatus,
    Update,
)
from fencekv_operator.facts import PartitionFacts
from fencekv_operator.plan import (
    MAKING_SECONDS,
    PARTITIONS_MADE,
    RECORD_SECONDS,
    NamespaceSeen,
    PartitionSeen,
    TableSeen,
    ensure,
    plan_namespace,
    plan_partition,
    plan_table,
)
from fencekv_operator.resources import partition_object
from fencekv_operator.settings import FINALIZER, NamespaceSettings, TableSettings

Object = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"


def stored(obj: Object, *, uid: str = "", deleting: bool = False, **meta: Any) -> Object:
    """An object as the API server would give it."""
    name = obj["metadata"]["name"]
    full = {"namespace": "default", "uid": f"uid-{name}", "resourceVersion": "7", "generation": 1}
    more = {**({"deletionTimestamp": NOW} if deleting else {}), **({"uid": uid} if uid else {}), **meta}
    return {**obj, "metadata": {**full, **obj["metadata"], **more}}


def kvns(*, deleting: bool = False, finalizers: tuple[str, ...] = (), **spec: Any) -> Object:
    return stored(kvns_object(**spec), deleting=deleting, finalizers=list(finalizers))


def table(
    name: str = "orders", *, deleting: bool = False, finalizers: tuple[str, ...] = (), **spec: Any
) -> Object:
    made = stored(table_object(name, **spec), deleting=deleting, finalizers=list(finalizers))
    made["metadata"]["creationTimestamp"] = NOW
    return made


def partition(
    of: Object, index: int, *, deleting: bool = False, replicas: tuple[str, ...] = (), **status: Any
) -> Object:
    settings = TableSettings.parse(of, NamespaceSettings.parse(kvns(), OPERATOR))
    pods = replicas or ("sample-0", "sample-1", "sample-2")
    made = stored(partition_object(settings, index=index, replicas=pods), deleting=deleting)
    made["status"] = {"epoch": 1, "owner": pods[0], "inSync": list(pods), **status}
    return made


def kinds(actions: list[Action]) -> list[str]:
    """The actions without statuses and Events, as short words."""
    words = []
    for action in actions:
        match action:
            case PatchStatus() | Emit():
                continue
            case Create(resource=resource, body=body):
                words.append(f"create {resource.plural}/{body['metadata']['name']}")
            case Update(resource=resource, name=name) | Delete(resource=resource, name=name):
                words.append(f"{type(action).__name__.lower()} {resource.plural}/{name}")
            case DeleteAll(resource=resource):
                words.append(f"delete all {resource.plural}")
            case DeleteOrphan(resource=resource, name=name):
                words.append(f"orphan {resource.plural}/{name}")
            case MakeLease():
                words.append("make lease")
            case DropLease():
                words.append("drop lease")
    return words


def of_namespace(seen: NamespaceSeen) -> list[str]:
    return kinds(plan_namespace(seen, OPERATOR, now=NOW))


def of_table(seen: TableSeen) -> list[str]:
    return kinds(plan_table(seen, OPERATOR, now=NOW))


def test_the_finalizer_stands_before_anything_that_it_guards() -> None:
    words = of_namespace(NamespaceSeen(kvns=kvns(deletionPolicy="Delete"), owned={}))
    assert words[0] == "update kvnamespaces/sample"
    orders = table(deletionPolicy="Delete")
    words = of_table(TableSeen(name="orders", table=orders, kvns=kvns(), tables=[orders]))
    assert words == ["update kvtables/orders", "create kvpartitions/orders-0", "create kvpartitions/orders-1"]


def test_under_retain_there_is_no_finalizer_and_one_that_stands_is_taken_away() -> None:
    assert "update kvnamespaces/sample" not in of_namespace(NamespaceSeen(kvns=kvns(), owned={}))
    actions = plan_namespace(
        NamespaceSeen(kvns=kvns(finalizers=("other", FINALIZER)), owned={}), OPERATOR, now=NOW
    )
    first = actions[0]
    assert isinstance(first, Update)
    assert first.patch["metadata"] == {"finalizers": ["other"], "resourceVersion": "7"}


def test_pods_come_last_because_they_need_all_else() -> None:
    words = of_namespace(NamespaceSeen(kvns=kvns(), owned={}))
    assert words[-1] == "create statefulsets/sample"
    assert len(words) == 8


POOL = {("statefulsets", "sample"): stored({"kind": "StatefulSet", "metadata": {"name": "sample"}})}
DOOMED = kvns(deleting=True, finalizers=(FINALIZER,), deletionPolicy="Delete")
ORDERS = table()


@pytest.mark.parametrize(
    ("what", "seen", "wanted"),
    [
        ("tables first", NamespaceSeen(kvns=DOOMED, owned=POOL, tables=[ORDERS]), ["delete kvtables/orders"]),
        (
            "tables that go are waited for",
            NamespaceSeen(kvns=DOOMED, owned=POOL, tables=[table(deleting=True)]),
            [],
        ),
        (
            "partitions that go are waited for",
            NamespaceSeen(kvns=DOOMED, owned=POOL, partitions=[partition(ORDERS, 0, deleting=True)]),
            [],
        ),
        ("then the pods", NamespaceSeen(kvns=DOOMED, owned=POOL), ["delete statefulsets/sample"]),
        (
            "then volumes, sessions and the finalizer",
            NamespaceSeen(kvns=DOOMED, owned={}),
            ["delete all persistentvolumeclaims", "delete all leases", "update kvnamespaces/sample"],
        ),
        (
            "under Retain the finalizer alone",
            NamespaceSeen(kvns=kvns(deleting=True, finalizers=(FINALIZER,)), owned=POOL, tables=[ORDERS]),
            ["update kvnamespaces/sample"],
        ),
        ("somebody else's finalizer is none of ours", NamespaceSeen(kvns=kvns(deleting=True), owned=POOL), []),
    ],
)
def test_a_namespace_goes_in_order(what: str, seen: NamespaceSeen, wanted: list[str]) -> None:
    assert of_namespace(seen) == wanted


GOING = table(deleting=True, finalizers=(FINALIZER,), deletionPolicy="Delete")
KEPT = table(deleting=True, finalizers=(FINALIZER,))


@pytest.mark.parametrize(
    ("what", "seen", "wanted"),
    [
        (
            "the policy is on a partition before it goes",
            TableSeen(name="orders", table=GOING, kvns=kvns(), partitions=[partition(KEPT, 0)]),
            ["update kvpartitions/orders-0", "delete kvpartitions/orders-0"],
        ),
        (
            "partitions that go are waited for",
            TableSeen(name="orders", table=GOING, kvns=kvns(), partitions=[partition(GOING, 0, deleting=True)]),
            [],
        ),
        ("then the finalizer", TableSeen(name="orders", table=GOING, kvns=kvns()), ["update kvtables/orders"]),
        (
            "also without its namespace",
            TableSeen(name="orders", table=GOING, kvns=None),
            ["update kvtables/orders"],
        ),
        (
            "under Retain partitions are told so and left to the collector",
            TableSeen(name="orders", table=KEPT, kvns=kvns(), partitions=[partition(GOING, 0)]),
            ["update kvpartitions/orders-0", "update kvtables/orders"],
        ),
        ("nothing of ours holds it", TableSeen(name="orders", table=table(deleting=True), kvns=kvns()), []),
    ],
)
def test_a_table_goes_in_order(what: str, seen: TableSeen, wanted: list[str]) -> None:
    assert of_table(seen) == wanted


def seen_table(orders: Object, *partitions: Object, **more: Any) -> TableSeen:
    return TableSeen(name="orders", table=orders, kvns=kvns(), tables=[orders], partitions=partitions, **more)


def test_the_missing_partitions_are_made_and_the_others_left() -> None:
    orders = table(count=3)
    words = of_table(seen_table(orders, partition(orders, 1)))
    assert words == ["create kvpartitions/orders-0", "create kvpartitions/orders-2"]


def test_once_all_are_there_the_table_is_marked_and_none_is_made_again() -> None:
    orders = table()
    both = [partition(orders, 0), partition(orders, 1)]
    assert of_table(seen_table(orders, *both)) == ["update kvtables/orders"]
    marked = table()
    marked["metadata"]["annotations"] = {PARTITIONS_MADE: f"{orders['metadata']['uid']}/2"}
    assert of_table(seen_table(marked, *both)) == []
    assert of_table(seen_table(marked, both[0])) == []
    copied = stored(marked, uid="another")
    mine = partition(copied, 0)
    assert of_table(seen_table(copied, mine)) == ["create kvpartitions/orders-1"], "the mark is another table's"


def test_a_partition_of_an_earlier_namesake_is_an_orphan_and_not_adopted() -> None:
    old, new = table(count=1), stored(table(count=1), uid="new")
    words = of_table(seen_table(new, partition(old, 0)))
    assert words == ["orphan kvpartitions/orders-0", "create kvpartitions/orders-0"]


def test_only_what_differs_is_updated() -> None:
    orders = table(count=1)
    one = partition(orders, 0)
    changed = table(count=1, minInSync=2, deletionPolicy="Delete", finalizers=(FINALIZER,))
    actions = [
        each for each in plan_table(seen_table(changed, one), OPERATOR, now=NOW) if isinstance(each, Update)
    ]
    assert actions[0].patch == {
        "metadata": {"resourceVersion": "7"},
        "spec": {"minInSync": 2, "deletionPolicy": "Delete"},
    }


def test_a_partition_without_an_epoch_gets_its_record_before_its_status() -> None:
    fresh = partition(table(), 0)
    del fresh["status"]
    actions = plan_partition(PartitionSeen(name="orders-0", namespace="default", partition=fresh), now=NOW)
    assert isinstance(actions[0], MakeLease)
    assert isinstance(actions[1], PatchStatus)
    assert actions[1].status["epoch"] == 0


def test_a_new_partition_is_left_alone_until_it_is_granted_or_has_taken_too_long() -> None:
    """Of a thousand each write more is a second of the API server, which their grants need."""
    fresh = partition(table(), 0)
    del fresh["status"]

    def words(age_seconds: float, facts: PartitionFacts | None = None) -> list[str]:
        seen = PartitionSeen(
            name="orders-0", namespace="default", partition=fresh, facts=facts, age_seconds=age_seconds
        )
        return [type(action).__name__ for action in plan_partition(seen, now=NOW)]

    granted = facts_of(fresh, serving=False)
    on_its_way = replace(granted, lease=None, is_new=True)
    unowned = replace(granted, lease=replace(granted.lease, session=None, epoch=0))
    assert words(RECORD_SECONDS - 0.1) == words(MAKING_SECONDS - 0.1, on_its_way) == []
    assert words(RECORD_SECONDS) == ["MakeLease"]
    assert words(MAKING_SECONDS - 0.1, unowned) == []
    assert words(0.0, granted) == ["PatchStatus"]  # its epoch is the floor if its record is lost
    assert words(MAKING_SECONDS, unowned) == ["PatchStatus"]
    assert words(MAKING_SECONDS) == ["MakeLease", "PatchStatus"]


@pytest.mark.parametrize("epoch", [0, 1, 9])
def test_a_partition_with_an_epoch_never_gets_a_record_here(epoch: int) -> None:
    seen = PartitionSeen(name="orders-0", namespace="default", partition=partition(table(), 0, epoch=epoch))
    assert plan_partition(seen, now=NOW) == []


def test_a_partition_that_is_gone_leaves_no_record() -> None:
    actions = plan_partition(PartitionSeen(name="orders-0", namespace="default", partition=None), now=NOW)
    assert kinds(actions) == ["drop lease"]


def test_a_partition_that_goes_gets_no_record() -> None:
    going = partition(table(), 0, deleting=True)
    del going["status"]
    seen = PartitionSeen(name="orders-0", namespace="default", partition=going)
    assert "make lease" not in kinds(plan_partition(seen, now=NOW))


QUOTA = [
    # tables, partitions of the quota; tables that stand with their counts; the count of a new one; refused?
    (2, None, [3], 1, False),
    (1, None, [3], 1, True),
    (None, 4, [3], 1, False),
    (None, 4, [3], 2, True),
    (0, None, [], 1, True),
    (None, None, [100], 1000, False),
]


@pytest.mark.parametrize(("tables", "partitions", "stand", "count", "refused"), QUOTA)
def test_quota(tables: int | None, partitions: int | None, stand: list[int], count: int, refused: bool) -> None:
    limits = {"tables": tables, "partitions": partitions}
    quota = {key: value for key, value in limits.items() if value is not None}
    older = [table(f"t-{number}", count=size) for number, size in enumerate(stand)]
    new = table("zeta", count=count)
    seen = TableSeen(
        name="zeta",
        table=new,
        kvns=kvns(quota=quota),
        tables=[new, *older],
        others=[partition(each, 0) for each in older],
    )
    actions = plan_table(seen, OPERATOR, now=NOW)
    status = next(each for each in actions if isinstance(each, PatchStatus)).status
    stalled = next(each for each in status["conditions"] if each["type"] == "Stalled")
    assert (stalled["reason"] == "QuotaExceeded") is refused
    assert any(isinstance(each, Create) for each in actions) is not refused


def test_an_object_without_our_owner_is_never_changed() -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "sample",
            "namespace": "default",
            "ownerReferences": [{"controller": True, "uid": "us"}],
        },
        "spec": {"ports": []},
    }
    foreign = stored({"kind": "Service", "metadata": {"name": "sample"}, "spec": {"ports": [1]}})
    assert kinds(ensure(SERVICES, body, foreign)) == ["create services/sample"], "which the server refuses"


def test_whose_owner_is_gone_is_an_orphan_only_if_we_know_the_kind_of_owner() -> None:
    ours = stored({"kind": "StatefulSet", "metadata": {"name": "sample"}})
    ours["metadata"]["ownerReferences"] = [
        {"kind": "KVNamespace", "name": "sample", "uid": "gone", "controller": True}
    ]
    theirs = stored({"kind": "StatefulSet", "metadata": {"name": "other"}})
    theirs["metadata"]["ownerReferences"] = [{"kind": "Deployment", "name": "x", "uid": "y", "controller": True}]
    owned = {("statefulsets", "sample"): ours, ("statefulsets", "other"): theirs}
    assert of_namespace(NamespaceSeen(kvns=None, owned=owned)) == ["orphan statefulsets/sample"]
