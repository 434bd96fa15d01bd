"""Create, read, replace and patch; versions, generations, selectors, pages."""

from __future__ import annotations

from apiservers import Api

from conformance import behaviour
from conformance.samples import (
    JSON_PATCH,
    MERGE,
    STRATEGIC,
    config_map,
    create,
    get,
    lease,
    leases,
    maps,
    pods,
    sets,
    stateful_set,
)


@behaviour
async def a_created_object_gets_identity_and_version(api: Api, ns: str) -> None:
    reply = await create(api, maps(ns), config_map(x="1"))
    meta = reply.body["metadata"]
    assert meta["namespace"] == ns
    assert len(meta["uid"]) == 36
    assert meta["creationTimestamp"].endswith("Z")
    assert int(meta["resourceVersion"]) > 0
    assert "generation" not in meta
    assert reply.body["kind"] == "ConfigMap"
    assert reply.body["apiVersion"] == "v1"


@behaviour
async def creating_twice_is_refused(api: Api, ns: str) -> None:
    await create(api, leases(ns), lease())
    reply = await api.ask("POST", leases(ns), lease())
    assert reply.status == 409
    assert reply.body == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'leases.coordination.k8s.io "a" already exists',
        "reason": "AlreadyExists",
        "details": {"name": "a", "group": "coordination.k8s.io", "kind": "leases"},
        "code": 409,
    }


@behaviour
async def a_missing_object_is_not_found(api: Api, ns: str) -> None:
    reply = await api.ask("GET", leases(ns, "nobody"))
    assert reply.status == 404
    assert reply.body == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'leases.coordination.k8s.io "nobody" not found',
        "reason": "NotFound",
        "details": {"name": "nobody", "group": "coordination.k8s.io", "kind": "leases"},
        "code": 404,
    }


@behaviour
async def a_missing_core_object_has_no_group(api: Api, ns: str) -> None:
    reply = await api.ask("GET", pods(ns, "nobody"))
    assert reply.message == 'pods "nobody" not found'
    assert reply.body["details"] == {"name": "nobody", "kind": "pods"}


@behaviour
async def a_name_is_generated(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"] = {"generateName": "web-"}
    names = {(await create(api, maps(ns), body)).body["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("web-") and len(name) == len("web-") + 5 for name in names)


@behaviour
async def a_name_is_required(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"] = {}
    reply = await api.ask("POST", maps(ns), body)
    assert reply.status == 422
    assert (
        reply.message == 'ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required'
    )


@behaviour
async def a_bad_name_is_invalid(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease("Bad_Name"))
    assert reply.status == 422
    cause = reply.body["details"]["causes"][0]
    assert cause["reason"] == "FieldValueInvalid"
    assert cause["field"] == "metadata.name"
    assert cause["message"].startswith('Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of')


@behaviour
async def a_bad_label_is_invalid(api: Api, ns: str) -> None:
    reply = await api.ask("POST", maps(ns), config_map(labels={"a": "not ok"}))
    assert reply.status == 422
    cause = reply.body["details"]["causes"][0]
    assert cause["field"] == "metadata.labels"
    assert cause["message"].startswith('Invalid value: "not ok": a valid label must be an empty string')


@behaviour
async def a_version_may_not_be_given_at_creation(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["resourceVersion"] = "7"
    reply = await api.ask("POST", maps(ns), body)
    assert reply.status == 500
    assert "resourceVersion should not be set on objects to be created" in reply.message


@behaviour
async def an_unknown_namespace_is_not_found(api: Api, ns: str) -> None:
    reply = await api.ask("POST", maps("absent-namespace"), config_map())
    assert reply.status == 404
    assert reply.message == 'namespaces "absent-namespace" not found'
    assert reply.body["details"] == {"name": "absent-namespace", "kind": "namespaces"}


@behaviour
async def the_namespace_must_match_the_url(api: Api, ns: str) -> None:
    body = config_map()
    body["metadata"]["namespace"] = "default"
    reply = await api.ask("POST", maps(ns), body)
    assert reply.status == 400
    assert reply.message == (
        "the namespace of the provided object does not match the namespace sent on the request"
    )


@behaviour
async def the_name_must_match_the_url(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map())
    reply = await api.ask("PUT", maps(ns, "a"), config_map("b"))
    assert reply.status == 400
    assert reply.message == "the name of the object (b) does not match the name on the URL (a)"


@behaviour
async def a_replace_with_the_version_that_was_read_succeeds(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    body["spec"]["holderIdentity"] = "you"
    reply = await api.ask("PUT", leases(ns, "a"), body)
    assert reply.status == 200
    assert reply.body["spec"]["holderIdentity"] == "you"
    assert int(reply.version) > int(body["metadata"]["resourceVersion"])
    assert reply.body["metadata"]["uid"] == body["metadata"]["uid"]


@behaviour
async def a_replace_with_an_old_version_conflicts(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    body["spec"]["holderIdentity"] = "you"
    assert (await api.ask("PUT", leases(ns, "a"), body)).status == 200
    reply = await api.ask("PUT", leases(ns, "a"), body)
    assert reply.status == 409
    assert reply.reason == "Conflict"
    assert reply.message == (
        'Operation cannot be fulfilled on leases.coordination.k8s.io "a": the object has been modified; please '
        "apply your changes to the latest version and try again"
    )
    assert reply.body["details"] == {"name": "a", "group": "coordination.k8s.io", "kind": "leases"}


@behaviour
async def of_two_racing_replaces_one_wins(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    import asyncio

    async def take(who: str) -> int:
        mine = {**body, "spec": {**body["spec"], "holderIdentity": who}}
        return (await api.ask("PUT", leases(ns, "a"), mine)).status

    outcomes = await asyncio.gather(*(take(f"racer-{number}") for number in range(8)))
    assert sorted(outcomes) == [200] + [409] * 7


@behaviour
async def a_lease_cannot_be_replaced_without_a_version(api: Api, ns: str) -> None:
    await create(api, leases(ns), lease())
    reply = await api.ask("PUT", leases(ns, "a"), lease(leaseDurationSeconds=9))
    assert reply.status == 422
    assert "metadata.resourceVersion: Invalid value: 0: must be specified for an update" in reply.message, reply


@behaviour
async def a_config_map_can_be_replaced_without_a_version(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map(x="1"))
    reply = await api.ask("PUT", maps(ns, "a"), config_map(x="2"))
    assert reply.status == 200
    assert reply.body["data"] == {"x": "2"}


@behaviour
async def a_lease_is_created_by_put(api: Api, ns: str) -> None:
    reply = await api.ask("PUT", leases(ns, "new"), lease("new"))
    assert reply.status == 201


@behaviour
async def a_config_map_is_not_created_by_put(api: Api, ns: str) -> None:
    reply = await api.ask("PUT", maps(ns, "new"), config_map("new"))
    assert reply.status == 404
    assert reply.message == 'configmaps "new" not found'


@behaviour
async def a_put_of_a_deleted_lease_with_its_uid_conflicts(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    assert (await api.ask("DELETE", leases(ns, "a"))).status == 200
    reply = await api.ask("PUT", leases(ns, "a"), body)
    assert reply.status == 409
    assert reply.reason == "Conflict"
    assert reply.message.endswith(
        f"Precondition failed: UID in precondition: {body['metadata']['uid']}, UID in object meta: "
    )
    assert (await api.ask("GET", leases(ns, "a"))).status == 404


@behaviour
async def a_put_of_a_deleted_lease_without_its_uid_creates_it_again(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    assert (await api.ask("DELETE", leases(ns, "a"))).status == 200
    del body["metadata"]["uid"]
    reply = await api.ask("PUT", leases(ns, "a"), body)
    assert reply.status == 201  # The version that it carries holds nobody back.


@behaviour
async def a_put_with_another_uid_conflicts(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    uid = body["metadata"]["uid"]
    body["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"
    reply = await api.ask("PUT", leases(ns, "a"), body)
    assert reply.status == 409
    assert f"UID in object meta: {uid}" in reply.message


@behaviour
async def a_replace_that_changes_nothing_keeps_the_version(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    reply = await api.ask("PUT", leases(ns, "a"), body)
    assert reply.status == 200
    assert reply.version == body["metadata"]["resourceVersion"]


@behaviour
async def versions_rise_over_all_resources(api: Api, ns: str) -> None:
    first = int((await create(api, leases(ns), lease())).version)
    second = int((await create(api, maps(ns), config_map())).version)
    third = int((await create(api, leases(ns), lease("b"))).version)
    assert first < second < third
    listing = await get(api, leases(ns))
    assert int(listing["metadata"]["resourceVersion"]) >= third


@behaviour
async def a_merge_patch_merges_and_null_removes(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map(x="1", y="2"))
    reply = await api.ask("PATCH", maps(ns, "a"), {"data": {"x": None, "z": "3"}}, content=MERGE)
    assert reply.status == 200
    assert reply.body["data"] == {"y": "2", "z": "3"}


@behaviour
async def a_patch_with_an_old_version_conflicts(api: Api, ns: str) -> None:
    old = (await create(api, maps(ns), config_map(x="1"))).version
    assert (await api.ask("PATCH", maps(ns, "a"), {"data": {"x": "2"}}, content=MERGE)).status == 200
    patch = {"metadata": {"resourceVersion": old}, "data": {"x": "3"}}
    reply = await api.ask("PATCH", maps(ns, "a"), patch, content=MERGE)
    assert reply.status == 409
    assert reply.reason == "Conflict"


@behaviour
async def a_json_patch_is_applied_in_order(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map(labels={"l": "1"}, x="1"))
    patch = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "add", "path": "/metadata/labels/y~1z", "value": "2"},
        {"op": "remove", "path": "/metadata/labels/l"},
        {"op": "copy", "from": "/data/x", "path": "/data/w"},
        {"op": "move", "from": "/data/x", "path": "/data/v"},
    ]
    reply = await api.ask("PATCH", maps(ns, "a"), patch, content=JSON_PATCH)
    assert reply.status == 200, reply
    assert reply.body["metadata"]["labels"] == {"y/z": "2"}
    assert reply.body["data"] == {"w": "1", "v": "1"}


@behaviour
async def a_config_key_has_a_form(api: Api, ns: str) -> None:
    reply = await api.ask("POST", maps(ns), {**config_map(), "data": {"y/z": "1"}})
    assert reply.status == 422
    assert reply.body["details"]["causes"][0]["field"] == "data[y/z]"


@behaviour
async def a_json_patch_whose_test_fails_changes_nothing(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map(x="1"))
    patch = [{"op": "replace", "path": "/data/x", "value": "2"}, {"op": "test", "path": "/data/x", "value": "9"}]
    reply = await api.ask("PATCH", maps(ns, "a"), patch, content=JSON_PATCH)
    assert reply.status == 422
    assert reply.reason == "Invalid"
    assert (await get(api, maps(ns, "a")))["data"] == {"x": "1"}


@behaviour
async def a_strategic_patch_merges_containers_by_name(api: Api, ns: str) -> None:
    await create(api, sets(ns), stateful_set())
    containers = [
        {"name": "side", "image": "example.com/side:1"},
        {"name": "main", "env": [{"name": "A", "value": "1"}]},
    ]
    patch = {"spec": {"template": {"spec": {"containers": containers}}}}
    reply = await api.ask("PATCH", sets(ns, "a"), patch, content=STRATEGIC)
    assert reply.status == 200, reply
    merged = reply.body["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["image"] for one in merged} == {
        "main": "example.com/image:1",
        "side": "example.com/side:1",
    }
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "side", "$patch": "delete"}]}}}}
    reply = await api.ask("PATCH", sets(ns, "a"), patch, content=STRATEGIC)
    assert [one["name"] for one in reply.body["spec"]["template"]["spec"]["containers"]] == ["main"]


@behaviour
async def a_patch_of_nothing_is_not_found(api: Api, ns: str) -> None:
    reply = await api.ask("PATCH", leases(ns, "a"), {"spec": {}}, content=MERGE)
    assert reply.status == 404


@behaviour
async def a_patch_may_not_move_an_object(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map())
    reply = await api.ask("PATCH", maps(ns, "a"), {"metadata": {"name": "b"}}, content=MERGE)
    assert reply.status == 400
    assert reply.message == "the name of the object (b) does not match the name on the URL (a)"


@behaviour
async def generation_counts_changes_of_the_spec_alone(api: Api, ns: str) -> None:
    assert (await create(api, sets(ns), stateful_set(replicas=1))).body["metadata"]["generation"] == 1
    reply = await api.ask("PATCH", sets(ns, "a"), {"metadata": {"labels": {"x": "y"}}}, content=MERGE)
    assert reply.body["metadata"]["generation"] == 1
    reply = await api.ask("PATCH", sets(ns, "a") + "/status", {"status": {"replicas": 1}}, content=MERGE)
    assert reply.body["metadata"]["generation"] == 1
    reply = await api.ask("PATCH", sets(ns, "a"), {"spec": {"replicas": 2}}, content=MERGE)
    assert reply.body["metadata"]["generation"] == 2


@behaviour
async def a_status_is_written_through_its_subresource_alone(api: Api, ns: str) -> None:
    await create(api, sets(ns), {**stateful_set(replicas=1), "status": {"replicas": 7}})
    body = await get(api, sets(ns, "a"))
    assert body["status"].get("replicas", 0) == 0
    body["status"] = {"replicas": 5}
    reply = await api.ask("PUT", sets(ns, "a"), body)
    assert reply.body["status"].get("replicas", 0) == 0
    body = reply.body
    body["status"] = {"replicas": 5}
    body["spec"]["replicas"] = 9
    reply = await api.ask("PUT", sets(ns, "a") + "/status", body)
    assert reply.status == 200
    assert reply.body["status"]["replicas"] == 5
    assert reply.body["spec"]["replicas"] == 1


@behaviour
async def an_immutable_part_of_a_stateful_set_is_refused(api: Api, ns: str) -> None:
    await create(api, sets(ns), stateful_set())
    reply = await api.ask("PATCH", sets(ns, "a"), {"spec": {"serviceName": "other"}}, content=MERGE)
    assert reply.status == 422
    cause = reply.body["details"]["causes"][0]
    assert cause["reason"] == "FieldValueForbidden"
    assert cause["field"] == "spec"
    assert cause["message"].startswith("Forbidden: updates to statefulset spec for fields other than 'replicas'")


@behaviour
async def a_stateful_set_gets_its_defaults(api: Api, ns: str) -> None:
    spec = (await create(api, sets(ns), stateful_set())).body["spec"]
    assert spec["replicas"] == 1
    assert spec["podManagementPolicy"] == "OrderedReady"
    assert spec["revisionHistoryLimit"] == 10
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    inner = spec["template"]["spec"]
    assert inner == {
        "containers": [
            {
                "name": "main",
                "image": "example.com/image:1",
                "imagePullPolicy": "IfNotPresent",
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }
        ],
        "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
    }


@behaviour
async def scale_shows_and_sets_replicas(api: Api, ns: str) -> None:
    await create(api, sets(ns), stateful_set(replicas=1))
    scale = await get(api, sets(ns, "a") + "/scale")
    assert scale["kind"] == "Scale"
    assert scale["apiVersion"] == "autoscaling/v1"
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 0, "selector": "app=a"}
    scale["spec"]["replicas"] = 3
    reply = await api.ask("PUT", sets(ns, "a") + "/scale", scale)
    assert reply.status == 200, reply
    assert (await get(api, sets(ns, "a")))["spec"]["replicas"] == 3
    reply = await api.ask("PATCH", sets(ns, "a") + "/scale", {"spec": {"replicas": 0}}, content=MERGE)
    assert reply.status == 200, reply
    assert (await get(api, sets(ns, "a")))["spec"]["replicas"] == 0
