"""Objects that behaviours use."""

from __future__ import annotations

from typing import Any

from apiservers import Api, Reply

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

GROUP = "conformance.fencekv.io"


def leases(ns: str, name: str = "") -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{ns}/leases" + (f"/{name}" if name else "")


def maps(ns: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{ns}/configmaps" + (f"/{name}" if name else "")


def pods(ns: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{ns}/pods" + (f"/{name}" if name else "")


def sets(ns: str, name: str = "") -> str:
    return f"/apis/apps/v1/namespaces/{ns}/statefulsets" + (f"/{name}" if name else "")


def widgets(ns: str, name: str = "") -> str:
    return f"/apis/{GROUP}/v1/namespaces/{ns}/widgets" + (f"/{name}" if name else "")


def lease(name: str = "a", **spec: Any) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": "me", **spec},
    }


def config_map(name: str = "a", labels: Object | None = None, **data: str) -> Object:
    meta: Object = {"name": name}
    if labels:
        meta["labels"] = labels
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def pod(name: str = "a", **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "main", "image": "example.com/image:1"}],
            "automountServiceAccountToken": False,
            **spec,
        },
    }


def stateful_set(name: str = "a", **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": "example.com/image:1"}]},
            },
            **spec,
        },
    }


def widget(name: str = "a", **spec: Any) -> Object:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"size": 3, **spec},
    }


_TEXT = {"type": "string", "maxLength": 20}

WIDGETS: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"widgets.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {
            "plural": "widgets",
            "singular": "widget",
            "kind": "Widget",
            "shortNames": ["wd"],
            "categories": ["conformance"],
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"},
                },
                "additionalPrinterColumns": [
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.size", "description": "How big"},
                    {
                        "name": "Ready",
                        "type": "string",
                        "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
                    },
                    {"name": "Note", "type": "string", "jsonPath": ".spec.note", "priority": 1},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "x-kubernetes-validations": [
                            {"rule": "self.metadata.name.size() <= 10", "message": "name: at most 10 characters"}
                        ],
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["size"],
                                "x-kubernetes-validations": [
                                    {
                                        "rule": "!has(self.low) || self.low <= self.size",
                                        "message": "low must not exceed size",
                                        "fieldPath": ".low",
                                    }
                                ],
                                "properties": {
                                    "size": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 9},
                                    "low": {"type": "integer"},
                                    "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                                    "note": {"type": "string", "minLength": 2, "maxLength": 20, "nullable": True},
                                    "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 20},
                                    "when": {"type": "string", "format": "date-time"},
                                    "port": {"x-kubernetes-int-or-string": True},
                                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "fixed": {
                                        **_TEXT,
                                        "x-kubernetes-validations": [
                                            {"rule": "self == oldSelf", "message": "fixed is immutable"}
                                        ],
                                    },
                                    "owner": {
                                        "type": "object",
                                        "default": {},
                                        "properties": {"name": {**_TEXT, "default": "nobody"}},
                                    },
                                    "marks": {
                                        "type": "object",
                                        "maxProperties": 2,
                                        "additionalProperties": {"type": "integer"},
                                    },
                                    "tags": {
                                        "type": "array",
                                        "maxItems": 4,
                                        "x-kubernetes-list-type": "set",
                                        "items": _TEXT,
                                        "x-kubernetes-validations": [
                                            {"rule": "self.isSorted()", "message": "tags must be sorted"}
                                        ],
                                    },
                                    "parts": {
                                        "type": "array",
                                        "maxItems": 4,
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["name"],
                                        "items": {
                                            "type": "object",
                                            "required": ["name"],
                                            "properties": {
                                                "name": _TEXT,
                                                "weight": {
                                                    "type": "integer",
                                                    "x-kubernetes-validations": [
                                                        {
                                                            "rule": "self >= oldSelf",
                                                            "message": "weight never falls",
                                                        }
                                                    ],
                                                },
                                            },
                                        },
                                    },
                                },
                            },
                            "status": {
                                "type": "object",
                                "properties": {
                                    "size": {"type": "integer"},
                                    "epoch": {
                                        "type": "integer",
                                        "x-kubernetes-validations": [
                                            {"rule": "self >= oldSelf", "message": "epoch never falls"}
                                        ],
                                    },
                                    "conditions": {
                                        "type": "array",
                                        "maxItems": 8,
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["type"],
                                        "items": {
                                            "type": "object",
                                            "required": ["type", "status"],
                                            "properties": {"type": _TEXT, "status": _TEXT},
                                        },
                                    },
                                },
                            },
                        },
                    }
                },
            }
        ],
    },
}


async def create(api: Api, path: str, body: Object, **query: str) -> Reply:
    """Create an object that must be accepted."""
    reply = await api.ask("POST", path, body, **query)
    assert reply.status == 201, reply
    return reply


async def get(api: Api, path: str) -> Object:
    """Read an object that must exist."""
    reply = await api.ask("GET", path)
    assert reply.status == 200, reply
    document: Object = reply.body
    return document


def causes(reply: Reply) -> list[tuple[str, str]]:
    """Reasons and fields of an Invalid, after its shape was checked."""
    assert reply.status == 422, reply
    assert reply.body["kind"] == "Status", reply
    assert reply.body["status"] == "Failure", reply
    assert reply.reason == "Invalid", reply
    assert reply.body["code"] == 422, reply
    return [(one["reason"], one.get("field", "")) for one in reply.body["details"]["causes"]]
