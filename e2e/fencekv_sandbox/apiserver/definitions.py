"""CustomResourceDefinitions: what is refused, and the status that says they are served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from . import cel
from .errors import Cause, field_forbidden, field_invalid, field_not_supported, field_required
from .jsonpath import is_valid
from .resources import Registry
from .store import Object

CLEANUP_FINALIZER: Final = "customresourcecleanup.apiextensions.k8s.io"
_TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")
_COLUMN_TYPES: Final = ("boolean", "date", "integer", "number", "string")


def definition_causes(obj: Object, old: Object | None, registry: Registry) -> Iterator[Cause]:
    """What is wrong with a definition."""
    spec = obj.get("spec") or {}
    names = spec.get("names") or {}
    for field in ("plural", "kind"):
        if not names.get(field):
            yield field_required(f"spec.names.{field}")
    if not spec.get("group"):
        yield field_required("spec.group")
    wanted = f"{names.get('plural')}.{spec.get('group')}"
    if obj["metadata"].get("name") != wanted:
        text = 'must be spec.names.plural+"."+spec.group'
        yield field_invalid("metadata.name", obj["metadata"].get("name"), text)
    if spec.get("scope") not in {"Cluster", "Namespaced"}:
        yield field_not_supported("spec.scope", spec.get("scope", ""), ["Cluster", "Namespaced"])
    versions = spec.get("versions") or []
    if not versions:
        yield field_required("spec.versions", "must have exactly one version marked as storage version")
    elif sum(bool(one.get("storage")) for one in versions) != 1:
        text = "must have exactly one version marked as storage version"
        yield field_invalid("spec.versions", versions, text)
    for index, version in enumerate(versions):
        # The real server moves what all versions share to the top before it looks.
        schema_path = "spec.validation" if len(versions) == 1 else f"spec.versions[{index}].schema"
        yield from _version_causes(version, f"spec.versions[{index}]", schema_path)
    if registry.find(spec.get("group", ""), "v1", names.get("plural", "")) and _is_builtin(spec, registry):
        yield field_forbidden("spec.group", "the resource is built in")
    if old is not None and (old.get("spec") or {}).get("scope") != spec.get("scope"):
        yield field_invalid("spec.scope", spec.get("scope"), "field is immutable")


def _is_builtin(spec: Object, registry: Registry) -> bool:
    found = registry.find(spec["group"], "v1", spec["names"]["plural"])
    return found is not None and found.custom is None


def _version_causes(version: Object, path: str, schema_path: str) -> Iterator[Cause]:
    if not version.get("name"):
        yield field_required(f"{path}.name")
    shape = (version.get("schema") or {}).get("openAPIV3Schema")
    if shape is None:
        yield field_required(f"{schema_path}.openAPIV3Schema", "schemas are required")
    else:
        where = f"{schema_path}.openAPIV3Schema"
        if shape.get("type") != "object":
            text = "must be object at the root" if shape.get("type") else "must not be empty at the root"
            yield (
                field_invalid(f"{where}.type", shape["type"], text)
                if shape.get("type")
                else field_required(f"{where}.type", text)
            )
        yield from _schema_causes(shape, where)
    for index, column in enumerate(version.get("additionalPrinterColumns") or ()):
        where = f"{path}.additionalPrinterColumns[{index}]"
        if column.get("type") not in _COLUMN_TYPES:
            yield field_not_supported(f"{where}.type", column.get("type", ""), _COLUMN_TYPES)
        if not column.get("jsonPath") or not is_valid(column["jsonPath"]):
            yield field_invalid(f"{where}.jsonPath", column.get("jsonPath", ""), "is not a JSON path")


def _schema_causes(shape: Any, path: str) -> Iterator[Cause]:
    """A structural schema says the type of every value."""
    if not isinstance(shape, dict):
        return
    free = shape.get("x-kubernetes-int-or-string") or shape.get("x-kubernetes-preserve-unknown-fields")
    kind = shape.get("type")
    if kind is None and not free:
        yield field_required(f"{path}.type", "must not be empty for specified object fields")
    elif kind is not None and kind not in _TYPES:
        yield field_not_supported(f"{path}.type", kind, _TYPES)
    if shape.get("properties") and shape.get("additionalProperties"):
        text = "additionalProperties and properties are mutual exclusive"
        yield field_forbidden(f"{path}.additionalProperties", text)
    if kind == "array" and not isinstance(shape.get("items"), dict):
        yield field_required(f"{path}.items", "must be specified")
    for name, below in (shape.get("properties") or {}).items():
        yield from _schema_causes(below, f"{path}.properties[{name}]")
    if isinstance(shape.get("items"), dict):
        yield from _schema_causes(shape["items"], f"{path}.items")
    if isinstance(shape.get("additionalProperties"), dict):
        yield from _schema_causes(shape["additionalProperties"], f"{path}.additionalProperties")
    for index, rule in enumerate(shape.get("x-kubernetes-validations") or ()):
        yield from _rule_causes(rule, f"{path}.x-kubernetes-validations[{index}]")


def _rule_causes(rule: Object, path: str) -> Iterator[Cause]:
    if not rule.get("rule"):
        yield field_required(f"{path}.rule", "rule is not specified")
        return
    for field in ("rule", "messageExpression"):
        if rule.get(field):
            try:
                cel.check(rule[field])
            except cel.BadRule as error:
                yield field_invalid(f"{path}.{field}", _internal(rule), f"compilation failed: {error}")


def _internal(rule: Object) -> Object:
    """A rule in the words of the server's own types."""
    names = ("rule", "message", "messageExpression", "reason", "fieldPath", "optionalOldSelf")
    nullable = {"reason", "optionalOldSelf"}
    return {name[0].upper() + name[1:]: rule.get(name, None if name in nullable else "") for name in names}


def served_status(definition: Object, moment: str) -> Object:
    """The status of a definition that is served."""
    spec = definition["spec"]
    before = definition.get("status") or {}
    since = {one["type"]: one for one in before.get("conditions") or ()}
    conditions = []
    for kind, reason, message in (
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ):
        known = since.get(kind)
        changed = known["lastTransitionTime"] if known and known["status"] == "True" else moment
        conditions.append(
            {"lastTransitionTime": changed, "message": message, "reason": reason, "status": "True", "type": kind}
        )
    conditions += [one for kind, one in since.items() if kind not in {"NamesAccepted", "Established"}]
    storage = next(one["name"] for one in spec["versions"] if one.get("storage"))
    stored = list(before.get("storedVersions") or ())
    return {
        "conditions": conditions,
        "acceptedNames": dict(spec["names"]),
        "storedVersions": stored if storage in stored else [*stored, storage],
    }
