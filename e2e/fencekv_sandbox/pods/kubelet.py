"""The life of one pod on a node: its container is started, watched, probed, restarted and ended.

Invariants:
  * A termination is reported only when no process of the container is alive, and on a tick, as a kubelet's.
  * A pod's object is removed (grace 0) only after its end was reported, or could not be for a while.
  * While the worker lives no other worker has the same namespace and name: pods with one name follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from fencekv.kube import PODS, KubeConflict, KubeError, KubeNotFound, Resource, Unclear

from . import environment, probes, processes
from .container import Container, Launch
from .environment import HOST_IP, NotProvided
from .folders import PodFolders, Record
from .reporter import Reporter
from .settings import Shared
from .status import ContainerView, Terminated, pod_status, termination_message

Object = dict[str, Any]

GRACE_SECONDS_DEFAULT: Final = 30.0
REPORT_SECONDS_MAX: Final = 0.5
FINAL_REPORT_SECONDS_MAX: Final = 5.0
RETRY_SECONDS: Final = 1.0
TOKEN_SECONDS: Final = 7 * 24 * 3600

_log = logging.getLogger("fencekv.sandbox.pods")


class PodWorker:
    """Runs one pod, from its first sight to the end of its last process."""

    def __init__(self, pod: Object, shared: Shared) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self.address = shared.addresses.of(self.namespace, self.name)
        self.folders = PodFolders(data=shared.data, namespace=self.namespace, pod=self.name)
        self.container: Container | None = None  # None: no process of this pod is known to be alive
        self.launch: Launch | None = None  # None: nothing was started yet
        self.number: int | None = None  # of the current or last container; None: nothing was started yet
        self.lose_volume_next = False
        self._shared = shared
        self._gone = False
        self._closing_seconds: float | None = None  # None: the runner is not closing
        self._probes: dict[str, probes.Probe] = {}
        self._failed_live = False
        self._woken = asyncio.Event()
        self._start_time = shared.now()
        self._restarts_in_row = 0
        spec = pod["spec"]["containers"][0]
        self._view = ContainerView(
            name=spec["name"], image=spec.get("image") or "", waiting=("ContainerCreating", "")
        )
        self._reporter = Reporter(
            shared.kube, namespace=self.namespace, pod=self.name, uid=self.uid, build=self._status
        )

    @property
    def claims(self) -> set[str]:
        """Claims that the pod uses."""
        return set(environment.claim_volumes(self.pod).values())

    def update(self, pod: Object | None) -> None:
        """The pod's object changed; None: it is gone."""
        if pod is None:
            self._gone = True
        else:
            self.pod = pod
        self._woken.set()

    def close(self, *, grace_seconds: float) -> None:
        """The runner ends: the processes end too, the object stays."""
        self._closing_seconds = grace_seconds
        self._woken.set()

    async def run(self) -> None:
        """Runs the pod to its end. However it ends, no process of it is left."""
        reporting = asyncio.create_task(self._reporter.run())
        try:
            self._take_over()
            while not self._ending():
                await self._one_life()
            await self._finish()
        finally:
            reporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporting
            if self.container is not None:
                await asyncio.shield(self.container.kill())

    # One life

    async def _one_life(self) -> None:
        self._failed_live = False
        try:
            self.launch = launch = await self._prepare()
            self.container = container = Container(launch, on_exit=self._woken.set)
        except (NotProvided, OSError, KubeError, Unclear) as error:
            # A kubelet reports such a container as one that could not be created, and tries again.
            self._set(running_since=None, waiting=("CreateContainerConfigError", str(error)), terminated=None)
            await self._until(self._ending, seconds=RETRY_SECONDS)
            return
        started, loop = self._shared.now(), asyncio.get_running_loop()
        born = loop.time()
        self._keep_record(started)
        self._set(container=launch.container, running_since=started, waiting=None, terminated=None, started=True)
        watching = asyncio.create_task(self._probe())
        try:
            await self._until(self._ending, lambda: container.exit_status is not None, lambda: self._failed_live)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        if container.exit_status is None:
            await self._stop(container)
        await container.ended()
        self.container = None
        if self._closing_seconds is None:
            await self._shared.ticker.next()
        await self._report_end(container, started)
        if not self._ending():
            await self._back_off(loop.time() - born)

    async def _stop(self, container: Container) -> None:
        """SIGTERM to the first process, SIGKILL to all when the grace is over or the object is gone."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if not self._gone:
            container.signal_first(signal.SIGTERM)
        while container.exit_status is None and not self._gone:
            left = began + self._grace() - loop.time()
            if left <= 0:
                break
            await self._until(lambda: container.exit_status is not None, lambda: self._gone, seconds=left)
        if self._gone:
            # A forced deletion reaches a kubelet as late as everything else does.
            await self._shared.ticker.next()
        await container.kill()

    async def _report_end(self, container: Container, started: str) -> None:
        assert self.number is not None
        file = self.folders.termination(self.number)
        message = termination_message(file.read_bytes()) if file.exists() else ""
        ended = Terminated(
            container=container.launch.container,
            exit_status=container.exit_status,
            message=message,
            started_at=started,
            finished_at=self._shared.now(),
        )
        self._set(running_since=None, waiting=None, terminated=ended, ready=False, started=False)
        await self._reporter.flush(seconds_max=REPORT_SECONDS_MAX)

    async def _back_off(self, ran_seconds: float) -> None:
        delay, self._restarts_in_row = self._shared.backoff.after(
            restarts_in_row=self._restarts_in_row, ran_seconds=ran_seconds
        )
        last = self._view.terminated
        restarts = self._view.restarts + 1
        if delay:
            waiting = ("CrashLoopBackOff", f"back-off {delay:g}s restarting container {self._view.name}")
            self._set(waiting=waiting, terminated=None, last=last)
            await self._until(self._ending, seconds=delay)
        self._view = replace(self._view, last=last, restarts=restarts)

    async def _finish(self) -> None:
        """Every process has ended: the object may go."""
        if self._gone or self._closing_seconds is not None:
            return
        if self._view.terminated is None and self._view.last is not None:
            self._set(waiting=None, running_since=None, terminated=self._view.last)
        await self._reporter.flush(seconds_max=FINAL_REPORT_SECONDS_MAX)
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        while not self._gone:
            try:
                await self._shared.kube.delete(PODS, self.namespace, self.name, options=options)
                break
            except (KubeNotFound, KubeConflict):
                break
            except (KubeError, Unclear) as error:
                _log.warning("%s/%s: delete: %s", self.namespace, self.name, error)
                await self._until(lambda: self._gone, seconds=RETRY_SECONDS)

    # Preparing

    async def _prepare(self) -> Launch:
        shared, folders = self._shared, self.folders
        if self.lose_volume_next:
            self.lose_volume_next = False
            for claim in self.claims:
                shutil.rmtree(folders.volume(claim), ignore_errors=True)
        folders.run.mkdir(parents=True, exist_ok=True)
        for claim in self.claims:
            folders.volume(claim).mkdir(parents=True, exist_ok=True)
        await self._write_account()
        self.number = number = folders.next_number()
        folders.termination(number).write_bytes(b"")
        data_claim = environment.data_claim(self.pod)
        data = folders.volume(data_claim) if data_claim else folders.run / "data"
        data.mkdir(parents=True, exist_ok=True)
        self._probes = self._parse_probes()
        overrides = {
            **shared.environment,
            "KUBERNETES_SERVICE_HOST": shared.api.host,
            "KUBERNETES_SERVICE_PORT": str(shared.api.port),
            "FENCEKV_SERVICEACCOUNT": str(folders.service_account),
            "FENCEKV_DATA": str(data),
            "FENCEKV_TERMINATION_LOG": str(folders.termination(number)),
            "FENCEKV_SANDBOX": "1",
            "HOME": str(folders.run),
            processes.RUNNER_MARK: shared.runner,
            **environment.port_overrides(self.address),
        }
        variables = environment.variables(
            self.pod, address=self.address, overrides=overrides, inherited=shared.inherited
        )
        return Launch(
            container=f"process://{self.uid}-{number}",
            command=environment.command_of(self.pod, commands=shared.commands, environment=variables),
            environment=variables,
            folder=folders.run,
            log=folders.log(number),
        )

    async def _write_account(self) -> None:
        try:
            token = await self._ask_token()
        except (KubeError, Unclear):
            if self.folders.has_account():
                return  # the one from before still stands
            raise
        self.folders.write_account(token=token, authority=self._shared.api.authority)

    async def _ask_token(self) -> str:
        account = self.pod["spec"].get("serviceAccountName") or "default"
        bound = {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS, "boundObjectRef": bound},
        }
        at = Resource("", "v1", f"serviceaccounts/{account}/token", "TokenRequest")
        answer = await self._shared.kube.create(at, self.namespace, request)
        return str(answer["status"]["token"])

    def _take_over(self) -> None:
        """What an earlier runner left of this very pod: its container has ended, and nobody saw how."""
        record = self.folders.kept()
        if record is None or record.uid != self.uid:
            self.folders.clear()
            return
        file = self.folders.termination(record.number)
        last = Terminated(
            container=record.container,
            exit_status=None,
            message=termination_message(file.read_bytes()) if file.exists() else "",
            started_at=record.started_at,
            finished_at=self._shared.now(),
        )
        self._view = replace(self._view, last=last, restarts=record.restarts + 1)

    def _keep_record(self, started: str) -> None:
        assert self.launch is not None
        assert self.number is not None
        record = Record(
            uid=self.uid,
            container=self.launch.container,
            number=self.number,
            restarts=self._view.restarts,
            started_at=started,
        )
        self.folders.keep(record)

    # Probing

    def _parse_probes(self) -> dict[str, probes.Probe]:
        container = environment.single_container(self.pod)
        return {
            kind: probes.parse(self.pod, container[kind], address=self.address)
            for kind in ("startupProbe", "readinessProbe", "livenessProbe")
            if container.get(kind)
        }

    async def _probe(self) -> None:
        session = self._shared.probes
        if startup := self._probes.get("startupProbe"):
            self._set(started=False)
            await probes.follow(startup, session, changed=self._live_changed, once=True, hurry=True)
            self._set(started=True)
        async with asyncio.TaskGroup() as tasks:
            if ready := self._probes.get("readinessProbe"):
                tasks.create_task(probes.follow(ready, session, changed=self._ready_changed, hurry=True))
            else:
                self._set(ready=True)
            if live := self._probes.get("livenessProbe"):
                tasks.create_task(probes.follow(live, session, changed=self._live_changed))

    def _ready_changed(self, good: bool) -> None:
        self._set(ready=good)

    def _live_changed(self, good: bool) -> None:
        if not good:
            _log.info("%s/%s: the container does not live: it is restarted", self.namespace, self.name)
            self._failed_live = True
            self._woken.set()

    # Small things

    def _set(self, **changes: Any) -> None:
        self._view = replace(self._view, **changes)
        self._reporter.ask()

    def _status(self) -> Object:
        return pod_status(
            self.pod,
            self._view,
            ip=self.address.ip,
            host_ip=HOST_IP,
            start_time=self._start_time,
            now=self._shared.now(),
        )

    def _ending(self) -> bool:
        deleted = bool(self.pod["metadata"].get("deletionTimestamp"))
        return deleted or self._gone or self._closing_seconds is not None

    def _grace(self) -> float:
        if self._closing_seconds is not None:
            return self._closing_seconds
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        given = metadata.get("deletionGracePeriodSeconds")
        if given is None:
            given = spec.get("terminationGracePeriodSeconds")
        return GRACE_SECONDS_DEFAULT if given is None else float(given)

    async def _until(self, *conditions: Callable[[], bool], seconds: float | None = None) -> None:
        """Waits until one of the conditions holds, or for so long; each change of theirs wakes it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not any(condition() for condition in conditions):
                    self._woken.clear()
                    await self._woken.wait()
