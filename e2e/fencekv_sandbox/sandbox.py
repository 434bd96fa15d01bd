"""A whole FenceKV on this machine: API server, operators as processes, shard pods as processes.

    async with Sandbox(data=folder) as sandbox:
        await sandbox.apply(assets.samples())
        await sandbox.wait_ready("orders")

The API server is the embedded one, or that of `kubeconfig`; nothing else differs.

Invariants:
  * Everything speaks to everything as in a cluster: over HTTP, with the pods' own credentials.
  * When it is closed, or this process dies, no process is left. What `data` holds is enough to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

from fencekv import leases
from fencekv.access import from_kubeconfig
from fencekv.client import FenceKV
from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, KV_TABLES, LEASES, HttpKube, KubeNotFound, Resource
from fencekv.leases import PartitionLease, Session, SessionLease
from fencekv.partitioning import parse_partitioning

from . import applying, assets
from .apiserver import Server, serve
from .operators import OperatorProcess
from .pods import Backoff, PodHandle, PodRunner
from .pods.folders import locked

Object = dict[str, Any]

USER_AGENT: Final = "fencekv-sandbox"
LOOK_SECONDS: Final = 0.05
REPORT_SECONDS_MAX: Final = 5.0
PORT_FILE: Final = "port"


class NotReady(Exception):
    """What was waited for did not come; the message says how things stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who owns a partition."""

    pod: str
    session: Session
    epoch: int


class Sandbox:
    """Open it with `async with`. `kubeconfig` None: with the embedded API server, on `port` (0: as last time).

    `shard_environment` is set for every shard, `operator_environment` for every operator; `operator_kubeconfig` is
    what operators ask with (None: with `kubeconfig`, as everybody else here).
    """

    def __init__(
        self,
        *,
        data: Path,
        kubeconfig: Path | None = None,
        operators: int = 1,
        namespace: str = "default",
        port: int = 0,
        nodes: int = 3,
        relist_seconds: float = 1.0,
        backoff: Backoff | None = None,
        close_seconds: float = 0.0,
        single_address: bool | None = None,
        shard_environment: Mapping[str, str] | None = None,
        operator_environment: Mapping[str, str] | None = None,
        operator_kubeconfig: Path | None = None,
    ) -> None:
        self.data = data.resolve()
        self.namespace = namespace
        self.kubeconfig = kubeconfig or self.data / "kubeconfig"
        self._operator_kubeconfig = operator_kubeconfig or self.kubeconfig
        self.operators: list[OperatorProcess] = []
        self.server: Server | None = None  # None: the API server is somebody else's, or the sandbox is not open
        self.kube: HttpKube
        self.runner: PodRunner
        self._embedded = kubeconfig is None
        self._operators_wanted = operators
        self._operator_environment = dict(operator_environment or {})
        self._port = port
        self._stack = contextlib.AsyncExitStack()
        self._http: aiohttp.ClientSession
        self._runner_options: dict[str, Any] = {
            "nodes": nodes,
            "relist_seconds": relist_seconds,
            "backoff": backoff,
            "close_seconds": close_seconds,
            "single_address": single_address,
            # Pods may leave compiled modules behind: a second start is a second faster.
            "environment": {"PYTHONDONTWRITEBYTECODE": "", **(shard_environment or {})},
        }

    # Life

    async def __aenter__(self) -> Sandbox:
        self.data.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(locked(self.data / "sandbox.lock", what="sandbox"))
            if self._embedded:
                server = await stack.enter_async_context(self._serve())
                self.server = server
                server.kubeconfig(self.kubeconfig, namespace=self.namespace)
            access = from_kubeconfig(self.kubeconfig)
            self.kube = await stack.enter_async_context(HttpKube(access, user_agent=USER_AGENT))
            self._http = await stack.enter_async_context(aiohttp.ClientSession())
            await applying.apply_definitions(self.kube, assets.crds())
            for number in range(self._operators_wanted):
                self.start_operator(number)
            stack.push_async_callback(self._stop_operators)
            self.runner = PodRunner(self.kube, access, data=self.data, **self._runner_options)
            await stack.enter_async_context(self.runner)
            # Without operators first: nobody then grants what shards that end give back.
            stack.push_async_callback(self._stop_operators)
            if self.server is not None:
                self.server.pod_logs = self.runner.logs
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def start_operator(self, number: int) -> OperatorProcess:
        """Starts the operator of this number, a new one or one that ended."""
        while len(self.operators) <= number:
            self.operators.append(
                OperatorProcess(
                    number=len(self.operators),
                    kubeconfig=self._operator_kubeconfig,
                    data=self.data,
                    environment=self._operator_environment,
                )
            )
        self.operators[number].start()
        return self.operators[number]

    async def _stop_operators(self) -> None:
        await asyncio.gather(*(operator.stop() for operator in self.operators))

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncIterator[Server]:
        file = self.data / PORT_FILE
        remembered = int(file.read_text()) if file.exists() else 0
        async with contextlib.AsyncExitStack() as stack:
            try:
                server = await stack.enter_async_context(serve(data=self.data, port=self._port or remembered))
            except OSError:
                if self._port:
                    raise
                # Somebody else took last time's port in the meantime.
                server = await stack.enter_async_context(serve(data=self.data, port=0))
            file.write_text(str(server.port))
            yield server

    # Objects

    async def apply(self, what: str | Path | Object | Iterable[Object]) -> list[Object]:
        """Creates or updates objects: YAML text, a file or folder, one object or several."""
        if isinstance(what, str):
            objects: Iterable[Object] = assets.parse(what)
        elif isinstance(what, Path):
            objects = assets.load(what)
        else:
            objects = [what] if isinstance(what, dict) else what
        return await applying.apply(self.kube, objects, namespace=self.namespace)

    async def wait_ready(self, table: str, *, seconds: float = 60.0) -> Object:
        """Waits until a table is Ready as it is specified now, and its owners themselves say that they serve.

        After a restart the status may be of the time before: it is the owners' word that counts then.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await self._wait_ready(KV_TABLES, table, seconds)
        while left := await self.not_serving(table):
            if loop.time() - began > seconds:
                raise NotReady(f"KVTable {table}: after {seconds:g} s nobody serves {', '.join(left)}")
            await asyncio.sleep(LOOK_SECONDS)
        return found

    async def not_serving(self, table: str) -> list[str]:
        """The table's partitions whose owner by the Lease does not say that it serves them."""
        owners, serving = {}, set()
        for partition in await self.partitions(table):
            owners[partition["metadata"]["name"]] = await self.owner_of(partition["metadata"]["name"])
        for pod in {owner.pod for owner in owners.values() if owner is not None}:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                found = await self.report(pod)
                serving |= {
                    (found["session"], replica["partition"])
                    for replica in found["replicas"]
                    if replica["role"] == "owner" and replica["serving"]
                }
        return [
            name for name, owner in owners.items() if owner is None or (str(owner.session), name) not in serving
        ]

    async def wait_namespace_ready(self, name: str, *, seconds: float = 60.0) -> Object:
        """Waits until a KVNamespace is Ready as it is specified now."""
        return await self._wait_ready(KV_NAMESPACES, name, seconds)

    async def partitions(self, table: str) -> list[Object]:
        """The table's KVPartitions in the order of their index."""
        labels = f"{leases.LABEL_TABLE}={table}"
        found = (await self.kube.list(KV_PARTITIONS, self.namespace, labels=labels)).items
        return sorted(found, key=lambda partition: int(partition["spec"]["index"]))

    async def partition_of(self, table: str, key: str) -> str:
        """Name of the partition that a key lies in."""
        spec = (await self.kube.get(KV_TABLES, self.namespace, table))["spec"]
        return f"{table}-{parse_partitioning(spec['partitioning']).partition_of(key)}"

    # Ownership

    async def partition_lease(self, partition: str) -> PartitionLease:
        """The ownership record of a partition."""
        name = leases.partition_lease_name(partition)
        return PartitionLease.parse(await self.kube.get(LEASES, self.namespace, name))

    async def session_lease(self, pod: str) -> SessionLease:
        """The session Lease of a pod."""
        name = leases.session_lease_name(pod)
        return SessionLease.parse(await self.kube.get(LEASES, self.namespace, name))

    async def owner_of(self, partition: str) -> Owner | None:
        """Who owns a partition by its Lease; None: it was never granted."""
        lease = await self.partition_lease(partition)
        if lease.session is None:
            return None
        return Owner(pod=lease.session.pod, session=lease.session, epoch=lease.epoch)

    async def wait_owner(self, partition: str, *, epoch_min: int, seconds: float = 30.0) -> Owner:
        """Waits for an owner with at least this epoch."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    owner = await self.owner_of(partition)
                    if owner is not None and owner.epoch >= epoch_min:
                        return owner
                    await asyncio.sleep(LOOK_SECONDS)
        raise NotReady(f"{partition}: no owner with epoch {epoch_min} or more within {seconds} s")

    async def kill_owner(self, partition: str, what: Literal["child", "supervisor", "all"] = "child") -> Owner:
        """SIGKILL to the shard process that owns a partition, to its supervisor, or to both."""
        owner = await self.owner_of(partition)
        assert owner is not None, f"{partition} was never granted"
        self.pod(owner.pod).kill(what)
        return owner

    def pod(self, name: str) -> PodHandle:
        """A handle on a shard pod, for faults."""
        return self.runner.pod(name, self.namespace)

    async def report(self, pod: str) -> Object:
        """What a shard reports of its replicas."""
        address = (await self.session_lease(pod)).http
        timeout = aiohttp.ClientTimeout(total=REPORT_SECONDS_MAX)
        async with self._http.get(f"http://{address}/peer/v1/report", timeout=timeout) as answer:
            answer.raise_for_status()
            found: Object = await answer.json()
            return found

    def client(self, kvns: str = "sample", **options: Any) -> FenceKV:
        """A client of a KVNamespace, to be opened with `async with`."""
        return FenceKV.connect(
            namespace=kvns, kubeconfig=str(self.kubeconfig), kube_namespace=self.namespace, **options
        )

    async def _wait_ready(self, resource: Resource, name: str, seconds: float) -> Object:
        found: Object = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(KubeNotFound):
                        found = await self.kube.get(resource, self.namespace, name)
                        if is_ready(found):
                            return found
                    self._check_operators()
                    await asyncio.sleep(LOOK_SECONDS)
        told = (found.get("status") or {}).get("conditions") or "no conditions yet"
        raise NotReady(f"{resource.kind} {name} is not Ready after {seconds:g} s: {told}")

    def _check_operators(self) -> None:
        if self.operators and all(operator.exit_status is not None for operator in self.operators):
            last = self.operators[-1]
            lines = last.log.read_text(errors="replace").splitlines()[-15:]
            raise NotReady(f"the operator ended with status {last.exit_status}:\n" + "\n".join(lines))


def is_ready(obj: Object) -> bool:
    """Whether the object's condition Ready is true for its current generation."""
    status = obj.get("status") or {}
    if status.get("observedGeneration") != obj["metadata"].get("generation"):
        return False
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
