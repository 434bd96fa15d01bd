"""Selectors, pages, exact versions; dry runs."""

from __future__ import annotations

from apiservers import Api

from conformance import behaviour
from conformance.samples import MERGE, config_map, create, get, lease, leases, maps, pod, pods


@behaviour
async def labels_select(api: Api, ns: str) -> None:
    for name, labels in (("a", {"x": "1"}), ("b", {"x": "2", "y": "1"}), ("c", {})):
        await create(api, maps(ns), config_map(name, labels))
    for selector, wanted in (
        ("x=1", ["a"]),
        ("x==1", ["a"]),
        ("x!=1,y", ["b"]),
        ("x in (1,2)", ["a", "b"]),
        ("x notin (1)", ["b", "c"]),
        ("!x", ["c"]),
        ("x", ["a", "b"]),
        ("x=2,!y", []),
    ):
        listing = await api.ask("GET", maps(ns), labelSelector=selector)
        names = [one["metadata"]["name"] for one in listing.body["items"]]
        assert names == wanted, (selector, names)


@behaviour
async def a_bad_label_selector_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("GET", maps(ns), labelSelector="x in 1")
    assert reply.status == 400
    assert reply.reason == "BadRequest"
    assert "unable to parse requirement" in reply.message, reply


@behaviour
async def fields_select(api: Api, ns: str) -> None:
    await create(api, pods(ns), pod("a", nodeName="n1"))
    await create(api, pods(ns), pod("b"))
    for selector, wanted in (
        ("metadata.name=a", ["a"]),
        ("spec.nodeName=n1", ["a"]),
        ("spec.nodeName!=n1", ["b"]),
        ("status.phase=Pending,metadata.name!=a", ["b"]),
    ):
        listing = await api.ask("GET", pods(ns), fieldSelector=selector)
        assert [one["metadata"]["name"] for one in listing.body["items"]] == wanted, selector


@behaviour
async def an_unknown_field_selector_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("GET", leases(ns), fieldSelector="spec.holderIdentity=me")
    assert reply.status == 400
    assert reply.message == (
        '"spec.holderIdentity" is not a known field selector: only "metadata.name", "metadata.namespace"'
    )
    reply = await api.ask("GET", pods(ns), fieldSelector="spec.holderIdentity=me")
    assert reply.status == 400
    assert reply.message == "field label not supported: spec.holderIdentity"


@behaviour
async def a_list_is_read_in_pages_of_one_state(api: Api, ns: str) -> None:
    for name in "abcde":
        await create(api, maps(ns), config_map(name))
    first = (await api.ask("GET", maps(ns), limit="2")).body
    assert [one["metadata"]["name"] for one in first["items"]] == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3
    assert (await api.ask("DELETE", maps(ns, "c"))).status == 200
    second = (await api.ask("GET", maps(ns), limit="2", **{"continue": first["metadata"]["continue"]})).body
    assert [one["metadata"]["name"] for one in second["items"]] == ["c", "d"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    third = (await api.ask("GET", maps(ns), limit="2", **{"continue": second["metadata"]["continue"]})).body
    assert [one["metadata"]["name"] for one in third["items"]] == ["e"]
    assert "continue" not in third["metadata"]


@behaviour
async def items_of_a_built_in_list_do_not_repeat_their_kind(api: Api, ns: str) -> None:
    await create(api, leases(ns), lease())
    listing = await get(api, leases(ns))
    assert listing["kind"] == "LeaseList"
    assert listing["apiVersion"] == "coordination.k8s.io/v1"
    assert "kind" not in listing["items"][0]


@behaviour
async def a_list_at_an_exact_version_shows_that_state(api: Api, ns: str) -> None:
    version = (await create(api, maps(ns), config_map())).version
    await create(api, maps(ns), config_map("b"))
    listing = await api.ask("GET", maps(ns), resourceVersion=version, resourceVersionMatch="Exact")
    assert [one["metadata"]["name"] for one in listing.body["items"]] == ["a"]


@behaviour
async def a_dry_run_answers_and_changes_nothing(api: Api, ns: str) -> None:
    reply = await api.ask("POST", maps(ns), config_map(), dryRun="All")
    assert reply.status == 201
    assert reply.body["metadata"]["uid"]
    assert (await api.ask("GET", maps(ns, "a"))).status == 404
    await create(api, maps(ns), config_map(x="1"))
    reply = await api.ask("PATCH", maps(ns, "a"), {"data": {"x": "2"}}, content=MERGE, dryRun="All")
    assert reply.body["data"] == {"x": "2"}
    assert (await api.ask("DELETE", maps(ns, "a"), dryRun="All")).status == 200
    assert (await get(api, maps(ns, "a")))["data"] == {"x": "1"}


@behaviour
async def an_invalid_object_is_refused_in_a_dry_run_too(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(leaseDurationSeconds=0), dryRun="All")
    assert reply.status == 422


@behaviour
async def an_unknown_dry_run_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("POST", maps(ns), config_map(), dryRun="Some")
    assert reply.status in {400, 422}
    assert "dryRun" in reply.message
