"""The PATCH verb in its four dialects."""

from __future__ import annotations

from typing import Any

from . import managed
from .admission import Admission, UndecodableError
from .core import Core
from .decoding import PATCH_TYPES, load, load_any, media_type
from .errors import (
    ApiError,
    bad_request,
    internal,
    not_found,
    unsupported_media_type,
    unsupported_patch_type,
    unusable_patch,
)
from .message import Request, Target
from .patches import json_patch, merge_patch
from .resources import Resource
from .scales import scale_of
from .store import Object, Stored, copied
from .strategic import strategic_patch
from .writes import Options, Writer, Written, version_required

JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH = PATCH_TYPES


class Patcher:
    """Turns a patch into a write."""

    def __init__(self, core: Core, admission: Admission, writer: Writer) -> None:
        self._core = core
        self._admission = admission
        self._writer = writer

    def patch(self, target: Target, request: Request, options: Options) -> Written:
        """PATCH of an object, its status or its scale."""
        assert target.name is not None
        media = media_type(request)
        custom = target.resource.custom is not None
        supported = [one for one in PATCH_TYPES if not (custom and one == STRATEGIC_PATCH)]
        if media not in supported:
            raise unsupported_media_type(supported) if custom else unsupported_patch_type()
        if media == APPLY_PATCH:
            return self._apply(target, request, options)
        key = self._core.key(target.resource, target.at, target.name)
        stored = self._core.store.get(key)
        if stored is None:
            raise not_found(target.resource.plural, target.resource.group, target.name)
        document = load_any(request.body)
        if target.subresource == "scale":
            assert target.resource.scale is not None
            scale = self._patched(target, scale_of(target.resource.scale, stored.object), media, document)
            return self._writer.scale(target, scale, options)
        obj = self._patched(target, stored.object, media, document)
        self._check_place(target, stored, obj)
        obj, warnings = self._decoded(target, obj, options)
        if target.resource.update_needs_version and not obj["metadata"].get("resourceVersion"):
            raise version_required(target)
        return self._writer.update(target, key, stored, obj, options, warnings)

    def _decoded(self, target: Target, obj: Object, options: Options) -> tuple[Object, tuple[str, ...]]:
        resource = target.resource
        kind, version = obj.get("kind"), obj.get("apiVersion")
        if resource.custom is None and (kind, version) != _stored_kind(resource):
            raise unusable_patch(obj, f'no kind "{kind}" is registered for version "{version}"')
        try:
            return self._admission.decoded(resource, obj, options.field_validation)
        except UndecodableError as error:
            raise unusable_patch(obj, error.why) from error

    def _patched(self, target: Target, obj: Object, media: str, document: Any) -> Object:
        if media == JSON_PATCH:
            patched = json_patch(obj, document)
        elif not isinstance(document, dict):
            raise bad_request("a patch of this type must be an object")
        elif media == MERGE_PATCH:
            patched = copied(merge_patch(obj, document))
        else:
            patched = strategic_patch(obj, document, self._admission.schema_of(target.resource))
        if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
            raise bad_request("the patched object has no metadata")
        return patched

    def _check_place(self, target: Target, stored: Stored, obj: Object) -> None:
        meta, was = obj["metadata"], stored.object["metadata"]
        if meta.get("name") != was["name"]:
            raise bad_request(
                f"the name of the object ({meta.get('name')}) does not match the name on the URL ({was['name']})"
            )
        if meta.get("namespace") != was.get("namespace"):
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        if target.resource.custom is not None:
            self._admission.check_kind(target.resource, obj)

    def _apply(self, target: Target, request: Request, options: Options) -> Written:
        assert target.name is not None
        resource = target.resource
        if "fieldManager" not in request.query:
            raise _manager_required()
        wanted = load(request.body, yaml_too=True)
        self._admission.check_kind(resource, wanted)
        meta = wanted.setdefault("metadata", {})
        managed.check_apply_document(wanted)
        if meta.setdefault("name", target.name) != target.name:
            raise bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({target.name})"
            )
        namespace = target.namespace
        if namespace is not None and meta.setdefault("namespace", namespace) != namespace:
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        key = self._core.key(resource, target.at, target.name)
        stored = self._core.store.get(key)
        if stored is None and target.subresource:
            raise not_found(resource.plural, resource.group, target.name)
        wanted = self._typed(target, wanted)
        obj = managed.apply(
            None if stored is None else stored.object,
            wanted,
            options.manager,
            force=options.force,
            moment=self._core.timestamp(),
            schema=self._admission.schema_of(resource),
            subresource=target.subresource,
        )
        if stored is None:
            written = self._writer.create_applied(target, obj, options)
        else:
            obj["metadata"].setdefault("resourceVersion", stored.object["metadata"]["resourceVersion"])
            if meta.get("resourceVersion"):
                obj["metadata"]["resourceVersion"] = meta["resourceVersion"]
            written = self._writer.apply(target, key, stored, copied(obj), options)
        return written

    def _typed(self, target: Target, wanted: Object) -> Object:
        """An apply names known fields only, whatever the field validation."""
        resource = target.resource
        named = f"{wanted['metadata'].get('namespace', '')}/{target.name}; {resource.api_version}"
        try:
            wanted, _ = self._admission.decoded(resource, wanted, "Strict")
        except UndecodableError as error:
            fields = "".join(f".{path}: field not declared in schema" for path in error.unknown[:1])
            head = f"failed to create typed patch object ({named}, Kind={resource.kind}): "
            raise internal(head + (fields or error.why)) from error
        return wanted


def _stored_kind(resource: Resource) -> tuple[str, str]:
    return resource.kind, "v1" if resource.stored_as else resource.api_version


def _manager_required() -> ApiError:
    cause = {
        "reason": "FieldValueRequired",
        "message": "Required value: is required for apply patch",
        "field": "fieldManager",
    }
    message = 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
    details = {"group": "meta.k8s.io", "kind": "PatchOptions", "causes": [cause]}
    return ApiError(422, "Invalid", message, details=details)
