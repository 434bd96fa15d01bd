"""Answers outside of objects: wrong paths, methods, media types; discovery, health, OpenAPI, tables."""

from __future__ import annotations

from apiservers import NAMESPACES, Api

from conformance import behaviour
from conformance.samples import WIDGETS, config_map, create, get, leases, maps, pod, pods, widget, widgets

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@behaviour
async def an_unknown_path_is_a_plain_404(api: Api, ns: str) -> None:
    for path in ("/apis/nothing.example.com/v1/things", "/nothing", "/apis/nothing.example.com"):
        reply = await api.ask("GET", path)
        assert reply.status == 404, path
        assert reply.body == "404 page not found\n", path


@behaviour
async def an_unknown_resource_of_a_known_group_is_not_found(api: Api, ns: str) -> None:
    for path in ("/api/v1/things", f"/apis/apps/v1/namespaces/{ns}/things", maps(ns, "a") + "/status"):
        reply = await api.ask("GET", path)
        assert reply.status == 404, path
        assert reply.reason == "NotFound"
        assert reply.message == "the server could not find the requested resource"
        assert reply.body["details"] == {}


@behaviour
async def a_method_that_is_not_served_is_refused(api: Api, ns: str) -> None:
    for method, path in (("PUT", maps(ns)), ("PATCH", maps(ns)), ("POST", maps(ns, "a"))):
        reply = await api.ask(method, path, config_map())
        assert reply.status == 405, (method, path)
        assert reply.body == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": "the server does not allow this method on the requested resource",
            "reason": "MethodNotAllowed",
            "details": {},
            "code": 405,
        }


@behaviour
async def a_verb_that_a_resource_lacks_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("DELETE", NAMESPACES)
    assert reply.status == 405
    assert reply.reason == "MethodNotAllowed"


@behaviour
async def an_unknown_content_type_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("POST", maps(ns), "<xml/>", content="application/xml")
    assert reply.status == 415
    assert reply.reason == "UnsupportedMediaType"
    assert "the body of the request was in an unknown format - accepted media types include:" in reply.message


@behaviour
async def an_unknown_patch_type_is_refused(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map())
    reply = await api.ask("PATCH", maps(ns, "a"), {}, content="application/json")
    assert reply.status == 415
    assert reply.message == "415: Unsupported Media Type"


@behaviour
async def an_unknown_accept_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("GET", maps(ns), accept="text/html")
    assert reply.status == 406
    assert reply.message.startswith("406: Not Acceptable\n\nAvailable representations: application/json, ")


@behaviour
async def a_body_that_is_no_json_is_refused(api: Api, ns: str) -> None:
    for text in ("{", "[]", "", "{'a': 1}"):
        reply = await api.ask("POST", maps(ns), text)
        assert reply.status == 400, (text, reply)
        assert reply.reason == "BadRequest"


@behaviour
async def a_body_of_another_kind_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), config_map())
    assert reply.status == 400
    assert reply.reason == "BadRequest"
    assert reply.message == (
        'ConfigMap in version "v1" cannot be handled as a Lease: converting (v1.ConfigMap) to '
        "(coordination.Lease): unknown conversion"
    )


@behaviour
async def a_custom_body_of_another_kind_is_refused(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await api.ask("POST", widgets(ns), {**widget(), "kind": "Gadget"})
    assert reply.status == 422
    assert reply.message == (
        'Gadget.conformance.fencekv.io "a" is invalid: kind: Invalid value: "Gadget": must be Widget'
    )
    reply = await api.ask("POST", widgets(ns), {**widget(), "apiVersion": "conformance.fencekv.io/v2"})
    assert reply.status == 400
    assert reply.message == (
        "the API version in the data (conformance.fencekv.io/v2) does not match the expected API version "
        "(conformance.fencekv.io/v1)"
    )
    reply = await api.ask("POST", widgets(ns), {"metadata": {"name": "a"}, "spec": {"size": 1}})
    assert reply.status == 400
    assert "Object 'Kind' is missing in" in reply.message


@behaviour
async def a_kind_may_be_left_out_of_a_built_in_body(api: Api, ns: str) -> None:
    body = config_map(x="1")
    del body["kind"], body["apiVersion"]
    assert (await create(api, maps(ns), body)).body["kind"] == "ConfigMap"


@behaviour
async def a_body_may_be_yaml(api: Api, ns: str) -> None:
    text = "metadata:\n  name: a\ndata:\n  x: 'yes'\n"
    reply = await api.ask("POST", maps(ns), text, content="application/yaml")
    assert reply.status == 201, reply


@behaviour
async def a_body_has_a_limit(api: Api, ns: str) -> None:
    reply = await api.ask("POST", maps(ns), config_map(x="x" * (3 * 1024 * 1024 + 100)))
    assert reply.status == 413
    assert reply.reason == "RequestEntityTooLarge"


@behaviour
async def health_is_told(api: Api, ns: str) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        reply = await api.ask("GET", path, accept="*/*")
        assert (reply.status, reply.body) == (200, "ok")


@behaviour
async def the_version_is_told(api: Api, ns: str) -> None:
    body = await get(api, "/version")
    assert body["major"] == "1"
    assert body["minor"] == "35"
    assert body["gitVersion"].startswith("v1.35.")


@behaviour
async def groups_are_discovered(api: Api, ns: str) -> None:
    assert (await get(api, "/api"))["versions"] == ["v1"]
    groups = {one["name"]: one for one in (await get(api, "/apis"))["groups"]}
    lease_group = groups["coordination.k8s.io"]
    assert lease_group["preferredVersion"] == {"groupVersion": "coordination.k8s.io/v1", "version": "v1"}
    listing = await get(api, "/apis/coordination.k8s.io/v1")
    assert listing["kind"] == "APIResourceList"
    assert listing["groupVersion"] == "coordination.k8s.io/v1"
    (one,) = (one for one in listing["resources"] if one["name"] == "leases")
    assert one["kind"] == "Lease"
    assert one["singularName"] == "lease"
    assert sorted(one["verbs"]) == [
        "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
    ]  # fmt: skip


@behaviour
async def discovery_is_aggregated_on_demand(api: Api, ns: str) -> None:
    reply = await api.ask("GET", "/apis", accept=AGGREGATED)
    assert "APIGroupDiscoveryList" in reply.headers["Content-Type"]
    assert reply.body["kind"] == "APIGroupDiscoveryList"
    groups = {one["metadata"]["name"]: one for one in reply.body["items"]}
    (version,) = [one for one in groups["apps"]["versions"] if one["version"] == "v1"]
    (one,) = (one for one in version["resources"] if one["resource"] == "statefulsets")
    assert one["scope"] == "Namespaced"
    assert one["responseKind"]["kind"] == "StatefulSet"
    assert {sub["subresource"] for sub in one["subresources"]} == {"scale", "status"}


@behaviour
async def openapi_tells_schemas_and_field_validation(api: Api, ns: str) -> None:
    paths = (await get(api, "/openapi/v3"))["paths"]
    url = paths["apis/coordination.k8s.io/v1"]["serverRelativeURL"]
    assert "?hash=" in url
    document = await get(api, url)
    schemas = document["components"]["schemas"]
    spec = schemas["io.k8s.api.coordination.v1.LeaseSpec"]["properties"]
    assert spec["leaseTransitions"]["type"] == "integer"
    operation = document["paths"]["/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"]["patch"]
    assert "fieldValidation" in {one["name"] for one in operation["parameters"]}
    assert operation["x-kubernetes-group-version-kind"]["kind"] == "Lease"


@behaviour
async def openapi_tells_the_schema_of_custom_resources(api: Api, ns: str) -> None:
    import asyncio

    await api.define(WIDGETS)
    async with asyncio.timeout(30):
        while "apis/conformance.fencekv.io/v1" not in (paths := (await get(api, "/openapi/v3"))["paths"]):
            await asyncio.sleep(0.1)
        url = paths["apis/conformance.fencekv.io/v1"]["serverRelativeURL"]
        while "io.fencekv.conformance.v1.Widget" not in (
            schemas := (await get(api, url))["components"]["schemas"]
        ):
            await asyncio.sleep(0.1)
    schema = schemas["io.fencekv.conformance.v1.Widget"]
    assert schema["x-kubernetes-group-version-kind"] == [
        {"group": "conformance.fencekv.io", "kind": "Widget", "version": "v1"}
    ]
    assert schema["properties"]["spec"]["properties"]["size"]["type"] == "integer"
    assert "metadata" in schema["properties"]


@behaviour
async def built_in_kinds_have_columns(api: Api, ns: str) -> None:
    await create(api, pods(ns), pod())
    table = (await api.ask("GET", pods(ns), accept=TABLE)).body
    names = [one["name"] for one in table["columnDefinitions"]]
    assert names[:5] == ["Name", "Ready", "Status", "Restarts", "Age"]
    assert table["rows"][0]["cells"][:4] == ["a", "0/1", "Pending", "0"]


@behaviour
async def a_collection_over_all_namespaces_is_read_but_not_written(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("only-here"))
    listing = (await api.ask("GET", "/api/v1/configmaps", fieldSelector="metadata.name=only-here")).body
    assert [one["metadata"]["namespace"] for one in listing["items"]] == [ns]
    reply = await api.ask("POST", "/api/v1/configmaps", config_map())
    assert reply.status == 405


@behaviour
async def events_of_both_groups_are_the_same_objects(api: Api, ns: str) -> None:
    body = {
        "metadata": {"name": "e"},
        "eventTime": "2026-01-02T03:04:05.000000Z",
        "reportingController": "fencekv.io/operator",
        "reportingInstance": "op-0",
        "action": "Grant",
        "reason": "Granted",
        "regarding": {"kind": "Pod", "name": "p", "namespace": ns},
        "note": "epoch 4",
        "type": "Normal",
    }
    await create(api, f"/apis/events.k8s.io/v1/namespaces/{ns}/events", body)
    event = await get(api, f"/api/v1/namespaces/{ns}/events/e")
    assert event["message"] == "epoch 4"
    assert event["involvedObject"]["name"] == "p"
    assert event["reportingComponent"] == "fencekv.io/operator"


@behaviour
async def an_event_stays_in_the_namespace_of_its_object(api: Api, ns: str) -> None:
    body = {"metadata": {"name": "e"}, "involvedObject": {"namespace": "default", "name": "x"}, "reason": "R"}
    reply = await api.ask("POST", f"/api/v1/namespaces/{ns}/events", body)
    assert reply.status == 422
    assert "involvedObject.namespace" in reply.message


@behaviour
async def a_service_account_gets_tokens(api: Api, ns: str) -> None:
    await create(api, f"/api/v1/namespaces/{ns}/serviceaccounts", {"metadata": {"name": "robot"}})
    path = f"/api/v1/namespaces/{ns}/serviceaccounts/robot/token"
    reply = await api.ask("POST", path, {"spec": {"expirationSeconds": 3600}})
    assert reply.status == 201, reply
    assert reply.body["kind"] == "TokenRequest"
    assert reply.body["status"]["token"]
    headers = {"Authorization": f"Bearer {reply.body['status']['token']}"}
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    async with api.session.post(
        "/apis/authentication.k8s.io/v1/selfsubjectreviews", json=review, headers=headers
    ) as response:
        document = await response.json()
    assert document["status"]["userInfo"]["username"] == f"system:serviceaccount:{ns}:robot"
