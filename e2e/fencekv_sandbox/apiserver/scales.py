"""The `scale` subresource: a view of two or three fields of another object."""

from __future__ import annotations

from typing import Any

from .jsonpath import find
from .resources import ScalePaths
from .store import Object, copied


def _first(obj: Object, path: str | None) -> Any:
    found = find(obj, path) if path else []
    return found[0] if found else None


def scale_of(paths: ScalePaths, obj: Object) -> Object:
    """The Scale that an object shows."""
    meta = obj["metadata"]
    fields = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status: Object = {"replicas": _first(obj, paths.replicas_seen) or 0}
    selector = _first(obj, paths.selector)
    if selector is None:
        labels = _first(obj, ".spec.selector.matchLabels")
        if isinstance(labels, dict):
            selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    if selector:
        status["selector"] = selector
    replicas = _first(obj, paths.replicas)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: meta[name] for name in fields if name in meta},
        "spec": {"replicas": replicas} if replicas else {},
        "status": status,
    }


def with_scale(paths: ScalePaths, obj: Object, scale: Object) -> Object:
    """The object with the replicas that a Scale asks for."""
    changed = copied(obj)
    *steps, last = paths.replicas.strip(".").split(".")
    place = changed
    for step in steps:
        place = place.setdefault(step, {})
    place[last] = (scale.get("spec") or {}).get("replicas", 0)
    return changed
