"""Where the shards of a KVNamespace are: named by the caller, or found through the Kubernetes API.

Invariants:
  * Addresses come from session Leases that are not over; they are hints, and every shard answers for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from fencekv import access, leases
from fencekv.access import Access
from fencekv.errors import Invalid, Unavailable
from fencekv.kube import KV_NAMESPACES, LEASES, HttpKube, KubeError, Unclear

USER_AGENT: Final = "fencekv-client"

Source = Callable[[], Awaitable[Sequence[str]]]
"""Gives the addresses (`host:port`) that are known now; asked again when none of the last ones answered."""


def normalised(endpoint: str) -> str:
    """`host:port` of what a person may give: `host:port`, or `http://host:port/`."""
    address = endpoint.strip().removeprefix("http://").rstrip("/")
    if not address or "/" in address or ":" not in address:
        raise Invalid(f"endpoint: want host:port, got {endpoint[:200]!r}", field="endpoint")
    return address


def fixed(endpoints: Sequence[str]) -> Source:
    """A source of addresses that the caller named."""
    addresses = [normalised(endpoint) for endpoint in endpoints]

    async def source() -> Sequence[str]:
        return addresses

    return source


def through_kubernetes(way: Access, *, kvns: str, namespace: str = "") -> Source:
    """A source that reads the session Leases of a KVNamespace; `namespace` empty: the access's own."""

    async def source() -> Sequence[str]:
        async with HttpKube(way, user_agent=USER_AGENT) as kube:
            return await read_addresses(kube, kvns=kvns, namespace=namespace or way.namespace)

    return source


async def read_addresses(kube: HttpKube, *, kvns: str, namespace: str) -> list[str]:
    """The HTTP addresses in the session Leases of a KVNamespace.

    Raises:
        Unavailable: the API server did not answer, or refused.
    """
    labels = f"{leases.LABEL_NAMESPACE}={kvns},{leases.LABEL_KIND}={leases.KIND_SESSION}"
    try:
        listing = await kube.list(LEASES, namespace, labels=labels)
    except (KubeError, Unclear) as error:
        raise Unavailable(f"the Kubernetes API did not give the shards' Leases: {error}") from error
    addresses: list[str] = []
    for item in listing.items:
        try:
            lease = leases.SessionLease.parse(item)
        except leases.MalformedLease:
            continue
        if lease.http and not lease.over(lease.session):
            addresses.append(lease.http)
    return sorted(addresses)


async def only_namespace(way: Access, *, namespace: str = "") -> str:
    """The KVNamespace, if there is exactly one.

    Raises:
        Invalid: there is none, or there are several: one must be named.
        Unavailable: the API server did not answer, or refused.
    """
    try:
        async with HttpKube(way, user_agent=USER_AGENT) as kube:
            listing = await kube.list(KV_NAMESPACES, namespace or way.namespace)
    except (KubeError, Unclear) as error:
        raise Unavailable(f"the Kubernetes API did not give the KVNamespaces: {error}") from error
    names = [str(item["metadata"]["name"]) for item in listing.items]
    if len(names) != 1:
        where = namespace or way.namespace
        found = ", ".join(names) or "none"
        raise Invalid(f"namespace: name one; KVNamespaces in {where}: {found}", field="namespace")
    return names[0]


async def find(
    environment: Mapping[str, str],
    *,
    kvns: str = "",
    endpoints: Sequence[str] = (),
    kubeconfig: str = "",
    kube_namespace: str = "",
) -> tuple[str, Source]:
    """The KVNamespace and the source of its shards' addresses.

    Looks at `endpoints`, FENCEKV_ENDPOINT (comma-separated), then at the cluster that `access.find` finds; the
    KVNamespace at `kvns`, FENCEKV_NAMESPACE, then at the only one of the cluster.
    """
    name = kvns or environment.get("FENCEKV_NAMESPACE", "")
    given = list(endpoints) or [part for part in environment.get("FENCEKV_ENDPOINT", "").split(",") if part]
    if given and name:
        return name, fixed(given)
    if given:
        raise Invalid("namespace: an endpoint needs the KVNamespace's name beside it", field="namespace")
    # Reading a kubeconfig is file work, kept off the loop.
    way = await asyncio.to_thread(access.find, environment, kubeconfig=kubeconfig)
    name = name or await only_namespace(way, namespace=kube_namespace)
    return name, through_kubernetes(way, kvns=name, namespace=kube_namespace)
