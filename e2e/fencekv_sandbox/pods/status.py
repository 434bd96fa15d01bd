"""The status of a pod as a kubelet writes it. Pure.

Invariants:
  * `terminated.message` is the whole content of that very instance's termination message file.
  * A condition's `lastTransitionTime` changes exactly when its status does.
  * Conditions of somebody else's making are kept.
"""

from __future__ import annotations

import datetime
import signal
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]

POD_CONDITIONS: Final = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
MESSAGE_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminated:
    """How an instance of a container ended."""

    container: str
    exit_status: int | None  # As of a process, negative for a signal; None: nobody saw it end.
    message: str
    started_at: str
    finished_at: str

    def as_object(self) -> Object:
        """As it stands in a container's status."""
        found: Object = {
            "containerID": self.container,
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
        }
        if self.exit_status is None:
            found.update(exitCode=255, reason="Unknown")
        elif self.exit_status < 0:
            number = signal.Signals(-self.exit_status)
            found.update(exitCode=128 + number, signal=int(number), reason="Error")
        else:
            found.update(exitCode=self.exit_status, reason="Error" if self.exit_status else "Completed")
        return {**found, "message": self.message} if self.message else found


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """The container now. Exactly one of `running_since`, `waiting` and `terminated` says what it does."""

    name: str
    image: str
    container: str = ""  # id of the current instance, or of the last one
    restarts: int = 0
    running_since: str | None = None  # None: it is not running
    waiting: tuple[str, str] | None = None  # reason and message; None: it is not waiting
    terminated: Terminated | None = None  # None: it has not ended, or a later instance was started
    last: Terminated | None = None  # None: this is the first instance
    started: bool = False
    ready: bool = False


def pod_status(pod: Object, view: ContainerView, *, ip: str, host_ip: str, start_time: str, now: str) -> Object:
    """The whole status of `pod`, which is about to run or runs on our node."""
    ended = view.terminated is not None and bool(pod["metadata"].get("deletionTimestamp"))
    phase = "Pending"
    if ended and view.terminated is not None:
        phase = "Succeeded" if view.terminated.exit_status == 0 else "Failed"
    elif view.running_since or view.terminated or view.last:
        phase = "Running"
    reason = {} if view.ready else {"reason": "ContainersNotReady", "message": f"not ready: {view.name}"}
    wanted: dict[str, Object] = {
        "PodScheduled": {"status": "True"},
        "Initialized": {"status": "True"},
        "ContainersReady": {"status": str(view.ready), **reason},
        "Ready": {"status": str(view.ready), **reason},
    }
    return {
        "phase": phase,
        "conditions": conditions(pod, wanted, now=now),
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": start_time,
        "containerStatuses": [_container(view)],
    }


def unschedulable(pod: Object, message: str, *, now: str) -> Object:
    """The status of a pod that no node takes."""
    wanted = {"PodScheduled": {"status": "False", "reason": "Unschedulable", "message": message}}
    return {"phase": "Pending", "conditions": conditions(pod, wanted, now=now)}


def conditions(pod: Object, wanted: dict[str, Object], *, now: str) -> list[Object]:
    """The pod's conditions with those `wanted`."""
    before = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or []}
    found = [condition for kind, condition in before.items() if kind not in POD_CONDITIONS]
    for kind, condition in wanted.items():
        old = before.get(kind) or {}
        same = old.get("status") == condition["status"]
        since = old.get("lastTransitionTime") if same else None
        found.append({"type": kind, **condition, "lastTransitionTime": since or now})
    return found


def timestamp(moment: datetime.datetime) -> str:
    """As Kubernetes writes times: whole seconds, UTC."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def termination_message(content: bytes) -> str:
    """What a kubelet reports of a termination message file."""
    return content[:MESSAGE_BYTES_MAX].decode(errors="replace")


def is_ready(pod: Object) -> bool:
    """Whether the pod's condition Ready is true."""
    found = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in found)


def _container(view: ContainerView) -> Object:
    states = (view.running_since, view.waiting, view.terminated)
    assert sum(state is not None for state in states) == 1, view
    if view.running_since is not None:
        state: Object = {"running": {"startedAt": view.running_since}}
    elif view.waiting is not None:
        reason, message = view.waiting
        state = {"waiting": {"reason": reason, "message": message}}
    else:
        assert view.terminated is not None
        state = {"terminated": view.terminated.as_object()}
    return {
        "name": view.name,
        "image": view.image,
        "imageID": "",
        **({"containerID": view.container} if view.container else {}),
        "restartCount": view.restarts,
        "state": state,
        "lastState": {"terminated": view.last.as_object()} if view.last else {},
        "started": view.started,
        "ready": view.ready,
    }
