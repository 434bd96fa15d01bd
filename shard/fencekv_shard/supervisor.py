"""PID 1 of a shard's container: one session a process, and word to the operator when a process has ended.

For each process it makes a nonce, writes the session to the termination message before that process can write any
Lease, spawns it, waits for its end, and releases the session. It has seen the process end, so its word is proof;
failover after a crash of the process waits for nothing else. Beside each process it keeps a helper (`helper`),
which drills need. Kept to the standard library: it is small, and there is little in it that could fail.

Invariants:
  * A process is spawned only after the release of its predecessor succeeded; otherwise the supervisor exits.
  * The child and the helper die with the supervisor: they are alone in their container's PID namespace, or are
    told by the kernel.
  * A helper that ends leaves no child stopped, and none outlives the session that it was made for.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from fencekv.access import in_cluster
from fencekv.leases import Session, SessionLease, released_session, session_lease_name
from fencekv_shard import helper

logger = logging.getLogger(__name__)

RELEASE_ATTEMPTS: Final = 40
RELEASE_PAUSE_SECONDS: Final = 0.25
REST_SECONDS: Final = 0.5  # before the next process: to start one takes a core that those who take over need first
REQUEST_SECONDS: Final = 2.0
STATUS_DRAINED: Final = 0
STATUS_NOT_RELEASED: Final = 71
STATUS_NOT_PID_1: Final = 72
PR_SET_PDEATHSIG: Final = 1
WATCH_GRACE_SECONDS: Final = 10  # beyond which a watch that should have ended is given up
HELPERS_MAX: Final = 5  # of one session: a helper that keeps dying must not keep PID 1 busy
# LMDB keeps 2 MiB lists that it hardly touches: mapped, they cost nothing; from the heap they become resident
# (50 environments: 100 MB against 2 MB).
MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Api(helper.Watch, Protocol):
    """The two requests that a supervisor makes, and its helper's watch."""

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

    def watch(self, name: str, seconds: int) -> Iterator[dict[str, Any]]:
        """The watch events of one Lease, its present state first."""
        query = f"?watch=1&fieldSelector=metadata.name%3D{name}&timeoutSeconds={seconds}"
        connection = self._connection(timeout=seconds + WATCH_GRACE_SECONDS)
        try:
            connection.request("GET", self._path(query), headers=self._headers())
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"watching {name}: status {answer.status}")
            for line in answer:
                yield json.loads(line)
        finally:
            connection.close()

    def _request(self, method: str, name: str, body: str | None) -> tuple[int, dict[str, Any]]:
        connection = self._connection(timeout=REQUEST_SECONDS)
        try:
            connection.request(method, self._path(f"/{name}"), body=body, headers=self._headers())
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def _connection(self, *, timeout: float) -> http.client.HTTPConnection:
        url, tls = urlsplit(self._access.server), self._access.tls
        host, port = str(url.hostname), url.port
        if tls:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {Path(self._access.token_file).read_text().strip()}",
            "Content-Type": "application/json",
            "User-Agent": "fencekv-supervisor",
        }

    def _path(self, rest: str) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._access.namespace}/leases{rest}"


class Supervisor:
    """Spawns `serve` processes, one after another."""

    def __init__(
        self,
        *,
        api: Api,
        environment: Mapping[str, str],
        new_nonce: Callable[[], str],
        pause: Callable[[], None],
        rest: Callable[[], None],
    ) -> None:
        """`pause` lies between two attempts to release a session, `rest` between two processes."""
        self._api, self._environment = api, environment
        self._new_nonce, self._pause, self._rest = new_nonce, pause, rest
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
            if not self._stopping:
                self._rest()
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
        reading, writing = os.pipe()
        try:
            environment = {
                **MALLOC,
                **self._environment,
                "FENCEKV_SESSION": str(session),
                "FENCEKV_FAULTS": str(reading),
            }
            # A thread-free parent: preexec_fn is safe here.
            child = self._child = subprocess.Popen(
                [sys.executable, "-m", "fencekv_shard", "serve"],
                env=environment,
                pass_fds=(reading,),
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
            if self._stopping:  # the signal came between the check and the spawn
                self._end(child)
            return self._wait(session, child, writing)
        finally:
            os.close(reading)
            os.close(writing)

    def _wait(self, session: Session, child: subprocess.Popen[bytes], pipe: int) -> int:
        """Waits for the end of the child, and keeps a helper beside it."""
        helpers, beside = 1, self._fork_helper(session, child.pid, pipe, successor=False)
        while True:
            # Whoever ends is reaped here, also an orphan whose parent PID 1 has become.
            pid, status = os.wait()
            if pid == child.pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                break
            if pid == beside:
                beside = 0
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGCONT)
                if helpers < HELPERS_MAX:
                    helpers += 1
                    beside = self._fork_helper(session, child.pid, pipe, successor=True)
        if beside:
            os.kill(beside, signal.SIGKILL)
            os.waitpid(beside, 0)
        return child.returncode

    def _fork_helper(self, session: Session, child: int, pipe: int, *, successor: bool) -> int:
        """A process without threads is forked and goes on at once: nothing is imported again, little is copied."""
        pid = os.fork()
        if pid:
            return pid
        try:
            _die_with_parent()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # it is the supervisor who ends it
            process = helper.Process(child, pipe)
            helper.run(session, process, self._api, pause=self._pause, successor=successor)
        except Exception:
            logger.exception("the helper failed")
        finally:
            os._exit(1)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        if self._child is not None and self._child.returncode is None:
            self._end(self._child)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Tells the child to end, and wakes it should a drill have stopped it.

        Not by `terminate`, which would reap it: that is `_wait`'s.
        """
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


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
