"""Kubeconfig files for servers on this machine."""

from __future__ import annotations

from pathlib import Path

import yaml


def kubeconfig_text(
    *, server: str, token: str, namespace: str = "default", ca: Path | None = None, user: str = "admin"
) -> str:
    """A kubeconfig with one cluster, one user, one context."""
    cluster: dict[str, str] = {"server": server}
    if ca is not None:
        cluster["certificate-authority"] = str(ca)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fencekv", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "fencekv", "context": {"cluster": "fencekv", "user": user, "namespace": namespace}}],
        "current-context": "fencekv",
    }
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text
