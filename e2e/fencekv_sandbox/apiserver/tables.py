"""The columns that `kubectl get` shows, worked out by the server.

Invariants:
  * Each row has as many cells as there are columns.
  * A custom resource's columns come from its definition alone; a path that leads nowhere is an empty cell.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from .jsonpath import find
from .resources import Resource

Object = dict[str, Any]
Cell = Callable[[Object, datetime], Any]

UNKNOWN: Final = "<unknown>"
NONE: Final = "<none>"


def duration_text(seconds: float) -> str:
    """A duration as kubectl shortens it: `5s`, `3m10s`, `5d7h`."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    if total < 0:
        return "0s"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if total < 120:
        return f"{total}s"
    if minutes < 10:
        return _two(minutes, "m", total % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    if days < 8 * 365:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(first: int, first_unit: str, second: int, second_unit: str) -> str:
    return f"{first}{first_unit}{second}{second_unit}" if second else f"{first}{first_unit}"


def age_text(moment: Any, now: datetime) -> str:
    """How long ago a timestamp is."""
    if not isinstance(moment, str) or not moment:
        return UNKNOWN
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return "<invalid>"
    return duration_text((now - then).total_seconds())


def _column(name: str, kind: str = "string", *, wide: bool = False, about: str = "") -> Object:
    form = "name" if name == "Name" else ""
    return {
        "name": name,
        "type": kind,
        "format": form,
        "description": about or name,
        "priority": 1 if wide else 0,
    }


def _name(obj: Object, now: datetime) -> str:
    name: str = obj["metadata"].get("name", "")
    return name


def _age(obj: Object, now: datetime) -> str:
    return age_text(obj["metadata"].get("creationTimestamp"), now)


def _path(path: str, otherwise: Any = NONE) -> Cell:
    def cell(obj: Object, now: datetime) -> Any:
        found = find(obj, path)
        return found[0] if found and found[0] is not None else otherwise

    return cell


def _custom_cell(kind: str, path: str) -> Cell:
    def cell(obj: Object, now: datetime) -> Any:
        found = find(obj, path)
        if not found:
            return None
        value = found[0] if len(found) == 1 else found
        return _cell_value(kind, value, now)

    return cell


def _cell_value(kind: str, value: Any, now: datetime) -> Any:
    if value is None:
        return None
    if kind == "date":
        return age_text(value, now)
    if kind == "integer":
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == "number":
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    return _go_text(value)


def _go_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + " ".join(_quoted(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{name}:{_go_text(item)}" for name, item in sorted(value.items())) + "]"
    return str(value)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else _go_text(value)


# Built-in kinds


def _containers(obj: Object) -> list[Object]:
    statuses: list[Object] = (obj.get("status") or {}).get("containerStatuses") or []
    return statuses


def _pod_ready(obj: Object, now: datetime) -> str:
    total = len((obj.get("spec") or {}).get("containers") or ())
    return f"{sum(bool(one.get('ready')) for one in _containers(obj))}/{total}"


def _pod_status(obj: Object, now: datetime) -> str:
    status = obj.get("status") or {}
    reason: str = status.get("reason") or status.get("phase") or ""
    for one in _containers(obj):
        state = one.get("state") or {}
        waiting, ended = state.get("waiting"), state.get("terminated")
        if waiting and waiting.get("reason"):
            reason = waiting["reason"]
        elif ended:
            reason = ended.get("reason") or f"ExitCode:{ended.get('exitCode', 0)}"
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return reason


def _pod_restarts(obj: Object, now: datetime) -> str:
    count = sum(one.get("restartCount", 0) for one in _containers(obj))
    ended = [
        one["lastState"]["terminated"]["finishedAt"]
        for one in _containers(obj)
        if ((one.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
    ]
    return f"{count} ({age_text(max(ended), now)} ago)" if count and ended else str(count)


def _sts_ready(obj: Object, now: datetime) -> str:
    wanted = (obj.get("spec") or {}).get("replicas", 1)
    return f"{(obj.get('status') or {}).get('readyReplicas', 0)}/{wanted}"


def _template(field: str) -> Cell:
    def cell(obj: Object, now: datetime) -> str:
        found = find(obj, f".spec.template.spec.containers[*].{field}")
        return ",".join(str(one) for one in found)

    return cell


def _ports(obj: Object, now: datetime) -> str:
    ports = (obj.get("spec") or {}).get("ports") or ()
    return ",".join(f"{one.get('port')}/{one.get('protocol', 'TCP')}" for one in ports) or NONE


def _selector(path: str) -> Cell:
    def cell(obj: Object, now: datetime) -> str:
        found = find(obj, path)
        labels = found[0] if found and isinstance(found[0], dict) else {}
        return ",".join(f"{name}={value}" for name, value in sorted(labels.items())) or NONE

    return cell


def _external(obj: Object, now: datetime) -> str:
    return "<pending>" if (obj.get("spec") or {}).get("type") == "LoadBalancer" else NONE


def _event_object(obj: Object, now: datetime) -> str:
    about = obj.get("involvedObject") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _event_seen(obj: Object, now: datetime) -> str:
    series = obj.get("series") or {}
    moment = series.get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("eventTime")
    return age_text(moment or obj["metadata"].get("creationTimestamp"), now)


def _event_source(obj: Object, now: datetime) -> str:
    source = obj.get("source") or {}
    names = [source.get("component") or obj.get("reportingComponent") or "", source.get("host") or ""]
    return ", ".join(name for name in names if name)


def _budget(field: str) -> Cell:
    return _path(f".spec.{field}", "N/A")


def _keys(field: str) -> Cell:
    return lambda obj, now: len(obj.get(field) or ())


def _conditions(obj: Object, now: datetime) -> str:
    held = find(obj, '.status.conditions[?(@.status=="True")].type')
    return ",".join(str(one) for one in held) or UNKNOWN


_C = _column
_NAME = (_C("Name", about="Name of the object, unique in its namespace."), _name)
_AGE = (_C("Age", about="Time since creation."), _age)

_TABLES: Final[dict[str, tuple[tuple[Object, Cell], ...]]] = {
    "pods": (
        _NAME,
        (_C("Ready"), _pod_ready),
        (_C("Status"), _pod_status),
        (_C("Restarts"), _pod_restarts),
        _AGE,
        (_C("IP", wide=True), _path(".status.podIP")),
        (_C("Node", wide=True), _path(".spec.nodeName")),
        (_C("Nominated Node", wide=True), _path(".status.nominatedNodeName")),
        (_C("Readiness Gates", wide=True), lambda obj, now: NONE),
    ),
    "statefulsets.apps": (
        _NAME,
        (_C("Ready"), _sts_ready),
        _AGE,
        (_C("Containers", wide=True), _template("name")),
        (_C("Images", wide=True), _template("image")),
    ),
    "deployments.apps": (
        _NAME,
        (_C("Ready"), _sts_ready),
        (_C("Up-to-date"), _path(".status.updatedReplicas", 0)),
        (_C("Available"), _path(".status.availableReplicas", 0)),
        _AGE,
        (_C("Containers", wide=True), _template("name")),
        (_C("Images", wide=True), _template("image")),
        (_C("Selector", wide=True), _selector(".spec.selector.matchLabels")),
    ),
    "services": (
        _NAME,
        (_C("Type"), _path(".spec.type")),
        (_C("Cluster-IP"), _path(".spec.clusterIP")),
        (_C("External-IP"), _external),
        (_C("Port(s)"), _ports),
        _AGE,
        (_C("Selector", wide=True), _selector(".spec.selector")),
    ),
    "leases.coordination.k8s.io": (
        _NAME,
        (_C("Holder"), _path(".spec.holderIdentity", "")),
        _AGE,
    ),
    "events": (
        (_C("Last Seen"), _event_seen),
        (_C("Type"), _path(".type", "")),
        (_C("Reason"), _path(".reason", "")),
        (_C("Object"), _event_object),
        (_C("Subobject", wide=True), _path(".involvedObject.fieldPath", "")),
        (_C("Source", wide=True), _event_source),
        (_C("Message"), lambda obj, now: str(obj.get("message") or "").strip()),
        (
            _C("First Seen", wide=True),
            lambda obj, now: age_text(obj.get("firstTimestamp") or obj.get("eventTime"), now),
        ),
        (_C("Count", wide=True), _path(".count", 1)),
        (_C("Name", wide=True), _name),
    ),
    "namespaces": (_NAME, (_C("Status"), _path(".status.phase")), _AGE),
    "nodes": (
        _NAME,
        (_C("Status"), _conditions),
        (_C("Roles"), lambda obj, now: NONE),
        _AGE,
        (_C("Version"), _path(".status.nodeInfo.kubeletVersion", "")),
    ),
    "poddisruptionbudgets.policy": (
        _NAME,
        (_C("Min Available"), _budget("minAvailable")),
        (_C("Max Unavailable"), _budget("maxUnavailable")),
        (_C("Allowed Disruptions", "integer"), _path(".status.disruptionsAllowed", 0)),
        _AGE,
    ),
    "configmaps": (_NAME, (_C("Data"), _keys("data")), _AGE),
    "secrets": (_NAME, (_C("Type"), _path(".type")), (_C("Data"), _keys("data")), _AGE),
    "persistentvolumeclaims": (
        _NAME,
        (_C("Status"), _path(".status.phase")),
        (_C("Volume"), _path(".spec.volumeName", "")),
        (_C("Capacity"), _path(".status.capacity.storage", "")),
        (_C("Access Modes"), lambda obj, now: ",".join(find(obj, ".status.accessModes[*]"))),
        (_C("StorageClass"), _path(".spec.storageClassName", "")),
        _AGE,
    ),
    "networkpolicies.networking.k8s.io": (
        _NAME,
        (_C("Pod-Selector"), _selector(".spec.podSelector.matchLabels")),
        _AGE,
    ),
    "customresourcedefinitions.apiextensions.k8s.io": (
        _NAME,
        (
            _C("Created At"),
            lambda obj, now: obj["metadata"].get("creationTimestamp", ""),
        ),
    ),
}


def _of(resource: Resource) -> tuple[tuple[Object, Cell], ...]:
    if resource.custom is None:
        return _TABLES.get(resource.storage, (_NAME, _AGE))
    columns: list[tuple[Object, Cell]] = [_NAME]
    given = resource.custom.columns or (
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    )
    for one in given:
        column = {
            "name": one["name"],
            "type": one["type"],
            "format": one.get("format", ""),
            "description": one.get("description", f"Custom resource definition column: {one['jsonPath']}"),
            "priority": one.get("priority", 0),
        }
        columns.append((column, _custom_cell(one["type"], one["jsonPath"])))
    return tuple(columns)


def columns_of(resource: Resource) -> list[Object]:
    """`columnDefinitions` of a resource."""
    return [column for column, _ in _of(resource)]


def row_of(resource: Resource, obj: Object, now: datetime) -> list[Any]:
    """One row's cells."""
    return [cell(obj, now) for _, cell in _of(resource)]
