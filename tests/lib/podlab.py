"""Helpers of the pod runner's tests: StatefulSets of small Python programs, and waiting for what is seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from fencekv.kube import PODS, STATEFUL_SETS, HttpKube, KubeNotFound
from fencekv_sandbox.pods import NotRunning, PodRunner

Object = dict[str, Any]
T = TypeVar("T")

SLEEP = "import time; time.sleep(600)"

# A supervisor that writes its termination message, starts a child and ends with it.
FAMILY = """
import os, signal, subprocess, sys
open(os.environ["FENCEKV_TERMINATION_LOG"], "w").write("session of " + os.environ["FENCEKV_POD"])
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=STRAY)
asked = []
signal.signal(signal.SIGTERM, lambda *_: (asked.append(1), child.kill()))
print("started", flush=True)
child.wait()
print("asked to end" if asked else "child ended", flush=True)
sys.exit(0 if asked else 7)
"""

# Answers /healthz and /readyz; the latter says no while the file "unready" is in the data folder.
WEB = """
import os, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = os.environ["FENCEKV_DATA"]
        sick = os.path.exists(data + ("/unready" if self.path == "/readyz" else "/dead"))
        self.send_response(503 if sick else 200)
        self.end_headers()
    def log_message(self, *_): pass
address = (os.environ["FENCEKV_POD_IP"], int(os.environ.get("FENCEKV_HTTP_PORT", "7070")))
http.server.HTTPServer(address, Handler).serve_forever()
"""


def stateful_set(
    name: str, program: str, *, replicas: int = 1, parallel: bool = True, grace: int = 5, **container: Any
) -> Object:
    """A StatefulSet whose pods run a Python program on a claim of their own."""
    labels = {"app": name}

    def field(variable: str, path: str) -> Object:
        return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    env = [
        field("FENCEKV_POD", "metadata.name"),
        field("FENCEKV_POD_UID", "metadata.uid"),
        field("FENCEKV_NS", "metadata.namespace"),
        field("FENCEKV_POD_IP", "status.podIP"),
        {"name": "FENCEKV_DATA", "value": "/data"},
        {"name": "GREETING", "value": "hello $(FENCEKV_POD), $$(FENCEKV_POD) $(UNKNOWN)"},
    ]
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": grace,
            "containers": [
                {
                    "name": "main",
                    "image": "none",
                    "command": ["python", "-S", "-c", program],
                    "env": env,
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    **container,
                }
            ],
        },
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "podManagementPolicy": "Parallel" if parallel else "OrderedReady",
            "selector": {"matchLabels": labels},
            "template": template,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        },
    }


class Lab:
    """Short words for what the tests ask of the API server."""

    def __init__(self, kube: HttpKube) -> None:
        self.kube = kube

    async def apply(self, set_: Object) -> Object:
        return await self.kube.create(STATEFUL_SETS, "default", set_)

    async def pod(self, name: str) -> Object | None:
        try:
            return await self.kube.get(PODS, "default", name)
        except KubeNotFound:
            return None

    async def pods(self, app: str) -> list[Object]:
        listing = await self.kube.list(PODS, "default", labels=f"app={app}")
        return sorted(listing.items, key=lambda pod: pod["metadata"]["name"])

    async def running(self, name: str, *, other_than: str = "") -> Object:
        return await eventually(lambda: self._running(name, other_than), what=f"{name} runs")

    async def _running(self, name: str, other_than: str) -> Object | None:
        pod = await self.pod(name)
        if pod is None or pod["metadata"]["uid"] == other_than or not is_true(pod, "Ready"):
            return None
        return pod

    async def scale(self, name: str, replicas: int) -> None:
        await self.kube.patch(STATEFUL_SETS, "default", name, {"spec": {"replicas": replicas}})


async def eventually(look: Callable[[], Awaitable[T | None]], *, what: str, seconds: float = 20) -> T:
    """Looks until there is something to see."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(NotRunning, FileNotFoundError):
                if found := await look():
                    return found
            await asyncio.sleep(0.05)
    raise AssertionError(what)


def is_true(pod: Object, kind: str) -> bool:
    found = pod.get("status", {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in found)


def container_status(pod: Object) -> Object:
    found = pod.get("status", {}).get("containerStatuses") or [{}]
    return found[0]


# What is waited for


async def printed(runner: PodRunner, pod: str, *, empty: bool = False) -> Object | None:
    text = runner.pod(pod).log.read_text()
    if not text.endswith("\n"):
        return None
    assert "Traceback" not in text, text
    found: Object = json.loads(text)
    return {"": ""} if empty else found


async def started(runner: PodRunner, pod: str) -> None:
    async def look() -> bool:
        return "started" in runner.pod(pod).log.read_text()

    await eventually(look, what=f"{pod} started its child")


async def settled(lab: Lab, name: str, *, ready: int) -> Object | None:
    set_ = await lab.kube.get(STATEFUL_SETS, "default", name)
    return set_ if set_.get("status", {}).get("readyReplicas") == ready else None


async def gone(lab: Lab, name: str) -> bool:
    return await lab.pod(name) is None


async def folder_gone(folder: Path) -> bool:
    return not folder.exists()


async def phase_is(lab: Lab, name: str, phase: str) -> bool:
    pod = await lab.pod(name)
    return pod is not None and pod.get("status", {}).get("phase") == phase


async def restarted(lab: Lab, name: str, count: int) -> Object | None:
    pod = await lab.pod(name)
    found = container_status(pod) if pod else {}
    return pod if found.get("restartCount") == count and "running" in found["state"] else None


async def ended_times(lab: Lab, name: str, count: int) -> bool:
    """Whether the container is known to have ended so often."""
    pod = await lab.pod(name)
    found = container_status(pod) if pod else {}
    return found.get("restartCount", 0) + ("terminated" in found.get("state", {})) >= count


async def not_ready(lab: Lab, name: str) -> bool:
    pod = await lab.pod(name)
    return pod is not None and not is_true(pod, "Ready") and "running" in container_status(pod)["state"]


async def waiting_for(lab: Lab, name: str, reason: str) -> Object | None:
    pod = await lab.pod(name)
    state = container_status(pod).get("state", {}) if pod else {}
    return pod if state.get("waiting", {}).get("reason") == reason else None


async def unscheduled(lab: Lab, name: str) -> Object | None:
    pod = await lab.pod(name)
    found = (pod or {}).get("status", {}).get("conditions") or []
    return pod if any(c.get("reason") == "Unschedulable" for c in found) else None


async def in_state(pids: list[int], letter: str) -> bool:
    return all(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == letter for pid in pids)


async def termination_of(lab: Lab, pod: Object) -> Object:
    """How the pod's container ended, as a watcher of its object sees it."""
    version, uid = pod["metadata"]["resourceVersion"], pod["metadata"]["uid"]
    async with asyncio.timeout(20):
        async for event in lab.kube.watch(PODS, "default", resource_version=version):
            if event.object["metadata"].get("uid") == uid:
                ended = container_status(event.object)["state"].get("terminated")
                if ended:
                    return dict(ended)
    raise AssertionError("the watch ended")


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def wait_until_gone(pid: int) -> None:
    for _ in range(500):
        if not alive([pid]):
            return
        signal.sigtimedwait([], 0.02)
    raise AssertionError(f"{pid} still lives")
