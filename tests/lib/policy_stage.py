"""An installed API server with two shard pods, everybody who may ask, and the Leases that cases begin with.

The shards' account may do everything here that RBAC knows, so that what is refused is refused by a policy.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import crd_cases
import pytest
from apiservers import Background
from installation import Answer, ask, install, token_of

from fencekv import leases
from fencekv.access import Access
from fencekv.faults import FAULT
from fencekv.kube import LEASES
from fencekv.leases import Session
from fencekv_operator import resources
from fencekv_operator.settings import NamespaceSettings, OperatorSettings
from fencekv_sandbox.controlplane import control_plane

Object = dict[str, Any]

NAMESPACE = "default"
KVNS = "tenant"
PARTITION = "orders-3"
TOOL = "backup"  # somebody else's program, with all rights on Leases
NOW = 1_700_000_000.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """An installed API server with two shard pods and everybody who may ask."""

    admin: Access
    authority: str  # PEM
    tokens: dict[str, str]
    pods: dict[str, Object]

    async def ask(self, who: str, method: str, path: str, body: Object | None = None) -> Answer:
        access = (
            self.admin
            if who == "admin"
            else Access(server=self.admin.server, token=self.tokens[who], tls=self.admin.tls)
        )
        return await ask(access, method, path, body)

    def session(self, nonce: str = "0001", *, pod: str = "tenant-0") -> Session:
        return Session(pod, self.pods[pod]["metadata"]["uid"], nonce)

    # The Leases that a case begins with, and whom they name: tenant-0 holds, tenant-1 stands by.

    def session_lease(self) -> Object:
        return leases.new_session_lease(
            session=self.session(),
            kvns=KVNS,
            namespace=NAMESPACE,
            valid_seconds=4,
            renewal=7,
            http="10.0.0.1:7070",
            peer="10.0.0.1:7071",
            unix_seconds=NOW,
        )

    def fenced(self) -> Object:
        return leases.fenced_session(self.session_lease(), self.session())

    def followed(self) -> Object:
        return taken_over(self.fenced(), self.session("0002"))

    def followed_released(self) -> Object:
        return taken_over(self.released(), self.session("0002"))

    def released(self) -> Object:
        return leases.released_session(self.session_lease(), self.session())

    def ordered(self) -> Object:
        return noted(self.session_lease(), {FAULT: '{"fault": "freeze"}'})

    def never_granted(self) -> Object:
        return leases.new_partition_lease(
            partition=PARTITION, partition_uid="uid-3", table="orders", kvns=KVNS, namespace=NAMESPACE
        )

    def partition(self) -> Object:
        return grant(self, self.never_granted(), epoch=5)

    def asked(self) -> Object:
        return noted(self.partition(), {leases.RELEASE_ASKED: "5/tenant-1"})

    def closed(self) -> Object:
        return leases.released_partition(self.partition(), epoch=5, seq=9, target="tenant-1")


def grant(stage: Stage, lease: Object, *, epoch: int, pod: str = "tenant-0", version: int = 11) -> Object:
    return leases.granted(
        lease,
        session=stage.session(pod=pod),
        epoch=epoch,
        in_sync=("tenant-0/aa", "tenant-1/bb"),
        set_version=version,
        http="10.0.0.1:7070",
        peer="10.0.0.1:7071",
        unix_seconds=NOW,
    )


def noted(lease: Object, notes: dict[str, str | None]) -> Object:
    """The Lease with other annotations; None removes one."""
    changed = copy.deepcopy(lease)
    kept = {**changed["metadata"].get("annotations", {}), **notes}
    changed["metadata"]["annotations"] = {key: value for key, value in kept.items() if value is not None}
    return changed


def held(lease: Object, **spec: Any) -> Object:
    """The Lease with another spec."""
    changed = copy.deepcopy(lease)
    changed["spec"].update(spec)
    return changed


def labelled(lease: Object, labels: dict[str, str]) -> Object:
    changed = copy.deepcopy(lease)
    changed["metadata"]["labels"] = {**changed["metadata"].get("labels", {}), **labels}
    return changed


def renamed(lease: Object, name: str) -> Object:
    changed = copy.deepcopy(lease)
    changed["metadata"]["name"] = name
    return changed


def renewed(lease: Object, number: int = 8) -> Object:
    return leases.renewed(lease, renewal=number, valid_seconds=4, unix_seconds=NOW + 1)


def taken_over(lease: Object, session: Session, number: int = 8) -> Object:
    """What a successor writes; only a Lease that was stored has a version that it could name."""
    return leases.taken_over(
        lease,
        session=session,
        renewal=number,
        valid_seconds=4,
        http="h",
        peer="p",
        unix_seconds=NOW + 1,
        is_last_word="resourceVersion" in lease["metadata"],
    )


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One control plane for all tests of a module."""
    background = Background()
    manager = control_plane(environment=os.environ)
    plane = background.run(manager.__aenter__())
    try:
        admin = Access(server=plane.url, token=plane.token, tls=plane.ssl_context())
        yield background.run(peopled(admin, authority=plane.ca.read_text()))
    finally:
        background.run(manager.__aexit__(None, None, None))
        background.close()


async def peopled(admin: Access, *, authority: str) -> Stage:
    await install(admin)
    body = {
        **crd_cases.valid("KVNamespace"),
        "metadata": {"name": KVNS, "namespace": NAMESPACE, "uid": "u", "resourceVersion": "1"},
    }
    kvns = NamespaceSettings.parse(body, OperatorSettings(image="fencekv:dev", namespace="fencekv-system"))
    account = resources.shard_account(KVNS)
    made = [
        ("/api/v1/namespaces/default/serviceaccounts", resources.service_account(kvns)),
        ("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": TOOL}}),
        ("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", resources.role(kvns)),
        ("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", resources.role_binding(kvns)),
        # More than a shard has.
        ("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", _all_rights(account)),
        ("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", _all_rights(TOOL)),
    ]
    for path, obj in made:
        obj["metadata"].pop("ownerReferences", None)
        answer = await ask(admin, "POST", path, obj)
        assert answer.status == 201, answer
    pods = {name: await _pod(admin, name, account) for name in ("tenant-0", "tenant-1")}
    tokens = {name: await token_of(admin, NAMESPACE, account, pod=pod) for name, pod in pods.items()}
    tokens["unbound"] = await token_of(admin, NAMESPACE, account)
    tokens["operator"] = await token_of(admin, "fencekv-system", "fencekv-operator")
    tokens[TOOL] = await token_of(admin, NAMESPACE, TOOL)
    stage = Stage(admin=admin, authority=authority, tokens=tokens, pods=pods)
    async with asyncio.timeout(10):  # the authorizer learns of the Roles by a watch
        while (await stage.ask("tenant-0", "GET", LEASES.path(NAMESPACE))).status != 200:
            await asyncio.sleep(0.05)
    return stage


def _all_rights(account: str) -> Object:
    return {
        "metadata": {"name": f"all-{account}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    }


async def _pod(admin: Access, name: str, account: str) -> Object:
    body = {
        "metadata": {"name": name},
        "spec": {"serviceAccountName": account, "containers": [{"name": "shard", "image": "none"}]},
    }
    answer = await ask(admin, "POST", f"/api/v1/namespaces/{NAMESPACE}/pods", body)
    assert answer.status == 201, answer
    return answer.body
