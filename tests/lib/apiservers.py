"""The API server that a test asks: the embedded one, or with `--realapi` a real kube-apiserver.

Fixtures `apiserver` and `access` are imported by conftest.py files. The embedded server is new for each test; the
real one lives as long as the session and is wiped after each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import ssl
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from fencekv.access import Access
from fencekv_sandbox.apiserver import Server, serve
from fencekv_sandbox.controlplane import AssetsMissing, ControlPlane, control_plane

Object = dict[str, Any]
T = TypeVar("T")

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAMESPACES = "/api/v1/namespaces"
KEPT_NAMESPACES = {"default", "kube-system", "kube-public", "kube-node-lease"}
KEPT = {("services", "kubernetes"), ("serviceaccounts", "default")}
WIPED = (
    "/apis/apps/v1/statefulsets",
    "/apis/apps/v1/deployments",
    "/apis/policy/v1/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/apis/coordination.k8s.io/v1/leases",
    "/api/v1/pods",
    "/api/v1/services",
    "/api/v1/configmaps",
    "/api/v1/secrets",
    "/api/v1/serviceaccounts",
    "/api/v1/persistentvolumeclaims",
    "/api/v1/events",
    "/api/v1/nodes",
    "/apis/rbac.authorization.k8s.io/v1/rolebindings",
    "/apis/rbac.authorization.k8s.io/v1/roles",
)
WIPE_SECONDS_MAX = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer, read whole."""

    status: int
    body: Any  # The document, or the text where it is none.
    headers: Any = field(repr=False)

    @property
    def warnings(self) -> list[str]:
        return list(self.headers.getall("Warning", []))

    @property
    def reason(self) -> str:
        return str(self.body.get("reason", "")) if isinstance(self.body, dict) else ""

    @property
    def message(self) -> str:
        return str(self.body.get("message", "")) if isinstance(self.body, dict) else str(self.body)

    @property
    def version(self) -> str:
        return str(self.body["metadata"]["resourceVersion"])


class Background:
    """An event loop in a thread, for what outlives one test's loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RealPlane:
    """The session's control plane and the loop on which it lives."""

    plane: ControlPlane
    background: Background


@dataclass(kw_only=True)
class Api:
    """A running API server and how to talk to it."""

    url: str
    token: str
    kubeconfig: Path
    tls: ssl.SSLContext | None = None
    embedded: Server | None = None  # None: a real one.
    plane: ControlPlane | None = None  # None: the embedded one.
    background: Background | None = None  # The loop on which the control plane lives.
    _session: aiohttp.ClientSession | None = field(default=None, repr=False)
    _names: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    @property
    def real(self) -> bool:
        return self.embedded is None

    @property
    def access(self) -> Access:
        return Access(server=self.url, token=self.token, tls=self.tls)

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self.tls or True)
            headers = {"Authorization": f"Bearer {self.token}", "User-Agent": "conformance/1"}
            self._session = aiohttp.ClientSession(self.url, connector=connector, headers=headers)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: str = "application/json",
        accept: str = "application/json",
        **query: str,
    ) -> Reply:
        """One request as it is."""
        text = body if body is None or isinstance(body, str) else json.dumps(body)
        data = None if text is None else io.BytesIO(text.encode())
        headers = {"Accept": accept} | ({} if data is None else {"Content-Type": content})
        async with self.session.request(method, path, data=data, headers=headers, params=query) as response:
            text = await response.text()
            return Reply(
                status=response.status,
                body=json.loads(text) if text.startswith("{") else text,
                headers=response.headers,
            )

    async def namespace(self) -> str:
        """A new namespace of this test's own."""
        name = f"test-{next(self._names)}-{os.urandom(3).hex()}"
        reply = await self.ask("POST", NAMESPACES, {"metadata": {"name": name}})
        assert reply.status == 201, reply
        await self.add_default_account(name)
        return name

    async def add_default_account(self, namespace: str) -> None:
        """Pods need it; where no controller manager runs, nobody else makes it."""
        account = {"metadata": {"name": "default"}}
        await self.ask("POST", f"{NAMESPACES}/{namespace}/serviceaccounts", account)

    async def define(self, definition: Object) -> None:
        """Create a CustomResourceDefinition and wait until its objects are taken."""
        name = definition["metadata"]["name"]
        reply = await self.ask("POST", CRDS, definition)
        assert reply.status == 201 or reply.reason == "AlreadyExists", reply
        async with asyncio.timeout(WIPE_SECONDS_MAX):
            while not await self._established(name, definition["spec"]):
                await asyncio.sleep(0.05)

    async def _established(self, name: str, spec: Object) -> bool:
        reply = await self.ask("GET", f"{CRDS}/{name}")
        conditions = (reply.body.get("status") or {}).get("conditions") or []
        if not any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            return False
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        return (await self.ask("GET", path)).status == 200

    async def forget_history(self) -> None:
        """Watches and lists from before now find nothing: etcd is compacted, the watch cache begins anew."""
        if self.embedded is not None:
            self.embedded.api.core.store.forget_events()
            return
        assert self.plane is not None
        assert self.background is not None
        await self.plane.compact()
        restart = self.plane.restart_apiserver()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(restart, self.background.loop))

    async def wipe(self) -> None:
        """Delete what tests made but the definitions, so that the next one finds nothing."""
        definitions = (await self.ask("GET", CRDS)).body["items"]
        for one in definitions:
            spec = one["spec"]
            await self._wipe(f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}")
        for path in WIPED:
            await self._wipe(path)
        for one in (await self.ask("GET", NAMESPACES)).body["items"]:
            name = one["metadata"]["name"]
            if name not in KEPT_NAMESPACES:
                await self.ask("DELETE", f"{NAMESPACES}/{name}")
                one["spec"]["finalizers"] = []
                one["metadata"].pop("resourceVersion")
                await self.ask("PUT", f"{NAMESPACES}/{name}/finalize", one)

    async def _wipe(self, path: str) -> None:
        listing = await self.ask("GET", path)
        for one in listing.body.get("items", ()):
            meta = one["metadata"]
            if meta.get("namespace", "default") in {"kube-system", "kube-public", "kube-node-lease"}:
                continue
            if (path.rsplit("/", 1)[-1], meta["name"]) in KEPT:
                continue
            root, _, plural = path.rpartition("/")
            inside = f"namespaces/{meta['namespace']}/" if "namespace" in meta else ""
            where = f"{root}/{inside}{plural}/{meta['name']}"
            if meta.get("finalizers"):
                patch = {"metadata": {"finalizers": None}}
                await self.ask("PATCH", where, patch, content="application/merge-patch+json")
            await self.ask("DELETE", where, {"gracePeriodSeconds": 0})


def wants_real(config: pytest.Config) -> bool:
    return bool(config.getoption("--realapi", default=False))


@pytest.fixture(scope="session")
def real_plane(request: pytest.FixtureRequest) -> Iterator[RealPlane | None]:
    """The session's control plane; None without `--realapi`."""
    if not wants_real(request.config):
        yield None
        return
    background = Background()
    manager = control_plane()
    try:
        plane = background.run(manager.__aenter__())
    except AssetsMissing as error:
        background.close()
        pytest.fail(str(error))
    try:
        yield RealPlane(plane=plane, background=background)
    finally:
        background.run(manager.__aexit__(None, None, None))
        background.close()


@contextlib.asynccontextmanager
async def embedded_api(folder: Path, **options: Any) -> AsyncIterator[Api]:
    """A new embedded server."""
    async with serve(**options) as server:
        path = server.kubeconfig(folder / "kubeconfig")
        api = Api(url=server.url, token="sandbox-admin", kubeconfig=path, embedded=server)
        try:
            yield api
        finally:
            await api.close()


@pytest.fixture
async def apiserver(real_plane: RealPlane | None, tmp_path: Path) -> AsyncIterator[Api]:
    """The API server of this run."""
    if real_plane is None:
        async with embedded_api(tmp_path) as api:
            yield api
        return
    plane = real_plane.plane
    api = Api(
        url=plane.url,
        token=plane.token,
        kubeconfig=plane.kubeconfig(tmp_path / "kubeconfig"),
        tls=plane.ssl_context(),
        plane=plane,
        background=real_plane.background,
    )
    await api.add_default_account("default")
    try:
        yield api
        await api.wipe()
    finally:
        await api.close()


@pytest.fixture
def access(apiserver: Api) -> Access:
    """How the project's own client reaches it."""
    return apiserver.access
