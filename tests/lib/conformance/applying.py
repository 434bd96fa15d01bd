"""Server-side apply."""

from __future__ import annotations

from typing import Any

from apiservers import Api, Reply

from conformance import behaviour
from conformance.samples import (
    APPLY,
    MERGE,
    WIDGETS,
    config_map,
    create,
    get,
    maps,
    sets,
    stateful_set,
    widget,
    widgets,
)


async def apply(api: Api, path: str, body: Any, manager: str = "one", **query: str) -> Reply:
    return await api.ask("PATCH", path, body, content=APPLY, fieldManager=manager, **query)


def managers(reply: Reply) -> dict[str, Any]:
    return {one["manager"]: one for one in reply.body["metadata"]["managedFields"]}


@behaviour
async def an_apply_creates_and_then_merges(api: Api, ns: str) -> None:
    reply = await apply(api, maps(ns, "a"), config_map(x="1"))
    assert reply.status == 201
    reply = await apply(api, maps(ns, "a"), config_map(x="2"))
    assert reply.status == 200
    assert reply.body["data"] == {"x": "2"}
    entry = managers(reply)["one"]
    assert entry["operation"] == "Apply"
    assert entry["fieldsType"] == "FieldsV1"
    assert entry["fieldsV1"] == {"f:data": {"f:x": {}}}


@behaviour
async def an_apply_takes_yaml(api: Api, ns: str) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  x: 'yes'\n"
    reply = await apply(api, maps(ns, "a"), text)
    assert reply.status == 201, reply
    assert reply.body["data"] == {"x": "yes"}


@behaviour
async def a_field_that_is_applied_no_more_is_removed(api: Api, ns: str) -> None:
    await apply(api, maps(ns, "a"), config_map(x="1", y="2"))
    reply = await apply(api, maps(ns, "a"), config_map(x="1"))
    assert reply.body["data"] == {"x": "1"}


@behaviour
async def a_field_of_another_manager_is_kept(api: Api, ns: str) -> None:
    await apply(api, maps(ns, "a"), config_map(x="1"))
    await apply(api, maps(ns, "a"), config_map(y="2"), "two")
    reply = await apply(api, maps(ns, "a"), config_map(x="3"))
    assert reply.body["data"] == {"x": "3", "y": "2"}
    reply = await apply(api, maps(ns, "a"), {**config_map(), "data": {}})
    assert reply.body["data"] == {"y": "2"}


@behaviour
async def a_field_that_two_managers_share_outlives_one(api: Api, ns: str) -> None:
    await apply(api, maps(ns, "a"), config_map(x="1"))
    assert (await apply(api, maps(ns, "a"), config_map(x="1"), "two")).status == 200
    reply = await apply(api, maps(ns, "a"), {**config_map(), "data": {}})
    assert reply.body["data"] == {"x": "1"}


@behaviour
async def a_conflict_of_managers_is_refused(api: Api, ns: str) -> None:
    await apply(api, maps(ns, "a"), config_map(x="1"))
    reply = await apply(api, maps(ns, "a"), config_map(x="2"), "two")
    assert reply.status == 409
    assert reply.reason == "Conflict"
    assert reply.message == 'Apply failed with 1 conflict: conflict with "one": .data.x'
    assert reply.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.x"}
    ]
    assert (await get(api, maps(ns, "a")))["data"] == {"x": "1"}


@behaviour
async def several_conflicts_are_listed(api: Api, ns: str) -> None:
    await apply(api, maps(ns, "a"), config_map(x="1", y="1"))
    reply = await apply(api, maps(ns, "a"), config_map(x="2", y="2"), "two")
    assert reply.status == 409
    assert reply.message == 'Apply failed with 2 conflicts: conflicts with "one":\n- .data.x\n- .data.y'


@behaviour
async def force_takes_the_field(api: Api, ns: str) -> None:
    await apply(api, maps(ns, "a"), config_map(x="1"))
    reply = await apply(api, maps(ns, "a"), config_map(x="2"), "two", force="true")
    assert reply.status == 200
    assert reply.body["data"] == {"x": "2"}
    assert set(managers(reply)) == {"two"}


@behaviour
async def a_plain_write_takes_the_field_too(api: Api, ns: str) -> None:
    await apply(api, maps(ns, "a"), config_map(x="1"))
    await api.ask("PATCH", maps(ns, "a"), {"data": {"x": "2"}}, content=MERGE, fieldManager="editor")
    reply = await apply(api, maps(ns, "a"), config_map(x="1"))
    assert reply.status == 409
    assert reply.message == 'Apply failed with 1 conflict: conflict with "editor" using v1: .data.x'


@behaviour
async def a_creator_manages_what_it_set(api: Api, ns: str) -> None:
    reply = await create(api, maps(ns), config_map(labels={"l": "1"}, x="1"), fieldManager="maker")
    (entry,) = reply.body["metadata"]["managedFields"]
    assert entry["manager"] == "maker"
    assert entry["operation"] == "Update"
    assert entry["apiVersion"] == "v1"
    assert entry["fieldsV1"] == {
        "f:data": {".": {}, "f:x": {}},
        "f:metadata": {"f:labels": {".": {}, "f:l": {}}},
    }


@behaviour
async def the_manager_is_the_user_agent_by_default(api: Api, ns: str) -> None:
    reply = await create(api, maps(ns), config_map(x="1"))
    assert set(managers(reply)) == {"conformance"}


@behaviour
async def an_apply_needs_a_manager(api: Api, ns: str) -> None:
    reply = await api.ask("PATCH", maps(ns, "a"), config_map(), content=APPLY)
    assert reply.status == 422
    assert "fieldManager: Required value: is required for apply patch" in reply.message


@behaviour
async def an_apply_may_not_hold_managed_fields(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["managedFields"] = [{"manager": "x", "operation": "Apply", "apiVersion": "v1"}]
    reply = await apply(api, maps(ns, "a"), body)
    assert reply.status == 400
    assert "metadata.managedFields must be nil" in reply.message


@behaviour
async def lists_with_keys_merge_by_their_keys(api: Api, ns: str) -> None:
    await apply(api, sets(ns, "a"), stateful_set())
    side = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "a"},
        "spec": {"template": {"spec": {"containers": [{"name": "side", "image": "example.com/side:1"}]}}},
    }
    reply = await apply(api, sets(ns, "a"), side, "two")
    assert reply.status == 200, reply
    names = {one["name"] for one in reply.body["spec"]["template"]["spec"]["containers"]}
    assert names == {"main", "side"}
    side["spec"]["template"]["spec"]["containers"] = []
    reply = await apply(api, sets(ns, "a"), side, "two")
    assert [one["name"] for one in reply.body["spec"]["template"]["spec"]["containers"]] == ["main"]


@behaviour
async def custom_resources_are_applied_with_defaults(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await apply(api, widgets(ns, "a"), widget(parts=[{"name": "x", "weight": 1}]))
    assert reply.status == 201, reply
    assert reply.body["spec"]["color"] == "red"
    entry = managers(reply)["one"]
    assert entry["fieldsV1"] == {
        "f:spec": {
            "f:size": {},
            "f:parts": {'k:{"name":"x"}': {".": {}, "f:name": {}, "f:weight": {}}},
        }
    }
    reply = await apply(api, widgets(ns, "a"), widget(parts=[{"name": "y", "weight": 2}]), "two")
    assert [one["name"] for one in reply.body["spec"]["parts"]] == ["x", "y"]


@behaviour
async def a_status_is_applied_through_its_subresource(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await apply(api, widgets(ns, "a"), widget())
    body = {"apiVersion": "conformance.fencekv.io/v1", "kind": "Widget", "metadata": {"name": "a"}}
    reply = await apply(api, widgets(ns, "a") + "/status", {**body, "status": {"size": 5}}, "controller")
    assert reply.status == 200, reply
    assert reply.body["status"] == {"size": 5}
    entry = managers(reply)["controller"]
    assert entry["subresource"] == "status"
    assert entry["fieldsV1"] == {"f:status": {"f:size": {}}}
    assert reply.body["spec"]["size"] == 3


@behaviour
async def applying_the_same_again_changes_nothing(api: Api, ns: str) -> None:
    first = await apply(api, maps(ns, "a"), config_map(x="1"))
    second = await apply(api, maps(ns, "a"), config_map(x="1"))
    assert second.version == first.version


@behaviour
async def an_apply_of_an_invalid_object_is_refused(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await apply(api, widgets(ns, "a"), widget(size=0))
    assert reply.status == 422
    reply = await apply(api, widgets(ns, "a"), widget(surplus=1), fieldValidation="Strict")
    assert reply.status in {400, 500}
