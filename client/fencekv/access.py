"""How a process finds its API server: a service account's folder, or a kubeconfig.

The kubeconfig forms supported are tokens, token files, client certificates and CA data. A kubeconfig that runs
a program for its credentials (`exec`) is refused with the way round it.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
SANDBOX_KUBECONFIG: Final = ".fencekv/kubeconfig"


class NoAccess(Exception):
    """No usable way to an API server was found; the message says what to set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where an API server is and how to be let in. `token_file` is read again at each request: it rotates."""

    server: str
    namespace: str = "default"
    token: str = ""
    token_file: str = ""
    tls: ssl.SSLContext | None = None


def in_cluster(environment: Mapping[str, str]) -> Access:
    """Access by the pod's service account, as a kubelet provides it."""
    host = environment.get("KUBERNETES_SERVICE_HOST")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise NoAccess("KUBERNETES_SERVICE_HOST is not set: this does not run in a pod")
    folder = Path(environment.get("FENCEKV_SERVICEACCOUNT", SERVICE_ACCOUNT))
    authority = folder / "ca.crt"
    # The sandbox speaks plain HTTP on loopback; a kubelet always provides an authority.
    tls = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
    address = f"[{host}]" if ":" in host else host
    return Access(
        server=f"{'https' if tls else 'http'}://{address}:{port}",
        namespace=(folder / "namespace").read_text().strip(),
        token_file=str(folder / "token"),
        tls=tls,
    )


def from_kubeconfig(path: Path, *, context: str = "") -> Access:
    """Access by a context of a kubeconfig, its current one by default."""
    try:
        config = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise NoAccess(f"{path}: {error}") from error
    chosen = context or config.get("current-context") or ""
    entry = _named(config, "contexts", chosen, "context", path)
    cluster = _named(config, "clusters", entry.get("cluster", ""), "cluster", path)
    user = _named(config, "users", entry["user"], "user", path) if entry.get("user") else {}
    if "exec" in user or "auth-provider" in user:
        raise NoAccess(f"{path}: users by exec are not supported; make a token: kubectl create token")
    return Access(
        server=str(cluster["server"]).rstrip("/"),
        namespace=entry.get("namespace") or "default",
        token=user.get("token", ""),
        token_file=user.get("tokenFile", ""),
        tls=_tls(cluster, user, path.parent),
    )


def find(environment: Mapping[str, str], *, kubeconfig: str = "", context: str = "") -> Access:
    """Looks at `kubeconfig`, KUBECONFIG, ./.fencekv/kubeconfig, the pod's service account, ~/.kube/config."""
    named = kubeconfig or environment.get("KUBECONFIG", "").split(os.pathsep)[0]
    if named:
        return from_kubeconfig(Path(named), context=context)
    if Path(SANDBOX_KUBECONFIG).exists():
        return from_kubeconfig(Path(SANDBOX_KUBECONFIG), context=context)
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(environment)
    default = Path(environment.get("HOME", "/")) / ".kube/config"
    if default.exists():
        return from_kubeconfig(default, context=context)
    raise NoAccess("no cluster found: give --kubeconfig, set KUBECONFIG, or run `make dev` in this folder")


def _named(config: Mapping[str, Any], section: str, name: str, member: str, path: Path) -> dict[str, Any]:
    for entry in config.get(section) or []:
        if entry.get("name") == name:
            return dict(entry.get(member) or {})
    raise NoAccess(f"{path}: {section} has no entry {name!r}")


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], base: Path) -> ssl.SSLContext | None:
    if not str(cluster.get("server", "")).startswith("https:"):
        return None
    data = cluster.get("certificate-authority-data")
    file = cluster.get("certificate-authority")
    tls = ssl.create_default_context(
        cafile=str(base / file) if file else None,
        cadata=base64.b64decode(data).decode() if data else None,
    )
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    certificate, key = _pem(user, "client-certificate", base), _pem(user, "client-key", base)
    if certificate and key:
        # The ssl module loads a key pair only from files.
        with tempfile.TemporaryDirectory() as folder:
            chain, private = Path(folder) / "chain.pem", Path(folder) / "key.pem"
            private.touch(mode=0o600)
            chain.write_bytes(certificate)
            private.write_bytes(key)
            tls.load_cert_chain(chain, private)
    return tls


def _pem(user: Mapping[str, Any], field: str, base: Path) -> bytes:
    if user.get(f"{field}-data"):
        return base64.b64decode(user[f"{field}-data"])
    return (base / user[field]).read_bytes() if user.get(field) else b""
