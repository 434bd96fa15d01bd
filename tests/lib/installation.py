"""FenceKV installed on a real API server as manifests/install.yaml says, and the accounts that it runs with.

Invariants:
  * What is installed is the file itself: no test has manifests of its own.
  * An account is used by a token that the API server signed, never by an admin's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from fencekv.access import Access
from fencekv.kube import HttpKube, KubeError, Resource
from fencekv_sandbox.apiserver.kubeconfig import kubeconfig_text

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
SYSTEM = "fencekv-system"
OPERATOR = "fencekv-operator"
READY_SECONDS_MAX = 30.0
# Custom resources come first: RBAC and policies may name them, and they take a moment to be served.
CLUSTER_SCOPED = {
    "Namespace": ("", "v1", "namespaces"),
    "CustomResourceDefinition": ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
    "PriorityClass": ("scheduling.k8s.io", "v1", "priorityclasses"),
    "ClusterRole": ("rbac.authorization.k8s.io", "v1", "clusterroles"),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io", "v1", "clusterrolebindings"),
    "ValidatingAdmissionPolicy": ("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies"),
    "ValidatingAdmissionPolicyBinding": (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicybindings",
    ),
}
NAMESPACED = {
    "ServiceAccount": ("", "v1", "serviceaccounts"),
    "Role": ("rbac.authorization.k8s.io", "v1", "roles"),
    "RoleBinding": ("rbac.authorization.k8s.io", "v1", "rolebindings"),
    "Deployment": ("apps", "v1", "deployments"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status and a document."""

    status: int
    body: Object

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


def install_objects() -> list[Object]:
    """The objects of manifests/install.yaml."""
    return list(yaml.safe_load_all((ROOT / "manifests/install.yaml").read_text(encoding="utf-8")))


async def install(admin: Access) -> None:
    """Makes everything that the file names, and waits until it is in force."""
    async with HttpKube(admin, user_agent="installation") as kube:
        for obj in install_objects():
            kind = obj["kind"]
            group, version, plural = (CLUSTER_SCOPED | NAMESPACED)[kind]
            namespace = None if kind in CLUSTER_SCOPED else obj["metadata"]["namespace"]
            with contextlib.suppress(AlreadyThere):
                await _create(kube, Resource(group, version, plural, kind), namespace, obj)
    await _in_force(admin)


class AlreadyThere(Exception):
    """Another test of this run installed it."""


async def _create(kube: HttpKube, resource: Resource, namespace: str | None, obj: Object) -> None:
    async with asyncio.timeout(READY_SECONDS_MAX):
        while True:
            try:
                await kube.create(resource, namespace, obj)
                return
            except KubeError as error:
                if error.reason == "AlreadyExists":
                    raise AlreadyThere from error
                if error.status not in {403, 404, 429}:  # its namespace is a moment old
                    raise
                await asyncio.sleep(0.1)


async def _in_force(admin: Access) -> None:
    """Policies take effect a moment after they are made: asked until one refuses what it must."""
    lease = {
        "metadata": {"name": "probe", "labels": {"fencekv.io/kind": "partition"}},
        "spec": {"holderIdentity": "nobody/of/this-name", "leaseTransitions": 0},
    }
    path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases?dryRun=All"
    async with asyncio.timeout(READY_SECONDS_MAX):
        while (await ask(admin, "POST", path, lease)).status != 422:
            await asyncio.sleep(0.1)


async def ask(access: Access, method: str, path: str, body: Object | None = None, *, content: str = "") -> Answer:
    """One request with an account's own token."""
    headers = {"Authorization": f"Bearer {access.token}", "Content-Type": content or "application/json"}
    tls: ssl.SSLContext | bool = access.tls or True
    async with (
        aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=tls)) as session,
        session.request(method, access.server + path, json=body) as answer,
    ):
        return Answer(status=answer.status, body=await answer.json())


async def token_of(admin: Access, namespace: str, account: str, *, pod: Object | None = None) -> str:
    """A token of a service account, bound to a pod as a kubelet's is."""
    spec: Object = {"expirationSeconds": 24 * 3600}
    if pod is not None:
        meta = pod["metadata"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    answer = await ask(admin, "POST", path, {"spec": spec})
    assert answer.status == 201, answer
    return str(answer.body["status"]["token"])


async def operator_kubeconfig(admin: Access, path: Path, *, server: str = "", namespace: str = SYSTEM) -> Path:
    """A kubeconfig of the operator's account; `server` empty: the API server's own address."""
    token = await token_of(admin, SYSTEM, OPERATOR)
    path.write_text(
        kubeconfig_text(server=server or admin.server, token=token, namespace=namespace, user=OPERATOR)
    )
    return path


@contextlib.asynccontextmanager
async def as_account(admin: Access, token: str) -> AsyncIterator[HttpKube]:
    """A client of that account."""
    access = Access(server=admin.server, token=token, tls=admin.tls)
    async with HttpKube(access, user_agent="installation") as kube:
        yield kube
