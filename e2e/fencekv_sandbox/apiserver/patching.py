"""The PATCH verb in its four dialects."""

from __future__ import annotations

import copy
from typing import Any

from . import managed
from .admission import Admission
from .core import Core
from .decoding import PATCH_TYPES, load, load_any, media_type
from .errors import ApiError, bad_request, not_found, unsupported_media_type
from .message import Request, Target
from .patches import json_patch, merge_patch
from .scales import scale_of
from .store import Object, Stored
from .strategic import strategic_patch
from .writes import Options, Writer, Written

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
            raise unsupported_media_type(supported)
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
        if not custom and obj.get("kind") != stored.object["kind"]:
            raise bad_request("the kind of an object cannot be patched")
        return self._writer.update(target, key, stored, obj, options)

    def _patched(self, target: Target, obj: Object, media: str, document: Any) -> Object:
        if media == JSON_PATCH:
            patched = json_patch(obj, document)
        elif not isinstance(document, dict):
            raise bad_request("a patch of this type must be an object")
        elif media == MERGE_PATCH:
            patched = copy.deepcopy(merge_patch(obj, document))
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
        if target.namespace is not None:
            if meta.setdefault("namespace", target.namespace) != target.namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
        key = self._core.key(resource, target.at, target.name)
        stored = self._core.store.get(key)
        if stored is None and target.subresource:
            raise not_found(resource.plural, resource.group, target.name)
        wanted, warnings = self._admission.decoded(resource, wanted, options.field_validation)
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
            written = self._writer.apply(target, key, stored, copy.deepcopy(obj), options)
        return Written(stored=written.stored, created=written.created, warnings=warnings)


def _manager_required() -> ApiError:
    cause = {
        "reason": "FieldValueRequired",
        "message": "Required value: is required for apply patch",
        "field": "fieldManager",
    }
    message = 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
    details = {"group": "meta.k8s.io", "kind": "PatchOptions", "causes": [cause]}
    return ApiError(422, "Invalid", message, details=details)
