"""Helpers of the pod runner's tests: StatefulSets of small Python programs, and waiting for what is seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fencekv.kube import PODS, STATEFUL_SETS, HttpKube, KubeNotFound
from fencekv_sandbox.pods import NotRunning

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
