"""PID 1 of a shard's container: one session a process, and word to the operator when a process has ended.

For each process it makes a nonce, writes the session to the termination message before that process can write any
Lease, spawns it, waits for its end, and releases the session. It has seen the process end, so its word is proof;
failover after a crash of the process waits for nothing else. Kept to the standard library: it is small, and there
is little in it that could fail.

Invariants:
  * A process is spawned only after the release of its predecessor succeeded; otherwise the supervisor exits.
  * The child dies with the supervisor: it is alone in its container's PID namespace, or is told by the kernel.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from fencekv.access import in_cluster
from fencekv.leases import Session, SessionLease, released_session, session_lease_name

logger = logging.getLogger(__name__)

RELEASE_ATTEMPTS: Final = 40
RELEASE_PAUSE_SECONDS: Final = 0.25
REQUEST_SECONDS: Final = 2.0
STATUS_DRAINED: Final = 0
STATUS_NOT_RELEASED: Final = 71
STATUS_NOT_PID_1: Final = 72
PR_SET_PDEATHSIG: Final = 1
# LMDB keeps 2 MiB lists that it hardly touches: mapped, they cost nothing; from the heap they become resident
# (50 environments: 100 MB against 2 MB).
MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Api(Protocol):
    """The two requests that a supervisor makes."""

    def get(self, name: str) -> tuple[int, dict[str, Any]]:
        """Reads a Lease: HTTP status and body. Raises OSError."""
        ...

    def put(self, lease: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Replaces a Lease by CAS: HTTP status and body. Raises OSError."""
        ...


class NotReleased(Exception):
    """The session could not be released: no successor may be spawned here."""


def release(api: Api, session: Session, *, pause: Callable[[], None]) -> None:
    """Says on the session Lease that `session` is over.

    Raises:
        NotReleased: the Lease is gone or another session's, or the API server does not answer.
    """
    for _ in range(RELEASE_ATTEMPTS):
        try:
            status, lease = api.get(session_lease_name(session.pod))
            if status == 404:
                raise NotReleased("the session Lease is gone")
            if status == 200:
                seen = SessionLease.parse(lease)
                if seen.over(session):
                    return
                if seen.session != session:
                    raise NotReleased(f"the Lease is held by {seen.session}")
                status, _ = api.put(released_session(lease, session))
                if status == 200:
                    return
            logger.warning("session not released yet: status %d", status)
        except (OSError, http.client.HTTPException, ValueError) as error:
            logger.warning("session not released yet: %s", error)
        pause()
    raise NotReleased("the API server does not answer")


class LeaseApi:
    """`Api` over HTTP, one connection a request."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._access = in_cluster(environment)

    def get(self, name: str) -> tuple[int, dict[str, Any]]:
        """Reads a Lease."""
        return self._request("GET", name, None)

    def put(self, lease: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Replaces a Lease."""
        return self._request("PUT", lease["metadata"]["name"], json.dumps(lease))

    def _request(self, method: str, name: str, body: str | None) -> tuple[int, dict[str, Any]]:
        access = self._access
        url = urlsplit(access.server)
        host, port = str(url.hostname), url.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=REQUEST_SECONDS, context=access.tls)
            if access.tls
            else http.client.HTTPConnection(host, port, timeout=REQUEST_SECONDS)
        )
        token = Path(access.token_file).read_text().strip()
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "User-Agent": "fencekv-supervisor",
        }
        path = f"/apis/coordination.k8s.io/v1/namespaces/{access.namespace}/leases/{name}"
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


class Supervisor:
    """Spawns `serve` processes, one after another."""

    def __init__(
        self,
        *,
        api: Api,
        environment: Mapping[str, str],
        new_nonce: Callable[[], str],
        pause: Callable[[], None],
    ) -> None:
        self._api, self._environment = api, environment
        self._new_nonce, self._pause = new_nonce, pause
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        """Supervises until told to stop, or until a release fails; gives the exit status."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        while True:
            session = Session(
                self._environment["FENCEKV_POD"], self._environment["FENCEKV_POD_UID"], self._new_nonce()
            )
            self._say(session)
            status = self._spawn_and_wait(session)
            logger.info("session %s ended with status %d", session, status)
            try:
                release(self._api, session, pause=self._pause)
            except NotReleased as error:
                logger.error("%s not released: %s", session, error)
                return status or STATUS_NOT_RELEASED
            if self._stopping:
                return status

    def _say(self, session: Session) -> None:
        path = Path(self._environment.get("FENCEKV_TERMINATION_LOG", "/dev/termination-log"))
        with path.open("w") as file:
            file.write(str(session))
            file.flush()
            os.fsync(file.fileno())

    def _spawn_and_wait(self, session: Session) -> int:
        if self._stopping:
            return STATUS_DRAINED
        environment = {**MALLOC, **self._environment, "FENCEKV_SESSION": str(session)}
        # A thread-free parent: preexec_fn is safe here.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fencekv_shard", "serve"],
            env=environment,
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )
        if self._stopping:  # the signal came between the check and the spawn
            self._child.terminate()
        return self._child.wait()

    def _stop(self, *_: object) -> None:
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()


def check_alone(environment: Mapping[str, str], pid: int) -> None:
    """Refuses to supervise where a child could outlive its supervisor.

    Raises:
        SystemExit: this is not PID 1 of a PID namespace of its own, and not the sandbox.
    """
    if pid != 1 and environment.get("FENCEKV_SANDBOX") != "1":
        logger.error("fencekv-shard must be PID 1 of its container: its children must not outlive it")
        raise SystemExit(STATUS_NOT_PID_1)


def _die_with_parent() -> None:
    with_libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(with_libc, "prctl"):
        with_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
