"""Deletion: finalizers, preconditions, grace, collections."""

from __future__ import annotations

import asyncio

from apiservers import NAMESPACES, Api

from conformance import behaviour
from conformance.samples import (
    MERGE,
    WIDGETS,
    config_map,
    create,
    get,
    lease,
    leases,
    maps,
    pod,
    pods,
    widget,
    widgets,
)


@behaviour
async def a_deletion_answers_with_a_status(api: Api, ns: str) -> None:
    uid = (await create(api, leases(ns), lease())).body["metadata"]["uid"]
    reply = await api.ask("DELETE", leases(ns, "a"))
    assert reply.status == 200
    assert reply.body == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": "a", "group": "coordination.k8s.io", "kind": "leases", "uid": uid},
    }
    assert (await api.ask("DELETE", leases(ns, "a"))).status == 404


@behaviour
async def a_deleted_pod_is_answered(api: Api, ns: str) -> None:
    await create(api, pods(ns), pod())
    reply = await api.ask("DELETE", pods(ns, "a"))
    assert reply.status == 200
    assert reply.body["kind"] == "Pod"
    assert (await api.ask("GET", pods(ns, "a"))).status == 404


@behaviour
async def a_running_pod_gets_its_grace(api: Api, ns: str) -> None:
    await create(api, pods(ns), pod(nodeName="n1", terminationGracePeriodSeconds=20))
    reply = await api.ask("DELETE", pods(ns, "a"))
    assert reply.body["metadata"]["deletionGracePeriodSeconds"] == 20
    meta = (await get(api, pods(ns, "a")))["metadata"]
    assert meta["deletionTimestamp"] > meta["creationTimestamp"]
    assert (await api.ask("DELETE", pods(ns, "a"), {"gracePeriodSeconds": 0})).status == 200
    assert (await api.ask("GET", pods(ns, "a"))).status == 404


@behaviour
async def a_finalizer_holds_an_object(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["finalizers"] = ["fencekv.io/test"]
    await create(api, maps(ns), body)
    reply = await api.ask("DELETE", maps(ns, "a"))
    assert reply.status == 200
    assert reply.body["kind"] == "ConfigMap"
    meta = (await get(api, maps(ns, "a")))["metadata"]
    assert meta["deletionTimestamp"]
    assert meta["deletionGracePeriodSeconds"] == 0
    reply = await api.ask("PATCH", maps(ns, "a"), {"metadata": {"finalizers": None}}, content=MERGE)
    assert reply.status == 200
    assert (await api.ask("GET", maps(ns, "a"))).status == 404


@behaviour
async def a_second_deletion_of_a_held_object_changes_nothing(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["finalizers"] = ["fencekv.io/test"]
    await create(api, maps(ns), body)
    await api.ask("DELETE", maps(ns, "a"))
    first = await get(api, maps(ns, "a"))
    assert (await api.ask("DELETE", maps(ns, "a"))).status == 200
    assert (await get(api, maps(ns, "a"))) == first
    await api.ask("PATCH", maps(ns, "a"), {"metadata": {"finalizers": None}}, content=MERGE)


@behaviour
async def a_deletion_counts_as_a_generation(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    body = widget()
    body["metadata"]["finalizers"] = ["fencekv.io/test"]
    await create(api, widgets(ns), body)
    reply = await api.ask("DELETE", widgets(ns, "a"))
    assert reply.body["metadata"]["generation"] == 2
    await api.ask("PATCH", widgets(ns, "a"), {"metadata": {"finalizers": None}}, content=MERGE)


@behaviour
async def no_finalizer_is_added_during_deletion(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["finalizers"] = ["fencekv.io/test"]
    await create(api, maps(ns), body)
    await api.ask("DELETE", maps(ns, "a"))
    patch = {"metadata": {"finalizers": ["fencekv.io/test", "fencekv.io/more"]}}
    reply = await api.ask("PATCH", maps(ns, "a"), patch, content=MERGE)
    assert reply.status == 422
    assert reply.body["details"]["causes"][0]["field"] == "metadata.finalizers"
    assert reply.body["details"]["causes"][0]["reason"] == "FieldValueForbidden"
    assert "no new finalizers can be added if the object is being deleted" in reply.message
    await api.ask("PATCH", maps(ns, "a"), {"metadata": {"finalizers": None}}, content=MERGE)


@behaviour
async def a_deletion_can_demand_a_uid(api: Api, ns: str) -> None:
    uid = (await create(api, leases(ns), lease())).body["metadata"]["uid"]
    wrong = "11111111-2222-3333-4444-555555555555"
    reply = await api.ask("DELETE", leases(ns, "a"), {"preconditions": {"uid": wrong}})
    assert reply.status == 409
    assert reply.reason == "Conflict"
    assert reply.message == (
        'Operation cannot be fulfilled on Lease.coordination.k8s.io "a": '
        f"the UID in the precondition ({wrong}) does not match the UID in record ({uid}). "
        "The object might have been deleted and then recreated"
    )
    assert (await api.ask("DELETE", leases(ns, "a"), {"preconditions": {"uid": uid}})).status == 200


@behaviour
async def a_deletion_can_demand_a_version(api: Api, ns: str) -> None:
    old = (await create(api, leases(ns), lease())).version
    new = (await api.ask("PATCH", leases(ns, "a"), {"spec": {"holderIdentity": "you"}}, content=MERGE)).version
    reply = await api.ask("DELETE", leases(ns, "a"), {"preconditions": {"resourceVersion": old}})
    assert reply.status == 409
    assert f"the ResourceVersion in the precondition ({old}) does not match" in reply.message
    assert f"the ResourceVersion in record ({new})" in reply.message
    assert (await api.ask("DELETE", leases(ns, "a"), {"preconditions": {"resourceVersion": new}})).status == 200


@behaviour
async def a_collection_is_deleted_by_selector(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a", {"x": "1"}))
    await create(api, maps(ns), config_map("b", {"x": "2"}))
    reply = await api.ask("DELETE", maps(ns), labelSelector="x=1")
    assert reply.status == 200
    assert reply.body["kind"] == "ConfigMapList"
    assert [one["metadata"]["name"] for one in reply.body["items"]] == ["a"]
    listing = await api.ask("GET", maps(ns), labelSelector="x")
    assert [one["metadata"]["name"] for one in listing.body["items"]] == ["b"]


@behaviour
async def foreground_deletion_marks_the_object(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["finalizers"] = ["fencekv.io/test"]
    await create(api, maps(ns), body)
    reply = await api.ask("DELETE", maps(ns, "a"), {"propagationPolicy": "Foreground"})
    assert "fencekv.io/test" in reply.body["metadata"]["finalizers"]
    assert "foregroundDeletion" in reply.body["metadata"]["finalizers"]
    await api.ask("PATCH", maps(ns, "a"), {"metadata": {"finalizers": None}}, content=MERGE)


@behaviour
async def an_unknown_propagation_policy_is_refused(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map())
    reply = await api.ask("DELETE", maps(ns, "a"), {"propagationPolicy": "Sideways"})
    assert reply.status == 422
    assert "propagationPolicy" in reply.message
    assert (await api.ask("GET", maps(ns, "a"))).status == 200


@behaviour
async def a_terminating_namespace_takes_nothing_new(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["finalizers"] = ["fencekv.io/test"]
    await create(api, maps(ns), body)
    reply = await api.ask("DELETE", f"{NAMESPACES}/{ns}")
    assert reply.status == 200
    assert reply.body["status"]["phase"] == "Terminating"
    async with asyncio.timeout(10):
        while (reply := await api.ask("POST", leases(ns), lease())).status != 403:
            await asyncio.sleep(0.1)
    assert reply.reason == "Forbidden"
    assert "because it is being terminated" in reply.message
    assert reply.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    await api.ask("PATCH", maps(ns, "a"), {"metadata": {"finalizers": None}}, content=MERGE)


@behaviour
async def the_default_namespace_is_kept(api: Api, ns: str) -> None:
    reply = await api.ask("DELETE", f"{NAMESPACES}/default")
    assert reply.status == 403
    assert reply.message == 'namespaces "default" is forbidden: this namespace may not be deleted'
