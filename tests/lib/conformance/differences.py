"""What the real server does and the embedded one does not: each entry says what happens instead."""

from __future__ import annotations

import asyncio

from apiservers import Api

from conformance import only_real
from conformance.samples import config_map, create, lease, leases, maps, pod, pods

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
POLICY = {
    "metadata": {"name": "no-leases.conformance.fencekv.io"},
    "spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": ["coordination.k8s.io"],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": ["leases"],
                }
            ]
        },
        "validations": [{"expression": "object.metadata.name != 'refused'"}],
    },
}


@only_real("ValidatingAdmissionPolicies are stored, and not enforced")
async def an_admission_policy_is_enforced(api: Api, ns: str) -> None:
    name = POLICY["metadata"]["name"]
    await api.ask("POST", f"{ADMISSION}/validatingadmissionpolicies", POLICY)
    binding = {
        "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns}}},
        },
    }
    await api.ask("POST", f"{ADMISSION}/validatingadmissionpolicybindings", binding)
    statuses = []
    for _ in range(50 if api.real else 1):
        statuses.append((await api.ask("POST", leases(ns), lease("refused"), dryRun="All")).status)
        if statuses[-1] == 422:
            break
        await asyncio.sleep(0.2)
    await api.ask("DELETE", f"{ADMISSION}/validatingadmissionpolicybindings/{name}")
    await api.ask("DELETE", f"{ADMISSION}/validatingadmissionpolicies/{name}")
    assert statuses[-1] == 422


@only_real("Roles are stored, and not enforced: every user that is let in may do everything")
async def roles_are_enforced(api: Api, ns: str) -> None:
    await create(api, f"/api/v1/namespaces/{ns}/serviceaccounts", {"metadata": {"name": "robot"}})
    reply = await api.ask("POST", f"/api/v1/namespaces/{ns}/serviceaccounts/robot/token", {"spec": {}})
    headers = {"Authorization": f"Bearer {reply.body['status']['token']}"}
    async with api.session.get(maps(ns), headers=headers) as response:
        assert response.status == 403


@only_real("A token that nobody knows makes its bearer the admin, unless the server was started with tokens")
async def an_unknown_token_is_refused(api: Api, ns: str) -> None:
    async with api.session.get(maps(ns), headers={"Authorization": "Bearer nobody"}) as response:
        assert response.status == 401


@only_real("Answers are JSON alone; of protobuf bodies only the plainest kinds of `kubectl create` are read")
async def protobuf_is_served(api: Api, ns: str) -> None:
    headers = {"Accept": "application/vnd.kubernetes.protobuf"}
    async with api.session.get(maps(ns), headers=headers) as response:
        assert response.status == 200


@only_real("A field that stands twice in a body goes unnoticed: the last one counts")
async def a_field_that_stands_twice_is_refused_when_strict(api: Api, ns: str) -> None:
    text = '{"metadata":{"name":"a"},"spec":{"holderIdentity":"x","holderIdentity":"y"}}'
    reply = await api.ask("POST", leases(ns), text, fieldValidation="Strict")
    assert reply.status == 400
    assert 'duplicate field "spec.holderIdentity"' in reply.message


@only_real("There is no OpenAPI v2 document")
async def openapi_v2_is_served(api: Api, ns: str) -> None:
    async with api.session.get("/openapi/v2", headers={"Accept": "*/*"}) as response:
        assert response.status == 200


@only_real("A dependent of an absent owner is removed at once; a bare control plane has no garbage collector")
async def a_dependent_of_nobody_is_kept_without_a_controller_manager(api: Api, ns: str) -> None:
    body = config_map()
    uid = "11111111-2222-3333-4444-555555555555"
    body["metadata"]["ownerReferences"] = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": uid}]
    await create(api, maps(ns), body)
    assert (await api.ask("GET", maps(ns, "a"))).status == 200


@only_real("Pods are not checked against their service account, and get no token volume")
async def a_pod_needs_its_service_account(api: Api, ns: str) -> None:
    reply = await api.ask("POST", pods(ns), pod(serviceAccountName="nobody"))
    assert reply.status == 403


@only_real("A CEL rule's cost is not estimated: what is too expensive for a real server is accepted")
async def an_expensive_rule_is_refused(api: Api, ns: str) -> None:
    from conformance.custom import gadgets

    items = {
        "type": "array",
        "items": {"type": "string"},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.exists_one(b, a == b))"}],
    }
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"names": items}}}}
    reply = await api.ask(
        "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", gadgets(schema), dryRun="All"
    )
    assert reply.status == 422


@only_real("A CEL rule is parsed, but its types are not checked against the schema before it runs")
async def a_rule_over_an_unknown_field_is_refused(api: Api, ns: str) -> None:
    from conformance.custom import gadgets

    spec = {"type": "object", "x-kubernetes-validations": [{"rule": "self.absent == 1"}]}
    schema = {"type": "object", "properties": {"spec": spec}}
    reply = await api.ask(
        "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", gadgets(schema), dryRun="All"
    )
    assert reply.status == 422


@only_real("Resources that FenceKV does not use are not served")
async def every_resource_of_kubernetes_is_served(api: Api, ns: str) -> None:
    for path in ("/apis/batch/v1/jobs", "/apis/apps/v1/daemonsets", "/api/v1/resourcequotas"):
        assert (await api.ask("GET", path)).status == 200
