"""A pod runner: StatefulSet controller, scheduler and kubelet of one machine, on any API server.

Invariants:
  * It speaks to the API server as those would: over HTTP alone.
  * One runner a data folder. No process of a pod outlives it, whether it is closed, killed or crashes; what an
    earlier runner left (its own end and its pods' ends may cross) is ended before anything starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from fencekv.access import Access
from fencekv.kube import PODS, Kube

from . import processes
from .addresses import Addresses, many_addresses_answer
from .backoff import Backoff
from .cache import Cache, Key, key_of
from .controller import Controller
from .faults import NotRunning, PodHandle
from .folders import PodFolders, locked
from .kubelet import PodWorker
from .logs import read_log
from .settings import COMMANDS, Api, Shared, Ticker

Object = dict[str, Any]

LEFT_OVER_SECONDS_MAX: Final = 5.0


class PodRunner:
    """Runs the pods of all StatefulSets of an API server while it is open (`async with`).

    `backoff` is a kubelet's (10 s, doubled) unless given; `environment` is set for every container;
    `close_seconds` is what pods get to end by themselves when the runner closes. Open it on a thread that lives as
    long as it does: the kernel ends containers with the thread that started them.
    """

    def __init__(
        self,
        kube: Kube,
        access: Access,
        *,
        data: Path,
        nodes: int = 3,
        relist_seconds: float = 1.0,
        backoff: Backoff | None = None,
        commands: Mapping[str, Sequence[str]] = COMMANDS,
        environment: Mapping[str, str] | None = None,
        single_address: bool | None = None,
        close_seconds: float = 0.0,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube, self._access = kube, access
        self._data = data.resolve()
        self._nodes = nodes
        self._relist_seconds = relist_seconds
        self._backoff = backoff or Backoff()
        self._commands = commands
        self._environment = dict(environment or {})
        self._single = not many_addresses_answer() if single_address is None else single_address
        self._close_seconds = close_seconds
        self._wall = wall
        self._workers: dict[Key, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._done: dict[Key, str] = {}  # UIDs of pods whose life here is over
        self._pods = Cache(kube, PODS, tell=self._pod_changed)
        self._closing = False
        self._task: asyncio.Task[None] | None = None  # None: not open
        self._shared: Shared
        self._controller: Controller
        self._bug: asyncio.Future[None]  # A worker that fails ends the runner.

    async def __aenter__(self) -> PodRunner:
        started = asyncio.Event()
        self._task = asyncio.create_task(self.run(started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            await self._task
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        await self._close_workers()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def run(self, started: asyncio.Event | None = None) -> None:
        """Works until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(locked(self._data / "runner.lock", what="pod runner"))
            await self._end_left_over()
            addresses = Addresses(self._data / "addresses.json", single=self._single)
            stack.callback(addresses.close)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            self._shared = self._share(addresses, session)
            self._controller = Controller(
                self._kube,
                pods=self._pods,
                nodes=self._nodes,
                now=self._shared.now,
                forget_volume=self._forget_volume,
            )
            self._bug = asyncio.get_running_loop().create_future()
            stack.push_async_callback(self._close_workers)
            if started is not None:
                started.set()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pods.run())
                tasks.create_task(self._controller.run())
                tasks.create_task(_await(self._bug))

    def pod(self, name: str, namespace: str = "default") -> PodHandle:
        """A handle on the pod of this name."""

        def find() -> PodWorker:
            found = self._workers.get((namespace, name))
            if found is None:
                raise NotRunning(f"{namespace}/{name} does not run here")
            return found[0]

        return PodHandle(name, find)

    def pods(self, namespace: str = "default") -> list[str]:
        """Names of the pods that run here."""
        return sorted(name for at, name in self._workers if at == namespace)

    def log_path(self, namespace: str, pod: str, *, previous: bool = False) -> Path | None:
        """The log of the pod's current container, or of the one before; None: there is none."""
        folders = PodFolders(data=self._data, namespace=namespace, pod=pod)
        numbers = sorted(int(file.stem) for file in folders.logs.glob("*.log") if file.stem.isdigit())
        place = 2 if previous else 1
        return folders.log(numbers[-place]) if len(numbers) >= place else None

    def logs(
        self,
        namespace: str,
        pod: str,
        *,
        container: str,
        previous: bool = False,
        tail_lines: int | None = None,
        follow: bool = False,
    ) -> AsyncIterator[bytes]:
        """The pod's output, for an API server's `log` subresource; a pod has one `container`."""
        assert container, pod
        path = self.log_path(namespace, pod, previous=previous)

        def grows() -> bool:
            found = self._workers.get((namespace, pod))
            current = found[0].container if found else None
            return current is not None and current.launch.log == path and current.exit_status is None

        return read_log(path, tail_lines=tail_lines, grows=grows if follow else None)

    # What changed

    def _pod_changed(self, kind: str, pod: Object) -> None:
        key = key_of(pod)
        self._reconcile(key)
        self._controller.wake()

    def _reconcile(self, key: Key) -> None:
        pod, running = self._pods.get(key), self._workers.get(key)
        if running is not None:
            worker = running[0]
            worker.update(pod if pod is not None and pod["metadata"]["uid"] == worker.uid else None)
        elif pod is not None and self._is_ours(pod) and not self._closing:
            worker = PodWorker(pod, self._shared)
            task = asyncio.create_task(worker.run(), name=f"pod {key[0]}/{key[1]}")
            self._workers[key] = (worker, task)
            task.add_done_callback(lambda done: self._ended(key, worker, done))

    def _is_ours(self, pod: Object) -> bool:
        metadata = pod["metadata"]
        if (pod["spec"].get("nodeName") or "") not in self._controller.node_names:
            return False
        if self._done.get(key_of(pod)) == metadata["uid"]:
            return False
        phase = (pod.get("status") or {}).get("phase")
        return phase not in {"Succeeded", "Failed"} or bool(metadata.get("deletionTimestamp"))

    def _ended(self, key: Key, worker: PodWorker, task: asyncio.Task[None]) -> None:
        del self._workers[key]
        self._done[key] = worker.uid
        if task.cancelled() or self._closing:
            return
        if error := task.exception():
            if not self._bug.done():
                self._bug.set_exception(error)
            return
        self._reconcile(key)
        self._controller.wake()

    def _forget_volume(self, claim: Key) -> bool:
        namespace, name = claim
        if any(at == namespace and name in worker.claims for (at, _), (worker, _) in self._workers.items()):
            return False
        shutil.rmtree(self._data / "volumes" / namespace / name, ignore_errors=True)
        return True

    # Beginning and end

    def _share(self, addresses: Addresses, session: aiohttp.ClientSession) -> Shared:
        server = urlsplit(self._access.server)
        assert server.hostname is not None
        return Shared(
            kube=self._kube,
            api=Api(
                host=server.hostname,
                port=server.port or (443 if server.scheme == "https" else 80),
                authority=_authorities(self._access.tls),
            ),
            data=self._data,
            ticker=Ticker(self._relist_seconds),
            addresses=addresses,
            backoff=self._backoff,
            commands=self._commands,
            inherited=os.environ,
            environment=self._environment,
            runner=str(self._data),
            probes=session,
            wall=self._wall,
        )

    async def _end_left_over(self) -> None:
        async with asyncio.timeout(LEFT_OVER_SECONDS_MAX):
            while pids := processes.left_over(str(self._data)):
                processes.send(pids, signal.SIGKILL)
                await asyncio.sleep(0.02)

    async def _close_workers(self) -> None:
        """Ends all processes and waits for it."""
        self._closing = True
        tasks = [task for _, task in self._workers.values()]
        for worker, _ in self._workers.values():
            worker.close(grace_seconds=self._close_seconds)
        if tasks:
            # A worker that still speaks to a silent API server is not waited for.
            await asyncio.wait(tasks, timeout=self._close_seconds + 1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _await(future: asyncio.Future[None]) -> None:
    await future


def _authorities(tls: ssl.SSLContext | None) -> str:
    if tls is None:
        return ""
    return "".join(ssl.DER_cert_to_PEM_cert(one) for one in tls.get_ca_certs(binary_form=True))
