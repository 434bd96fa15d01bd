"""A real control plane on loopback: etcd and kube-apiserver from `KUBEBUILDER_ASSETS`.

The folder is envtest's convention. There is no controller manager, no scheduler and no kubelet: objects only.

Invariants:
  * Everything listens on 127.0.0.1 and lives in one folder, which its owner removes.
  * Both processes end with this one: they get SIGKILL if it dies.
  * The ports stay the same over restarts, so that clients find the server again.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import secrets
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from .apiserver.kubeconfig import kubeconfig_text

HOST: Final = "127.0.0.1"
ASSETS_VARIABLE: Final = "KUBEBUILDER_ASSETS"
READY_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 15.0
ADMIN: Final = "admin"
PR_SET_PDEATHSIG: Final = 1
# What service accounts asked for and were answered; everybody else is of no interest.
AUDIT_POLICY: Final = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, userGroups: ["system:serviceaccounts"]}
  - {level: None}
"""


class AssetsMissing(RuntimeError):
    """The binaries are not there; the message says how to get them."""


class ControlPlaneFailed(RuntimeError):
    """A process ended or did not become ready; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """The binaries."""

    etcd: Path
    kube_apiserver: Path
    kubectl: Path | None  # None: not in the folder; the control plane runs without.


def find_assets(environment: Mapping[str, str]) -> Assets:
    """The binaries named by the environment; raises AssetsMissing with advice."""
    folder = environment.get(ASSETS_VARIABLE)
    advice = (
        f"{ASSETS_VARIABLE} must name a folder with etcd and kube-apiserver. `setup-envtest use -p path` "
        "(sigs.k8s.io/controller-runtime/tools/setup-envtest) downloads such a folder and prints its path; "
        "binaries from any Kubernetes release do as well."
    )
    if not folder:
        raise AssetsMissing(f"{ASSETS_VARIABLE} is not set. {advice}")
    found = {name: Path(folder) / name for name in ("etcd", "kube-apiserver", "kubectl")}
    missing = [name for name in ("etcd", "kube-apiserver") if not os.access(found[name], os.X_OK)]
    if missing:
        raise AssetsMissing(f"{folder} lacks {' and '.join(missing)}. {advice}")
    kubectl = found["kubectl"] if os.access(found["kubectl"], os.X_OK) else None
    return Assets(etcd=found["etcd"], kube_apiserver=found["kube-apiserver"], kubectl=kubectl)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = []
    try:
        for _ in range(count):
            one = socket.socket()
            one.bind((HOST, 0))
            sockets.append(one)
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def tie_to_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What ties a process to its parent, whose end then sends it that signal; a child runs it before exec.

    None: this platform cannot.
    """
    try:
        library = ctypes.CDLL(None)
        prctl = library.prctl
    except (OSError, AttributeError):
        return None

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, number)

    return tie


class Process:
    """One child with its log."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self._command = list(command)
        self._log = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def start(self) -> None:
        """Start it; it must not run already."""
        assert self.pid is None, self.name
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=tie_to_parent(signal.SIGKILL),
            )

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal, at last with SIGKILL; returns when it has ended."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def signal(self, number: int) -> None:
        """Send a signal, such as SIGSTOP and SIGCONT."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def ended(self) -> bool:
        """Whether it was started and runs no more."""
        return self._process is not None and self._process.returncode is not None

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            text = self._log.read_text("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-20:])


class ControlPlane:
    """A running etcd and kube-apiserver."""

    def __init__(
        self,
        assets: Assets,
        folder: Path,
        *,
        users: Mapping[str, Sequence[str]],
        fsync: bool,
        audit: bool = False,
    ) -> None:
        self.assets = assets
        self.folder = folder
        # What each service account asked for, one JSON object a line; None: it is not written.
        self.audit_log = folder / "audit.log" if audit else None
        self.etcd_data = folder / "etcd"
        self._etcd_port, peer_port, self.port = free_ports(3)
        self.tokens = {name: secrets.token_hex(16) for name in users}
        self._write_identities(users)
        self.etcd = Process("etcd", self._etcd_command(peer_port, fsync=fsync), folder)
        self.apiserver = Process("kube-apiserver", self._apiserver_command(), folder)

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"https://{HOST}:{self.port}"

    @property
    def ca(self) -> Path:
        """Certificate that the API server signed itself."""
        return self.folder / "certs" / "apiserver.crt"

    @property
    def token(self) -> str:
        """The admin's bearer token."""
        return self.tokens[ADMIN]

    def ssl_context(self) -> ssl.SSLContext:
        """A context that trusts this API server alone."""
        return ssl.create_default_context(cafile=str(self.ca))

    def kubeconfig(self, path: Path | None = None, *, user: str = ADMIN, namespace: str = "default") -> Path:
        """Write a kubeconfig for a user; returns its path."""
        path = path or self.folder / f"{user}.kubeconfig"
        text = kubeconfig_text(
            server=self.url, token=self.tokens[user], namespace=namespace, ca=self.ca, user=user
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    # Life

    async def start(self) -> None:
        """Start both and wait until the API is ready."""
        await self.start_etcd()
        await self.start_apiserver()

    async def stop(self) -> None:
        """Stop both."""
        await self.apiserver.stop(signal.SIGKILL)
        await self.etcd.stop(signal.SIGKILL)

    async def start_etcd(self) -> None:
        """Start etcd and wait until it answers."""
        await self.etcd.start()
        await self._until_ready(self.etcd, f"http://{HOST}:{self._etcd_port}/readyz", None)

    async def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready."""
        await self.apiserver.start()
        await self._until_ready(self.apiserver, f"{self.url}/readyz", self.token)

    async def restart_apiserver(self, number: int = signal.SIGKILL) -> None:
        """End the API server by a signal and start it again."""
        await self.apiserver.stop(number)
        await self.start_apiserver()

    async def compact(self) -> None:
        """Let etcd forget all versions but the last."""
        async with aiohttp.ClientSession(f"http://{HOST}:{self._etcd_port}") as session:
            async with session.post("/v3/kv/range", json={"key": "AA=="}) as response:
                revision = (await response.json(content_type=None))["header"]["revision"]
            body = {"revision": revision, "physical": True}
            async with session.post("/v3/kv/compaction", json=body) as response:
                if response.status != 200:
                    raise ControlPlaneFailed(f"etcd did not compact: {await response.text()}")

    def copy_etcd(self, name: str = "copy") -> Path:
        """Copy etcd's data folder, which must be stopped for a consistent copy."""
        assert self.etcd.pid is None, "stop etcd before its data is copied"
        copy = self.folder / f"etcd-{name}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.etcd_data, copy)
        return copy

    async def snapshot(self, name: str = "copy") -> Path:
        """Stop both, copy etcd's data, start both again."""
        await self.apiserver.stop(signal.SIGKILL)
        await self.etcd.stop()
        copy = self.copy_etcd(name)
        await self.start()
        return copy

    async def put_back(self, copy: Path) -> None:
        """Stop both, put etcd's data back to an earlier copy, start both again."""
        await self.apiserver.stop(signal.SIGKILL)
        await self.etcd.stop(signal.SIGKILL)
        shutil.rmtree(self.etcd_data)
        shutil.copytree(copy, self.etcd_data)
        await self.start()

    # Details

    def _write_identities(self, users: Mapping[str, Sequence[str]]) -> None:
        lines = []
        for name, groups in users.items():
            quoted = ",".join(groups)
            lines.append(f'{self.tokens[name]},{name},{name}-uid,"{quoted}"\n')
        tokens = self.folder / "tokens.csv"
        tokens.write_text("".join(lines), encoding="utf-8")
        tokens.chmod(0o600)
        (self.folder / "certs").mkdir(exist_ok=True)
        key = self.folder / "service-accounts.key"
        key.write_text(_signing_key(), encoding="ascii")
        key.chmod(0o600)

    def _etcd_command(self, peer_port: int, *, fsync: bool) -> list[str]:
        client, peer = f"http://{HOST}:{self._etcd_port}", f"http://{HOST}:{peer_port}"
        command = [
            str(self.assets.etcd),
            "--data-dir", str(self.etcd_data),
            "--listen-client-urls", client,
            "--advertise-client-urls", client,
            "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}",
            "--log-level", "warn",
        ]  # fmt: skip
        return command if fsync else [*command, "--unsafe-no-fsync"]

    def _apiserver_command(self) -> list[str]:
        key = str(self.folder / "service-accounts.key")
        audit: list[str] = []
        if self.audit_log is not None:
            policy = self.folder / "audit-policy.yaml"
            policy.write_text(AUDIT_POLICY, encoding="utf-8")
            audit = ["--audit-policy-file", str(policy), "--audit-log-path", str(self.audit_log)]
        return [
            str(self.assets.kube_apiserver),
            *audit,
            "--etcd-servers", f"http://{HOST}:{self._etcd_port}",
            "--cert-dir", str(self.folder / "certs"),
            "--bind-address", HOST,
            "--secure-port", str(self.port),
            "--service-cluster-ip-range", "10.96.0.0/16",
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", key,
            "--service-account-signing-key-file", key,
            "--token-auth-file", str(self.folder / "tokens.csv"),
            "--authorization-mode", "RBAC",
            "--watch-cache-sizes", "leases.coordination.k8s.io#1000",
        ]  # fmt: skip

    async def _until_ready(self, process: Process, url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with asyncio.timeout(READY_SECONDS_MAX), aiohttp.ClientSession(headers=headers) as session:
                while not await _answers(session, url):
                    if process.ended():
                        raise ControlPlaneFailed(f"{process.name} ended:\n{process.log_tail()}")
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            text = f"{process.name} is not ready after {READY_SECONDS_MAX} s:\n{process.log_tail()}"
            raise ControlPlaneFailed(text) from error


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        # The certificate is made during the start: it is trusted from then on, see `ssl_context`.
        async with session.get(url, ssl=False, timeout=aiohttp.ClientTimeout(total=5)) as response:
            await response.read()
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


# SEC 1 / RFC 5915: version 1, the private number, the curve prime256v1; the public point follows from these.
_EC_HEAD: Final = bytes.fromhex("30310201010420")
_EC_TAIL: Final = bytes.fromhex("a00a06082a8648ce3d030107")
_EC_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _signing_key() -> str:
    """A new key for service account tokens, as PEM."""
    number = 1 + secrets.randbelow(_EC_ORDER - 1)
    text = base64.b64encode(_EC_HEAD + number.to_bytes(32) + _EC_TAIL).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN EC PRIVATE KEY-----", *lines, "-----END EC PRIVATE KEY-----", ""])


@asynccontextmanager
async def control_plane(
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    users: Mapping[str, Sequence[str]] | None = None,
    fsync: bool = False,
    audit: bool = False,
) -> AsyncIterator[ControlPlane]:
    """Run a control plane; `users` maps further names to their groups, `folder` None is a temporary one."""
    assets = find_assets(os.environ if environment is None else environment)
    everybody = {ADMIN: ("system:masters",), **(users or {})}
    place = folder or Path(tempfile.mkdtemp(prefix="fencekv-control-plane-"))
    place.mkdir(parents=True, exist_ok=True)
    plane = ControlPlane(assets, place, users=everybody, fsync=fsync, audit=audit)
    try:
        await plane.start()
        yield plane
    finally:
        await plane.stop()
        if folder is None:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


def main() -> None:
    """Say whether the binaries are there, and if not, how to get them."""
    try:
        assets = find_assets(os.environ)
    except AssetsMissing as error:
        sys.exit(str(error))
    sys.stdout.write(f"{assets.etcd}\n{assets.kube_apiserver}\n")


if __name__ == "__main__":
    main()
