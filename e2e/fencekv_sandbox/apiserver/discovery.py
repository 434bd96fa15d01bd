"""What the server says it serves: `/api`, `/apis`, `/version` and the documents below them."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from .resources import Registry, Resource
from .store import Object

VERSION: Final = {
    "major": "1",
    "minor": "35",
    "emulationMajor": "1",
    "emulationMinor": "35",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "34",
    "gitVersion": "v1.35.0+fencekv",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "fencekv/sandbox",
}
_SCALE: Final = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
_SUBRESOURCE_KINDS: Final[dict[str, Object]] = {
    "eviction": {"group": "policy", "version": "v1", "kind": "Eviction"},
    "token": {"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"},
    "binding": {"kind": "Binding"},
}
_SUBRESOURCE_VERBS: Final = {
    "eviction": ["create"],
    "token": ["create"],
    "binding": ["create"],
    "log": ["get"],
    "finalize": ["update"],
}


def _storage_hash(resource: Resource) -> str:
    return hashlib.sha256(f"{resource.storage}/{resource.version}".encode()).hexdigest()[:12]


def _sub_kind(resource: Resource, sub: str) -> Object:
    if sub == "scale":
        return dict(_SCALE)
    return dict(_SUBRESOURCE_KINDS.get(sub, {"kind": resource.kind}))


def _entries(resource: Resource) -> list[Object]:
    main: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        main["shortNames"] = list(resource.short_names)
    if resource.categories:
        main["categories"] = list(resource.categories)
    main["storageVersionHash"] = _storage_hash(resource)
    entries = [main]
    for sub in resource.subresources:
        entry: Object = {
            "name": f"{resource.plural}/{sub}",
            "singularName": "",
            "namespaced": resource.namespaced,
            **_sub_kind(resource, sub),
            "verbs": _SUBRESOURCE_VERBS.get(sub, ["get", "patch", "update"]),
        }
        entries.append(entry)
    return entries


def resource_list(registry: Registry, group: str, version: str) -> Object | None:
    """`/apis/G/V`; None: not served."""
    found = [one for one in registry.all() if (one.group, one.version) == (group, version)]
    if not found:
        return None
    entries = sorted((entry for one in found for entry in _entries(one)), key=lambda entry: entry["name"])
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": entries,
    }


def _group(group: str, versions: list[str]) -> Object:
    served = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": served, "preferredVersion": served[0]}


def core_versions() -> Object:
    """`/api`."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1"}],
    }


def group_list(registry: Registry) -> Object:
    """`/apis`."""
    groups = [_group(name, versions) for name, versions in registry.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group_document(registry: Registry, group: str) -> Object | None:
    """`/apis/G`; None: not served."""
    versions = registry.groups().get(group)
    if not versions or not group:
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, versions)}


def wants_aggregated(accept: str) -> bool:
    """Whether the first understood choice in `Accept` is aggregated discovery."""
    for choice in accept.split(","):
        parameters = {part.strip() for part in choice.split(";")[1:]}
        if {"g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"} <= parameters:
            return True
        if choice.strip() in {"application/json", "*/*"}:
            return False
    return False


AGGREGATED_TYPE: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def aggregated(registry: Registry, *, core: bool) -> Object:
    """All groups with their resources in one document."""
    items = []
    for group, versions in registry.groups().items():
        if (not group) is not core:
            continue
        items.append(
            {
                "metadata": {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None},
                "versions": [
                    {
                        "version": version,
                        "resources": [
                            _aggregated(one)
                            for one in registry.all()
                            if (one.group, one.version) == (group, version)
                        ],
                        "freshness": "Current",
                    }
                    for version in versions
                ],
            }
        )
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    }


def _aggregated(resource: Resource) -> Object:
    document: Object = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        document["shortNames"] = list(resource.short_names)
    if resource.categories:
        document["categories"] = list(resource.categories)
    subs: list[Any] = []
    for sub in resource.subresources:
        kind = _sub_kind(resource, sub)
        subs.append(
            {
                "subresource": sub,
                "responseKind": {
                    "group": kind.get("group", resource.group),
                    "version": kind.get("version", resource.version),
                    "kind": kind["kind"],
                },
                "verbs": _SUBRESOURCE_VERBS.get(sub, ["get", "patch", "update"]),
            }
        )
    if subs:
        document["subresources"] = subs
    return document
