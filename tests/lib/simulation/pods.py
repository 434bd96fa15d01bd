"""Pods of a simulation: supervisor and shard as two processes, and a kubelet that restarts and reports.

Invariants:
  * A shard dies with its supervisor; a supervisor spawns again only after it released the session before.
  * The kubelet reports a container terminated only when both have ended, with the message that stood in the
    termination file by then: the last session.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Final

from fencekv import leases
from fencekv.kube import LEASES, PODS, KubeError, KubeNotFound, Unclear
from fencekv.leases import Session, SessionLease
from simulation.kube import ApiHost
from simulation.loop import Process, SimulationLoop

RELIST_SECONDS: Final = 1.0
RESPAWN_SECONDS: Final = 0.05
RESTART_SECONDS_MAX: Final = 3.0
RELEASE_ATTEMPTS: Final = 30
RELEASE_SECONDS: Final = 1.0

StartShard = Callable[[Process, Session], None]


class Pod:
    """One pod of the StatefulSet, over all its containers and incarnations."""

    def __init__(
        self, *, loop: SimulationLoop, api: ApiHost, namespace: str, name: str, start_shard: StartShard
    ) -> None:
        self.loop, self.api, self.namespace, self.name = loop, api, namespace, name
        self.uid = ""
        self.message = ""  # of the termination file
        self.supervisor: Process | None = None  # None: the container is not running.
        self.shard: Process | None = None  # None: not spawned, or ended.
        self.reported = True  # whether the kubelet can tell the API server what happens
        self._start_shard = start_shard
        self._chance: random.Random = loop.rng(f"pod-{name}")
        self._containers = 0
        self._restarts = True
        self._stopped = False

    # What the world does to it

    def create(self) -> None:
        """Makes the pod object, with a new UID, and starts its container."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": dict(self._labels())},
            "spec": {"containers": [{"name": "shard", "image": "shard"}]},
        }
        with contextlib.suppress(KubeNotFound):  # a restored API server may show one of long ago
            self._delete_object()
        made = self.api.ask("POST", PODS.path(self.namespace), body=body)
        self.uid = made["metadata"]["uid"]
        self._start_container()

    def crash_shard(self) -> None:
        """kill -9 of the shard's process; its supervisor lives."""
        if self.shard is not None:
            self.loop.trace(f"kill {self.shard.name}")
            self.shard.crash()

    def crash_container(self, *, reported: bool) -> None:
        """kill -9 of both. `reported`: whether the kubelet says so now, or only after the restart."""
        if self.supervisor is not None:
            self.loop.trace(f"kill {self.supervisor.name} reported={reported}")
            self.reported = reported
            self.supervisor.crash()

    def replace(self) -> None:
        """Force deletion: the object goes at once, the processes a moment later; a new pod of that name comes."""
        if not self._restarts:
            return  # that is under way already
        self.loop.trace(f"delete pod {self.name}")
        with contextlib.suppress(KubeNotFound):
            self._delete_object()
        self._restarts = False
        self.loop.call_outside(self._chance.random() * RELIST_SECONDS, self._end_and_recreate)

    def check_object(self) -> None:
        """What a kubelet does after its pod's object changed under it: no object, or another UID, ends the pod."""
        try:
            found = self.api.ask("GET", PODS.path(self.namespace, self.name))["metadata"]["uid"]
        except KubeNotFound:
            found = ""
        if found == self.uid or not self._restarts:
            return
        if found:
            self.replace()
        else:
            self._restarts = False
            self._end_and_recreate()

    def processes(self) -> list[Process]:
        """What of it runs now."""
        return [process for process in (self.supervisor, self.shard) if process is not None and process.alive]

    def stop(self) -> None:
        """Ends it for good."""
        self._restarts, self._stopped = False, True
        if self.supervisor is not None:
            self.supervisor.crash()

    # Kubelet

    def _end_and_recreate(self) -> None:
        if self.supervisor is not None:
            self.supervisor.crash()
        self.loop.call_outside(0.1 + self._chance.random(), self._recreate)

    def _recreate(self) -> None:
        if self._stopped:
            return
        self._restarts, self.reported = True, True
        self.create()

    def _start_container(self) -> None:
        self._containers += 1
        supervisor = self.loop.process(f"{self.name}.{self._containers}", host=self.name)
        self.supervisor = supervisor
        supervisor.at_exit.append(lambda status: self._container_ended(supervisor, status))
        supervisor.spawn(self._supervise(supervisor))

    def _container_ended(self, supervisor: Process, status: int) -> None:
        if self.shard is not None:
            self.shard.crash()
        self.supervisor = None
        if not self._restarts:
            return
        terminated = {"exitCode": status, "reason": "Error", "message": self.message}
        relisted = self._chance.random() * RELIST_SECONDS
        if self.reported:
            self.loop.call_outside(relisted, self._report, self.uid, {"terminated": terminated}, {})
        wait = relisted + self._chance.random() * RESTART_SECONDS_MAX
        self.loop.call_outside(wait, self._restart, self.uid, terminated)

    def _restart(self, uid: str, terminated: dict[str, Any]) -> None:
        if uid != self.uid or not self._restarts:
            return
        # The kubelet never reports a restart without the termination before it; a cut-off one reports nothing.
        if self.reported:
            self._report(uid, {"running": {}}, {"terminated": terminated})
        else:
            self.loop.call_outside(RELIST_SECONDS, self._report, uid, {"running": {}}, {"terminated": terminated})
        self.reported = True
        self._start_container()

    def _report(self, uid: str, state: dict[str, Any], last: dict[str, Any]) -> None:
        if uid != self.uid or not self._restarts:
            return
        container = {"name": "shard", "restartCount": self._containers - 1, "ready": "running" in state}
        container |= {"image": "shard", "imageID": "", "state": state, "lastState": last}
        status = {"status": {"phase": "Running", "containerStatuses": [container]}}
        path = PODS.path(self.namespace, self.name, "status")
        with contextlib.suppress(KubeNotFound):  # a restored API server may have forgotten it
            self.api.ask("PATCH", path, body=status, content="application/merge-patch+json")

    def _delete_object(self) -> None:
        self.api.ask("DELETE", PODS.path(self.namespace, self.name), body={"gracePeriodSeconds": 0})

    def _labels(self) -> dict[str, str]:
        kvns = self.name.rpartition("-")[0]
        return {leases.LABEL_NAMESPACE: kvns, leases.LABEL_KIND: leases.KIND_SHARD}

    # Supervisor

    async def _supervise(self, supervisor: Process) -> None:
        number = 0
        while True:
            number += 1
            session = Session(self.name, self.uid, f"{self._chance.getrandbits(64):016x}")
            self.message = str(session)
            shard = self.loop.process(f"{supervisor.name}.{number}", host=self.name)
            self.shard = shard
            ended: asyncio.Future[int] = self.loop.create_future()
            shard.at_exit.append(lambda status, ended=ended: _tell(ended, status))  # type: ignore[misc]
            self._start_shard(shard, session)
            status = await ended
            self.shard = None
            self.loop.trace(f"shard ended {session} {status}")
            if status == 0:
                raise SystemExit(0)
            if not await self._release(supervisor, session):
                raise SystemExit(71)
            await asyncio.sleep(RESPAWN_SECONDS)

    async def _release(self, supervisor: Process, session: Session) -> bool:
        kube = self.api.kube(supervisor)
        name = leases.session_lease_name(self.name)
        for _ in range(RELEASE_ATTEMPTS):
            try:
                lease = await kube.get(LEASES, self.namespace, name, timeout=RELEASE_SECONDS)
                seen = SessionLease.parse(lease)
                if seen.over(session):
                    return True
                if seen.session != session:
                    return False
                body = leases.released_session(lease, session)
                await kube.replace(LEASES, self.namespace, body, timeout=RELEASE_SECONDS)
                return True
            except KubeNotFound:
                return False
            except (Unclear, KubeError):
                await asyncio.sleep(0.2)
        return False


def _tell(ended: asyncio.Future[int], status: int) -> None:
    if not ended.done():
        ended.set_result(status)
