"""RBAC holds what is used and nothing else: the life of the accounts, read from a real API server's audit log."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytest
from audit import FORBIDDEN, Right, deeds, granted
from installation import install_objects

from fencekv import leases
from fencekv.kube import (
    KV_NAMESPACES,
    KV_OPERATIONS,
    KV_PARTITIONS,
    KV_TABLES,
    LEASES,
    ROLES,
    KubeNotFound,
    Resource,
)
from fencekv.leases import GROUP
from fencekv_operator.resources import OWNED, SPEC_HASH

pytestmark = [
    pytest.mark.realapi,
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.skipif("not config.getoption('--realapi')", reason="the embedded API server keeps no audit log"),
]

Object = dict[str, Any]

DRILLS_MAX = 3
PODS_OF_SAMPLE = ("sample-0", "sample-1", "sample-2")


# Granted, used, and not seen here, or not each time; each with the reason.
NOT_SEEN: dict[str, dict[Right, str]] = {
    "operator": {
        Right("patch", "", "persistentvolumeclaims"): "volumes grow only where a StorageClass provisions them",
        Right("patch", "", "events"): "an Event is counted up only when the very same thing happens again",
        Right("create", GROUP, "kvoperations"): "scheduled drills: a schedule's next minute is far away",
        Right("delete", GROUP, "kvoperations"): "ttlSecondsAfterFinished is a minute at least",
    },
    "shard": {},
}


async def live(world) -> list[Object]:
    """A life in which what the accounts have rights for happens; gives the shards' rules."""
    await lose_owners(world)
    role = await world.sandbox.kube.get(ROLES, world.sandbox.namespace, "fencekv-shard-sample")
    await restore_what_was_changed(world)
    await roll(world)
    await operate(world)
    await grow_move_and_shrink(world)
    return list(role["rules"])


async def lose_owners(world) -> None:
    sandbox = world.sandbox
    await world.table(deletionPolicy="Delete")
    await world.all_in_sync()
    for what in ("child", "all"):  # released by the supervisor; fenced by the operator
        old = await sandbox.kill_owner("orders-0", what)
        await world.settled(partial(owner_above, world, old.epoch))
        await world.all_in_sync()
    old = await sandbox.owner_of("orders-0")
    await sandbox.kube.delete(LEASES, sandbox.namespace, leases.partition_lease_name("orders-0"))
    await world.settled(partial(owner_above, world, old.epoch))
    await world.all_in_sync()


async def restore_what_was_changed(world) -> None:
    """Somebody changes what the operator made, while none runs."""
    sandbox = world.sandbox
    kube, namespace = sandbox.kube, sandbox.namespace
    for operator in sandbox.operators:
        await operator.kill()
    for resource in OWNED:
        for name in list(await hashes(world, resource)):
            await kube.patch(resource, namespace, name, {"metadata": {"annotations": {SPEC_HASH: "changed"}}})
    await kube.patch(KV_PARTITIONS, namespace, "orders-0", {"spec": {"maxUnshippedSeconds": 9}})
    for number in range(len(sandbox.operators)):
        sandbox.start_operator(number)
    await world.settled(partial(is_restored, world), seconds=60)


async def hashes(world, resource: Resource) -> dict[str, str]:
    """What a KVNamespace's objects say of themselves, by name."""
    sandbox = world.sandbox
    found = (await sandbox.kube.list(resource, sandbox.namespace, labels=leases.LABEL_NAMESPACE)).items
    assert found, resource
    return {item["metadata"]["name"]: item["metadata"]["annotations"][SPEC_HASH] for item in found}


async def is_restored(world) -> bool:
    said = [text for resource in OWNED for text in (await hashes(world, resource)).values()]
    partition = await world.partition("orders-0")
    return "changed" not in said and partition["spec"]["maxUnshippedSeconds"] == 1


async def roll(world) -> None:
    """A new template: every pod is deleted once."""
    sandbox = world.sandbox
    before = {pod: (await sandbox.session_lease(pod)).session.pod_uid for pod in PODS_OF_SAMPLE}
    spec = {"shards": {"resources": {"requests": {"cpu": "90m"}}}}
    await sandbox.kube.patch(KV_NAMESPACES, sandbox.namespace, "sample", {"spec": spec})
    for pod, uid in before.items():
        await world.settled(partial(is_new, world, pod, uid), seconds=60)
    await world.all_in_sync()


async def operate(world) -> None:
    """A drill ends with a history in a ConfigMap, unless its operator stops leading: then there is another one."""
    for number in range(DRILLS_MAX):
        await world.sandbox.wait_ready("orders")
        await world.all_in_sync()
        if (await drilled(world, f"drill-{number}")).get("history"):
            return
    raise AssertionError(f"none of {DRILLS_MAX} drills was carried out to its end")


async def drilled(world, name: str) -> Object:
    """The status that a drill ended with."""
    sandbox = world.sandbox
    body = {
        "apiVersion": KV_OPERATIONS.api_version,
        "kind": KV_OPERATIONS.kind,
        "metadata": {"name": name},
        "spec": {"type": "drill", "table": "orders", "drill": {"fault": "kill", "putsPerSecond": 20}},
    }
    await sandbox.kube.create(KV_OPERATIONS, sandbox.namespace, body)
    status: Object = await world.settled(partial(finished, world, name), seconds=90)
    return status


async def has_left(world, pod: str) -> bool:
    return not (await world.sandbox.report(pod))["replicas"]


async def is_new(world, pod: str, uid: str) -> bool:
    return (await world.sandbox.session_lease(pod)).session.pod_uid != uid


async def finished(world, name: str) -> Object | None:
    """The status of an operation that has ended."""
    found = await world.sandbox.kube.get(KV_OPERATIONS, world.sandbox.namespace, name)
    status: Object = found.get("status") or {}
    return status if status.get("phase") in {"Succeeded", "Failed"} else None


async def grow_move_and_shrink(world) -> None:
    """A placement makes the operator look at nodes; a replica leaves a shard, and comes back."""
    sandbox = world.sandbox
    kube, namespace = sandbox.kube, sandbox.namespace
    await kube.patch(KV_NAMESPACES, namespace, "sample", {"spec": {"shards": {"replicas": 4}}})
    await world.settled(partial(session_of, world, "sample-3"))
    elsewhere = {"placement": {"excludePods": ["sample-2"]}}
    await kube.patch(KV_TABLES, namespace, "orders", {"spec": elsewhere})
    await world.settled(partial(has_left, world, "sample-2"), seconds=60)
    await kube.patch(KV_TABLES, namespace, "orders", {"spec": {"placement": None}})
    await kube.patch(KV_NAMESPACES, namespace, "sample", {"spec": {"shards": {"replicas": 3}}})
    await world.settled(partial(no_session_of, world, "sample-3"), seconds=60)


async def end(world) -> None:
    """Everything is taken away. Shards outlive their Role here: what they are refused from now on says nothing."""
    kube, namespace = world.sandbox.kube, world.sandbox.namespace
    await kube.patch(KV_NAMESPACES, namespace, "sample", {"spec": {"deletionPolicy": "Delete"}})
    await world.settled(partial(is_held, world))
    await kube.delete(KV_NAMESPACES, namespace, "sample")
    await world.settled(partial(gone, world, KV_TABLES, "orders"), seconds=60)
    await world.settled(partial(gone, world, KV_NAMESPACES, "sample"), seconds=60)
    await world.settled(partial(is_empty, world), seconds=60)


async def is_held(world) -> bool:
    """Whether the operator has something to do before the KVNamespace may go."""
    found = await world.sandbox.kube.get(KV_NAMESPACES, world.sandbox.namespace, "sample")
    return bool(found["metadata"].get("finalizers"))


async def is_empty(world) -> bool:
    sandbox = world.sandbox
    found = [await sandbox.kube.list(each, sandbox.namespace, labels=leases.LABEL_NAMESPACE) for each in OWNED]
    return not any(listing.items for listing in found)


async def owner_above(world, epoch: int) -> bool:
    owner = await world.sandbox.owner_of("orders-0")
    return owner is not None and owner.epoch > epoch


async def session_of(world, pod: str) -> bool:
    return bool(await world.sandbox.session_lease(pod))


async def no_session_of(world, pod: str) -> bool:
    with contextlib.suppress(KubeNotFound):
        await world.sandbox.session_lease(pod)
        return False
    return True


async def gone(world, resource, name: str) -> bool:
    with contextlib.suppress(KubeNotFound):
        await world.sandbox.kube.get(resource, world.sandbox.namespace, name)
        return False
    return True


async def test_accounts_use_all_their_rights_and_are_refused_nothing(make) -> None:
    async with make(operators=2, table=False) as world:
        rules = {"shard": await live(world), "operator": operator_rules()}
        seen = list(deeds(world.plane.audit_log))
        await end(world)
        later = [deed for deed in deeds(world.plane.audit_log) if deed.account == "operator"]

    refused = [deed for deed in [*seen, *later] if deed.status == FORBIDDEN]
    assert not refused, refused
    for account, granting in rules.items():
        used = {deed.right for deed in [*seen, *later] if deed.account == account}
        unseen = granted(granting) - used
        unused = ", ".join(sorted(map(str, unseen - NOT_SEEN[account].keys())))
        assert not unused, f"{account}: granted, and not used"
        assert NOT_SEEN[account].keys() <= granted(granting), f"{account}: named as not seen, and not granted"
    where = {deed.namespace for deed in seen if deed.account == "shard"}
    assert where == {world.sandbox.namespace}


def operator_rules() -> list[Object]:
    [role] = [obj for obj in install_objects() if obj["kind"] == "ClusterRole"]
    return list(role["rules"])
