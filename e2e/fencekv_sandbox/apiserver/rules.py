"""What built-in kinds refuse beyond their types, as far as this project uses them.

Invariants:
  * Nothing is refused here that the real server accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from .errors import (
    Cause,
    field_forbidden,
    field_invalid,
    field_not_supported,
    field_required,
)
from .store import Object


def causes_of(storage: str, obj: Object, old: Object | None) -> Iterator[Cause]:
    """What the kind refuses."""
    check = _CHECKS.get(storage)
    if check is not None:
        yield from check(obj, old)


def _not_negative(spec: Object, field: str, path: str) -> Iterator[Cause]:
    value = spec.get(field)
    if value is not None and value < 0:
        yield field_invalid(path, value, "must be greater than or equal to 0")


def _lease(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    duration = spec.get("leaseDurationSeconds")
    if duration is not None and duration <= 0:
        yield field_invalid("spec.leaseDurationSeconds", duration, "must be greater than 0")
    yield from _not_negative(spec, "leaseTransitions", "spec.leaseTransitions")


def _containers(spec: Object, path: str) -> Iterator[Cause]:
    containers = spec.get("containers") or ()
    if not containers:
        yield field_required(f"{path}.containers")
    for index, one in enumerate(containers):
        where = f"{path}.containers[{index}]"
        if not one.get("name"):
            yield field_required(f"{where}.name")
        if not one.get("image"):
            yield field_required(f"{where}.image")
    policy = spec.get("restartPolicy")
    if policy not in {"Always", "OnFailure", "Never"}:
        yield field_not_supported(f"{path}.restartPolicy", policy, ["Always", "OnFailure", "Never"])


def _pod_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    yield from _containers(obj.get("spec") or {}, "spec")


def _selects(spec: Object) -> bool:
    selector = (spec.get("selector") or {}).get("matchLabels") or {}
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    return all(labels.get(name) == value for name, value in selector.items())


_STATEFUL_SET_MUTABLE: Final = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def _workload(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if not spec.get("selector"):
        yield field_required("spec.selector")
    elif not _selects(spec):
        labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        text = "`selector` does not match template `labels`"
        yield field_invalid("spec.template.metadata.labels", labels, text)
    yield from _not_negative(spec, "replicas", "spec.replicas")
    yield from _containers((spec.get("template") or {}).get("spec") or {}, "spec.template.spec")


def _stateful_set_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    yield from _workload(obj, old)
    if old is None:
        return
    fixed = [
        {name: value for name, value in (one.get("spec") or {}).items() if name not in _STATEFUL_SET_MUTABLE}
        for one in (obj, old)
    ]
    if fixed[0] != fixed[1]:
        names = ", ".join(f"'{name}'" for name in _STATEFUL_SET_MUTABLE[:-1])
        text = (
            f"updates to statefulset spec for fields other than {names} and '{_STATEFUL_SET_MUTABLE[-1]}' "
            "are forbidden"
        )
        yield field_forbidden("spec", text)


def _service_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    kinds_of = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]
    if spec.get("type") not in kinds_of:
        yield field_not_supported("spec.type", spec.get("type"), kinds_of)
    if not spec.get("ports") and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        yield field_required("spec.ports")
    for index, port in enumerate(spec.get("ports") or ()):
        if not 1 <= port.get("port", 0) <= 65535:
            text = "must be between 1 and 65535, inclusive"
            yield field_invalid(f"spec.ports[{index}].port", port.get("port", 0), text)
    if old is not None:
        was = (old.get("spec") or {}).get("clusterIP")
        if was and spec.get("clusterIP") != was and spec.get("type") != "ExternalName":
            yield field_invalid("spec.clusterIPs[0]", [spec.get("clusterIP")], "may not change once set")


def _budget_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    spec = obj.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        text = "minAvailable and maxUnavailable cannot be both set"
        yield field_invalid("spec", spec, text)
    for field in ("minAvailable", "maxUnavailable"):
        value = spec.get(field)
        if isinstance(value, int) and value < 0:
            yield field_invalid(f"spec.{field}", value, "must be greater than or equal to 0")


_CONFIG_KEY: Final = re.compile(r"^[-._a-zA-Z0-9]+\Z")


def _config_map_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    for field in ("data", "binaryData"):
        for key in obj.get(field) or ():
            if not _CONFIG_KEY.match(key):
                text = (
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. "
                    "'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
                    "'[-._a-zA-Z0-9]+')"
                )
                yield field_invalid(f"{field}[{key}]", key, text)
    if old is not None and old.get("immutable"):
        for field in ("data", "binaryData"):
            if obj.get(field) != old.get(field):
                yield field_forbidden(field, "field is immutable when `immutable` is set")


def _event_causes(obj: Object, old: Object | None) -> Iterator[Cause]:
    about = obj.get("involvedObject") or {}
    namespace = obj["metadata"].get("namespace")
    if (about.get("namespace") or "default") != namespace:
        text = "does not match event.namespace"
        yield field_invalid("involvedObject.namespace", about.get("namespace", ""), text)


_CHECKS: Final[dict[str, Callable[[Object, Object | None], Iterator[Cause]]]] = {
    "leases.coordination.k8s.io": _lease,
    "pods": _pod_causes,
    "statefulsets.apps": _stateful_set_causes,
    "deployments.apps": _workload,
    "services": _service_causes,
    "poddisruptionbudgets.policy": _budget_causes,
    "configmaps": _config_map_causes,
    "events": _event_causes,
}
