"""Writes a pod's status to the API server, beside and never in the way of what runs the pod.

Invariants:
  * The last status given wins; earlier ones may be skipped while the API server is slow or away.
  * A status is written only to the very pod that it is of: the UID is a precondition.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from fencekv.kube import PODS, Kube, KubeConflict, KubeError, KubeNotFound, Unclear

Object = dict[str, Any]

PAUSE_SECONDS: Final = 0.25

_log = logging.getLogger("fencekv.sandbox.pods")


class Reporter:
    """Writes what `build` gives, each time that it is asked to."""

    def __init__(self, kube: Kube, *, namespace: str, pod: str, uid: str, build: Callable[[], Object]) -> None:
        self._kube = kube
        self._namespace, self._pod, self._uid = namespace, pod, uid
        self._build = build
        self._asked = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._troubled = False

    def ask(self) -> None:
        """The status changed."""
        self._asked.set()
        self._idle.clear()

    async def flush(self, *, seconds_max: float) -> None:
        """Waits until the last status was written, or for so long."""
        try:
            async with asyncio.timeout(seconds_max):
                await self._idle.wait()
        except TimeoutError:
            _log.debug("%s/%s: status not written yet", self._namespace, self._pod)

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if not await self._write():
                await asyncio.sleep(PAUSE_SECONDS)
                self._asked.set()
            elif not self._asked.is_set():
                self._idle.set()

    async def _write(self) -> bool:
        patch = {"metadata": {"uid": self._uid}, "status": self._build()}
        try:
            await self._kube.patch(PODS, self._namespace, self._pod, patch, subresource="status")
        except KubeNotFound:
            return True  # the pod is gone, and nobody asks for its status any more
        except KubeConflict as error:
            # Another pod has the name now; any other conflict is one of the moment.
            return "uid" in str(error).lower()
        except (KubeError, Unclear) as error:
            if not self._troubled:
                _log.warning("%s/%s: status: %s", self._namespace, self._pod, error)
            self._troubled = True
            return False
        self._troubled = False
        return True
