"""The custom resources as an API server enforces them: refusals name the field, defaults are filled in.

No operator runs here: every rule holds by the CRDs alone. Offline checks: test_manifests.py.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import crd_cases
import pytest
import yaml
from apiservers import Api, Reply
from crd_cases import ABSENT, CONDITION, Case, Object, valid

from fencekv.kube import KV_NAMESPACES, KV_OPERATIONS, KV_PARTITIONS, KV_TABLES, Resource

ROOT = Path(__file__).parents[2]
NAMESPACE = "default"
RESOURCES = {resource.kind: resource for resource in (KV_NAMESPACES, KV_TABLES, KV_PARTITIONS, KV_OPERATIONS)}
READY_SECONDS = 30


async def create(api: Api, body: Object, **query: str) -> Reply:
    """POST of a custom resource; a definition that was just made answers 429 for a moment."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            reply = await api.ask("POST", RESOURCES[body["kind"]].path(NAMESPACE), body, **query)
            if reply.status != 429:
                return reply
            await asyncio.sleep(0.1)


async def merge(api: Api, path: str, body: Object) -> Reply:
    """A merge patch."""
    return await api.ask("PATCH", path, body, content="application/merge-patch+json")


@functools.cache
def crds() -> list[Object]:
    """The project's CRDs; parsing takes longer than the tests."""
    return [yaml.safe_load((ROOT / f"crds/{resource.plural}.yaml").read_text()) for resource in RESOURCES.values()]


@pytest.fixture
async def api(apiserver: Api) -> Api:
    """The API server with the project's CRDs."""
    for crd in crds():
        await apiserver.define(crd)
    return apiserver


@pytest.fixture
async def stored(api: Api) -> AsyncIterator[dict[str, str]]:
    """One valid object of each kind on the server: path by kind."""
    paths = {}
    for kind, resource in RESOURCES.items():
        body = valid(kind)
        reply = await create(api, body)
        assert reply.status == 201, reply
        paths[kind] = resource.path(NAMESPACE, body["metadata"]["name"])
    yield paths
    for path in paths.values():
        await api.ask("DELETE", path)


def assert_refused(case: Case, reply: Reply) -> None:
    """422 with a cause of the case's field, and the case's words in the message."""
    assert (reply.status, reply.reason) == (422, "Invalid"), reply
    assert case.field in reply.message
    assert case.words.lower() in reply.message.lower()
    fields = [cause["field"] for cause in reply.body["details"]["causes"]]
    # A rule on the root has no field of its own: its message names metadata.name.
    assert case.field in fields or case.field == crd_cases.NAME, fields


@pytest.mark.parametrize("case", crd_cases.BAD, ids=lambda case: case.id)
async def test_a_bad_resource_is_refused_and_the_refusal_names_the_field(api: Api, case: Case) -> None:
    reply = await create(api, valid(case.kind, case.changes))

    assert_refused(case, reply)
    listing = await api.ask("GET", RESOURCES[case.kind].path(NAMESPACE))
    assert listing.body["items"] == []


@pytest.mark.parametrize("case", crd_cases.GOOD, ids=lambda case: case.id)
async def test_a_good_resource_is_accepted(api: Api, case: Case) -> None:
    reply = await create(api, valid(case.kind, case.changes), dryRun="All", fieldValidation="Strict")

    assert reply.status == 201, reply


@pytest.mark.parametrize("case", crd_cases.BAD_STATUSES, ids=lambda case: case.id)
async def test_a_bad_status_is_refused(api: Api, stored: dict[str, str], case: Case) -> None:
    body = {"status": valid(case.kind, case.changes)["status"]}

    reply = await merge(api, stored[case.kind] + "/status", body)

    assert_refused(case, reply)


@pytest.mark.parametrize("case", crd_cases.IMMUTABLE, ids=lambda case: case.id)
async def test_what_may_not_change_does_not_change(api: Api, stored: dict[str, str], case: Case) -> None:
    before = (await api.ask("GET", stored[case.kind])).body

    body = {"spec": valid(case.kind, case.changes)["spec"]}
    reply = await merge(api, stored[case.kind], body)

    assert_refused(case, reply)
    assert (await api.ask("GET", stored[case.kind])).body == before


@pytest.mark.parametrize("case", crd_cases.MUTABLE, ids=lambda case: case.id)
async def test_what_may_change_does_change(api: Api, stored: dict[str, str], case: Case) -> None:
    body = {"spec": valid(case.kind, case.changes)["spec"]}

    reply = await merge(api, stored[case.kind], body)

    assert reply.status == 200, reply
    assert reply.body["metadata"]["generation"] == 2


@pytest.mark.parametrize("case", crd_cases.UNKNOWN_FIELDS, ids=lambda case: case.id)
async def test_an_unknown_field_is_refused_when_strict_and_warned_of_and_dropped_when_not(
    api: Api, case: Case
) -> None:
    body = valid(case.kind, case.changes)

    reply = await create(api, body, dryRun="All", fieldValidation="Strict")
    assert reply.status == 400, reply
    assert f'unknown field "{case.field}"' in reply.message

    reply = await create(api, body, dryRun="All", fieldValidation="Warn")
    assert reply.status == 201, reply
    assert any(f'unknown field \\"{case.field}\\"' in warning for warning in reply.warnings), reply.warnings
    value: Any = reply.body
    *parents, last = case.field.split(".")
    for step in parents:
        value = value.get(step, {})
    assert last not in value


async def test_a_namespace_gets_its_defaults(api: Api) -> None:
    reply = await create(api, valid("KVNamespace", {"spec": ABSENT}), dryRun="All")

    assert reply.body["spec"] == {
        "shards": {
            "replicas": 3,
            "imagePullPolicy": "IfNotPresent",
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            "storage": {"size": "1Gi"},
            "topologySpread": [
                {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}
            ],
        },
        "lease": {"durationSeconds": 6, "validSeconds": 4, "renewSeconds": 1},
        "defaults": {"durability": "replicated", "replicas": 2, "minInSync": 1},
        "replaceAfterSeconds": 600,
        "deletionPolicy": "Retain",
    }


async def test_a_part_of_a_namespace_keeps_the_defaults_of_the_rest(api: Api) -> None:
    body = valid("KVNamespace", {"spec": {"lease": {"validSeconds": 3}, "defaults": {"replicas": 4}}})

    reply = await create(api, body, dryRun="All")

    assert reply.body["spec"]["lease"] == {"durationSeconds": 6, "validSeconds": 3, "renewSeconds": 1}
    assert reply.body["spec"]["defaults"] == {"durability": "replicated", "replicas": 4, "minInSync": 1}


async def test_a_table_gets_its_defaults_and_inherits_the_rest(api: Api) -> None:
    reply = await create(api, valid("KVTable"), dryRun="All")

    # replicas, minInSync and durability stay absent: the KVNamespace's defaults hold for them.
    assert reply.body["spec"] == {
        "namespace": "tenant",
        "partitioning": {"strategy": "hash", "count": 1},
        "maxUnshippedSeconds": 1,
        "limits": {"valueBytesMax": 1048576, "keyPattern": ""},
        "deletionPolicy": "Retain",
    }


async def test_the_epoch_of_a_partition_never_falls(api: Api, stored: dict[str, str]) -> None:
    path = stored["KVPartition"] + "/status"
    for epoch in (0, 4, 4, 7):
        reply = await merge(api, path, {"status": {"epoch": epoch}})
        assert reply.status == 200, reply

    reply = await merge(api, path, {"status": {"epoch": 6}})

    assert_refused(Case(kind="KVPartition", changes={}, field="status.epoch", words="never falls"), reply)


async def test_a_whole_status_is_stored_and_does_not_touch_the_spec(api: Api, stored: dict[str, str]) -> None:
    whole = {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "epoch": 4,
        "owner": "tenant-0",
        "session": "tenant-0/5f0c7e3e-0000-4000-8000-000000000002/00112233445566ff",
        "inSync": ["tenant-0", "tenant-1"],
        "standbys": ["tenant-1", "tenant-2"],
        "setVersion": 7,
        "token": "4.800",
        "lag": 3,
        "phase": "Ready",
        "lastFailover": {
            "when": "2026-01-02T03:04:05.678901Z",
            "reason": "the kubelet saw the container end",
            "seconds": 0.75,
            "fromEpoch": 3,
            "toEpoch": 4,
        },
    }

    reply = await merge(api, stored["KVPartition"] + "/status", {"status": whole, "spec": {"minInSync": 2}})

    assert reply.status == 200, reply
    assert reply.body["status"] == whole
    assert reply.body["spec"]["minInSync"] == 1
    assert reply.body["metadata"]["generation"] == 1


async def test_the_samples_are_accepted(api: Api) -> None:
    for sample in yaml.safe_load_all((ROOT / "manifests/samples/sample.yaml").read_text()):
        reply = await create(api, sample, dryRun="All", fieldValidation="Strict")
        assert reply.status == 201, reply


async def test_partitions_are_shown_in_columns(api: Api, stored: dict[str, str]) -> None:
    status = {"epoch": 4, "owner": "tenant-0", "inSync": ["tenant-0"], "token": "4.8", "lag": 0, "phase": "Ready"}
    await merge(api, stored["KVPartition"] + "/status", {"status": status})

    table = await _table(api, KV_PARTITIONS)

    assert table == [
        {
            "Name": "orders-3",
            "Table": "orders",
            "Partition": 3,
            "Epoch": 4,
            "Owner": "tenant-0",
            "In-Sync": '["tenant-0"]',
            "Token": "4.8",
            "Lag": 0,
            "Phase": "Ready",
            "Age": table[0]["Age"],
        }
    ]


async def test_tables_and_namespaces_are_shown_with_their_ready_condition(
    api: Api, stored: dict[str, str]
) -> None:
    status = {"partitions": 4, "readyPartitions": 3, "conditions": [{**CONDITION, "status": "False"}]}
    await merge(api, stored["KVTable"] + "/status", {"status": status})
    status = {"readyShards": 3, "tables": 1, "partitions": 4, "conditions": [CONDITION]}
    await merge(api, stored["KVNamespace"] + "/status", {"status": status})

    [table] = await _table(api, KV_TABLES)
    [namespace] = await _table(api, KV_NAMESPACES)

    assert (table["Namespace"], table["Partitions"], table["Serving"], table["Ready"]) == ("tenant", 4, 3, "False")
    assert (namespace["Shards"], namespace["Up"], namespace["Tables"], namespace["Ready"]) == (3, 3, 1, "True")


async def _table(api: Api, resource: Resource) -> list[dict[str, Any]]:
    """What `kubectl get` would show."""
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    table = (await api.ask("GET", resource.path(NAMESPACE), accept=accept)).body
    names = [column["name"] for column in table["columnDefinitions"]]
    return [dict(zip(names, row["cells"], strict=True)) for row in table["rows"]]
