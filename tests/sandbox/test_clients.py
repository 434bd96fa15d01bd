"""kopf and the official Kubernetes client, unmodified, on the API server of this run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from apiservers import Api
from conformance.samples import (
    GROUP,
    MERGE,
    WIDGETS,
    config_map,
    create,
    get,
    lease,
    leases,
    maps,
    widget,
    widgets,
)

Object = dict[str, Any]

SECONDS = 20
pytestmark = pytest.mark.slow  # Importing the clients alone takes seconds.


async def until(condition: Any, what: str) -> Any:
    """Wait until an awaited check says something true."""
    try:
        async with asyncio.timeout(SECONDS):
            while not (found := await condition()):
                await asyncio.sleep(0.05)
            return found
    except TimeoutError:
        raise AssertionError(f"not seen within {SECONDS} s: {what}") from None


# kopf


@contextlib.asynccontextmanager
async def kopf_operator(api: Api, registry: Any, settings: Any) -> AsyncIterator[None]:
    import kopf

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> Any:
        return kopf.ConnectionInfo(
            server=api.url,
            token=api.token,
            scheme="Bearer",
            insecure=False,
            ca_path=str(api.plane.ca) if api.plane is not None else None,
        )

    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=settings,
            stop_flag=stop,
            ready_flag=ready,
            clusterwide=True,
            standalone=True,
        )
    )
    try:
        await asyncio.wait_for(ready.wait(), SECONDS)
        yield
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, SECONDS)


@pytest.fixture
def kopf_settings() -> Any:
    import kopf

    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = True
    settings.posting.level = logging.INFO
    settings.watching.server_timeout = 30
    settings.process.ultimate_exiting_timeout = None
    return settings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_kopf_handles_creation_update_and_deletion(apiserver: Api, kopf_settings: Any) -> None:
    import kopf

    namespace = await apiserver.namespace()
    await apiserver.define(WIDGETS)
    registry = kopf.OperatorRegistry()
    seen: list[str] = []

    @kopf.on.create(GROUP, "v1", "widgets", registry=registry, id="made")
    async def made(patch: kopf.Patch, **_: Any) -> Object:
        patch.status["size"] = 1
        return {"by": "kopf"}

    @kopf.on.update(GROUP, "v1", "widgets", registry=registry, id="changed", field="spec.size")
    async def changed(old: Any, new: Any, body: Any, **_: Any) -> None:
        seen.append(f"{old}->{new}")
        kopf.info(body, reason="Resized", message=f"from {old} to {new}")

    @kopf.on.delete(GROUP, "v1", "widgets", registry=registry, id="gone")
    async def gone(name: str, **_: Any) -> None:
        seen.append(f"deleted {name}")

    @kopf.on.event(GROUP, "v1", "widgets", registry=registry, id="any")
    async def happened(event: Any, **_: Any) -> None:
        seen.append(str(event["type"]))

    path = widgets(namespace, "a")
    async with kopf_operator(apiserver, registry, kopf_settings):
        await create(apiserver, widgets(namespace), widget())

        async def made_status() -> bool:
            body = await get(apiserver, path)
            return body.get("status", {}).get("size") == 1 and bool(body["metadata"].get("finalizers"))

        await until(made_status, "the status and finalizer that kopf writes")
        assert (await apiserver.ask("PATCH", path, {"spec": {"size": 5}}, content=MERGE)).status == 200

        async def was_changed() -> bool:
            return "3->5" in seen

        await until(was_changed, "the update handler")

        async def resized_event() -> bool:
            events = (await get(apiserver, f"/api/v1/namespaces/{namespace}/events"))["items"]
            return any(one.get("reason") == "Resized" for one in events)

        await until(resized_event, "the Event that kopf posts")
        await apiserver.ask("DELETE", path)

        async def is_gone() -> bool:
            return (await apiserver.ask("GET", path)).status == 404

        await until(is_gone, "the deletion after kopf's finalizer was removed")
    assert "deleted a" in seen
    assert {"ADDED", "MODIFIED", "DELETED"} & set(seen)


# The official client


@pytest.fixture
async def official(apiserver: Api) -> AsyncIterator[Any]:
    from kubernetes.aio import client, config

    configuration = client.Configuration()
    await config.load_kube_config(str(apiserver.kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api_client:
        yield api_client


async def test_the_official_client_renews_a_lease_by_version(apiserver: Api, official: Any) -> None:
    from kubernetes.aio import client
    from kubernetes.aio.client.exceptions import ApiException

    namespace = await apiserver.namespace()
    coordination = client.CoordinationV1Api(official)
    await create(apiserver, leases(namespace), lease())
    first = await coordination.read_namespaced_lease("a", namespace)
    first.spec.holder_identity = "official"
    second = await coordination.replace_namespaced_lease("a", namespace, first)
    assert second.metadata.resource_version != first.metadata.resource_version
    with pytest.raises(ApiException) as refused:
        await coordination.replace_namespaced_lease("a", namespace, first)
    assert refused.value.status == 409
    assert [one.metadata.name for one in (await coordination.list_namespaced_lease(namespace)).items] == ["a"]


async def test_the_official_client_watches(apiserver: Api, official: Any) -> None:
    from kubernetes.aio import client, watch

    namespace = await apiserver.namespace()
    core = client.CoreV1Api(official)
    await create(apiserver, maps(namespace), config_map("a"))
    seen = []
    async with watch.Watch() as watcher:
        stream = watcher.stream(core.list_namespaced_config_map, namespace, timeout_seconds=20)
        async for event in stream:
            seen.append((event["type"], event["object"].metadata.name))
            if len(seen) == 1:
                await create(apiserver, maps(namespace), config_map("b"))
            elif len(seen) == 2:
                await apiserver.ask("DELETE", maps(namespace, "a"))
            else:
                break
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]


async def test_the_official_dynamic_client_finds_custom_resources(apiserver: Api, official: Any) -> None:
    from kubernetes.aio.dynamic import DynamicClient

    namespace = await apiserver.namespace()
    await apiserver.define(WIDGETS)
    async with await DynamicClient(official) as dynamic:
        resource = await dynamic.resources.get(api_version=f"{GROUP}/v1", kind="Widget")
        made = await resource.create(body=widget(), namespace=namespace)
        assert made.spec.color == "red"
        body = made.to_dict()
        body["spec"]["size"] = 7
        assert (await resource.replace(body=body, namespace=namespace)).spec.size == 7
        patch = {"spec": {"size": 8}}
        patched = await resource.patch(
            body=patch, name="a", namespace=namespace, content_type="application/merge-patch+json"
        )
        assert patched.metadata.generation == 3
        applied = await resource.server_side_apply(
            body=widget(size=9), name="a", namespace=namespace, field_manager="test", force_conflicts=True
        )
        assert applied.spec.size == 9
        assert len((await resource.get(namespace=namespace)).items) == 1
        await resource.delete(name="a", namespace=namespace)
    assert (await apiserver.ask("GET", widgets(namespace, "a"))).status == 404
