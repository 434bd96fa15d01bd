"""What every object passes before it is stored: unknown fields, defaults, validation, namespace rules.

Invariants:
  * What is stored has been pruned, defaulted and validated, in this order.
  * Built-in kinds are decoded by their types: a wrong type is a bad request (400), as a typed server says;
    custom resources are validated by their schema: a wrong type is Invalid (422).
"""

from __future__ import annotations

import json
from typing import Any, Final

from . import defaults, rules, schema
from .core import Core
from .decoding import decode_error
from .definitions import definition_causes
from .errors import ApiError, Cause, bad_request, field_invalid, forbidden, invalid, not_found
from .message import Target
from .metadata import metadata_causes, metadata_update_causes
from .resources import DEFINITIONS, Resource
from .store import Key, Object

META_REFERENCE: Final = {"$ref": schema.DEFINITIONS_PREFIX + schema.META + "ObjectMeta"}
KEPT_NAMESPACES: Final = frozenset({"default", "kube-system", "kube-public"})


class UndecodableError(ApiError):
    """The document does not fit its type; a patch tells this in other words."""

    def __init__(self, resource: Resource, why: str, unknown: tuple[str, ...] = ()) -> None:
        head = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
        super().__init__(400, "BadRequest", head + why)
        self.why = why
        self.unknown = unknown


class Admission:
    """Checks that need to know what is served and what exists."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._schemas: dict[int, tuple[Object, Object]] = {}

    def schema_of(self, resource: Resource) -> Object:
        """The schema of a whole object of the resource."""
        if resource.custom is None:
            if resource.stored_as:
                return schema.builtin_schema("", "v1", resource.kind) or {}
            return schema.builtin_schema(resource.group, resource.version, resource.kind) or {}
        given = resource.custom.schema
        known = self._schemas.get(id(given))
        if known is None or known[0] is not given:
            text = {"type": "string"}
            properties = {
                **(given.get("properties") or {}),
                "apiVersion": text,
                "kind": text,
                "metadata": META_REFERENCE,
            }
            known = (given, {**given, "properties": properties})
            self._schemas[id(given)] = known
        return known[1]

    def check_kind(self, resource: Resource, obj: Any) -> None:
        """The document must say what it is, and be what the URL serves."""
        kind, version = obj.get("kind"), obj.get("apiVersion")
        wanted = ("v1", resource.kind) if resource.stored_as else (resource.api_version, resource.kind)
        if resource.custom is None:  # Typed resources know what they must be given.
            kind, version = kind or wanted[1], version or wanted[0]
            obj["kind"], obj["apiVersion"] = kind, version
        if not kind:
            shown = json.dumps(obj)
            raise bad_request(
                f"the object provided is unrecognized (must be of type {resource.kind}): Object 'Kind' is "
                f"missing in '{shown}' ({shown[:27]} ...)"
            )
        if not version:
            raise bad_request(f'Object "apiVersion" is missing for kind "{kind}"')
        if kind != wanted[1] and resource.custom is None:
            package = version.rpartition("/")[2]
            raise bad_request(
                f'{kind} in version "{package}" cannot be handled as a {wanted[1]}: converting '
                f"({package}.{kind}) to ({resource.group.partition('.')[0] or 'core'}.{wanted[1]}): "
                "unknown conversion"
            )
        if version != wanted[0]:
            raise bad_request(
                f"the API version in the data ({version}) does not match the expected API version ({wanted[0]})"
            )
        if kind != wanted[1]:
            cause = field_invalid("kind", kind, f"must be {wanted[1]}")
            name = str((obj.get("metadata") or {}).get("name", ""))
            raise invalid(str(kind), resource.group, name, [cause])

    def decoded(self, resource: Resource, obj: Object, level: str) -> tuple[Object, tuple[str, ...]]:
        """The object without fields nobody knows; by `level` they are ignored, warned of or refused."""
        # Large, and free of form: not worth a walk at each renewal of a Lease.
        managers = obj["metadata"].pop("managedFields", None)
        unknown: list[str] = []
        if resource.custom is None:
            obj = self._decoded_builtin(resource, obj, unknown)
        else:
            self._decode_custom(resource, obj, unknown)
        if isinstance(managers, list):
            obj["metadata"]["managedFields"] = managers
        if unknown and level == "Strict":
            text = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise UndecodableError(resource, f"strict decoding error: {text}", tuple(unknown))
        warnings = tuple(f'unknown field "{path}"' for path in unknown) if level == "Warn" else ()
        return obj, warnings

    def _decoded_builtin(self, resource: Resource, obj: Object, unknown: list[str]) -> Object:
        obj = defaults.without_nulls(obj)
        shape = self.schema_of(resource)
        error = decode_error(obj, shape, resource.kind)
        if error is not None:
            raise UndecodableError(resource, error)
        schema.prune(obj, shape, "", unknown, builtin=True)
        return obj

    def _decode_custom(self, resource: Resource, obj: Object, unknown: list[str]) -> None:
        assert resource.custom is not None
        self._check_custom_metadata(resource, obj)
        meta = obj.pop("metadata")
        if not resource.custom.preserve_unknown:
            schema.prune(obj, self.schema_of(resource), "", unknown)
        schema.prune(meta, META_REFERENCE, "metadata", unknown, builtin=True)
        obj["metadata"] = meta

    @staticmethod
    def _check_custom_metadata(resource: Resource, obj: Object) -> None:
        error = decode_error(obj.get("metadata") or {}, META_REFERENCE, "ObjectMeta", "metadata")
        if error is not None:
            raise UndecodableError(resource, error)

    def defaulted(self, resource: Resource, obj: Object, old: Object | None) -> Object:
        """The object with what its kind fills in."""
        if resource.custom is not None:
            schema.fill_defaults(obj, self.schema_of(resource))
        else:
            defaults.fill_defaults(resource.storage, obj, old, self._core)
        return obj

    def validate(self, resource: Resource, obj: Object, old: Object | None) -> None:
        """Raise Invalid with every cause found."""
        causes = list(metadata_causes(resource, obj))
        if old is not None:
            causes += metadata_update_causes(obj, old)
        if resource.custom is not None:
            causes += self._custom_causes(resource, obj, old)
        elif resource.storage == DEFINITIONS:
            causes += definition_causes(obj, old, self._core.registry)
        else:
            causes += rules.causes_of(resource.storage, obj, old)
        if causes:
            name = obj["metadata"].get("name", "")
            raise invalid(resource.kind, resource.group, name, causes)

    def _custom_causes(self, resource: Resource, obj: Object, old: Object | None) -> list[Cause]:
        shape = self.schema_of(resource)
        bare = {**shape, "properties": {k: v for k, v in shape["properties"].items() if k != "metadata"}}
        causes = list(schema.causes_of(obj, bare, ""))
        if any(cause.reason in _BLOCKING for cause in causes):
            if _has_rules(bare):
                text = (
                    "some validation rules were not checked because the object was invalid; "
                    "correct the existing errors to complete validation"
                )
                causes.append(field_invalid("<nil>", None, text))
            return causes
        seen = {**obj, "metadata": _rule_metadata(obj)}
        was = None if old is None else {**old, "metadata": _rule_metadata(old)}
        ruled = {**bare, "properties": {**bare["properties"], "metadata": _RULE_METADATA}}
        causes += schema.rule_causes(seen, ruled, "", was, correlated=old is not None)
        return causes

    def may_create(self, target: Target, key: Key) -> None:
        """A namespaced object needs a namespace that is not going away."""
        if not key.namespace:
            return
        resource = target.resource
        namespace = self._core.store.get(Key(resource="namespaces", namespace="", name=key.namespace))
        if namespace is None:
            raise not_found("namespaces", "", key.namespace)
        if namespace.object["metadata"].get("deletionTimestamp"):
            raise _terminating(resource, key)

    @staticmethod
    def may_delete(target: Target) -> None:
        """Three namespaces stay for ever."""
        if target.resource.storage == "namespaces" and target.name in KEPT_NAMESPACES:
            raise forbidden("namespaces", "", target.name, "this namespace may not be deleted")


_BLOCKING: Final = frozenset(
    {"FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"}
)
_RULE_METADATA: Final = {"properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}


def _rule_metadata(obj: Object) -> Object:
    """Rules see the name alone."""
    meta = obj["metadata"]
    return {name: meta[name] for name in ("name", "generateName") if name in meta}


def _has_rules(shape: Any) -> bool:
    if isinstance(shape, dict):
        return "x-kubernetes-validations" in shape or any(_has_rules(one) for one in shape.values())
    return isinstance(shape, list) and any(_has_rules(one) for one in shape)


def _terminating(resource: Resource, key: Key) -> ApiError:
    why = f"unable to create new content in namespace {key.namespace} because it is being terminated"
    cause = Cause(
        reason="NamespaceTerminating",
        message=f"namespace {key.namespace} is being terminated",
        field="metadata.namespace",
    )
    return forbidden(resource.plural, resource.group, key.name, why, [cause])
