"""`/openapi/v3`: the schemas that kubectl reads for validation, for patches and for `explain`.

Invariants:
  * A document names every type that its schemas refer to.
  * The hash in a document's address changes with its contents.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from .discovery import VERSION
from .resources import Registry, Resource
from .schema import DEFINITIONS_PREFIX, META, builtin_types
from .store import Object, encode

_REFERENCE: Final = re.compile(rb'"#/components/schemas/([^"]+)"')
_META_REFERENCE: Final = {"$ref": f"{DEFINITIONS_PREFIX}{META}ObjectMeta"}
_TEXT: Final = {"type": "string"}


def paths_document(registry: Registry) -> Object:
    """`/openapi/v3`: where each group's document is."""
    paths: Object = {}
    for group, versions in registry.groups().items():
        for version in versions:
            name = f"apis/{group}/{version}" if group else f"api/{version}"
            body = encode(group_document(registry, group, version))
            mark = hashlib.sha256(body).hexdigest()[:32].upper()
            paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={mark}"}
    return {"paths": paths}


def group_document(registry: Registry, group: str, version: str) -> Object | None:
    """The OpenAPI document of one group and version; None: not served."""
    found = [one for one in registry.all() if (one.group, one.version) == (group, version)]
    if not found:
        return None
    schemas: Object = {}
    paths: Object = {}
    for resource in found:
        name = _schema_name(resource)
        if name is None:
            continue
        schemas[name] = _schema(resource, name)
        _add_paths(paths, resource, name)
    _close(schemas)
    return {
        "openapi": "3.0.0",
        "info": {"title": "FenceKV sandbox", "version": VERSION["gitVersion"]},
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _schema_name(resource: Resource) -> str | None:
    if resource.custom is not None:
        reverse = ".".join(reversed(resource.group.split(".")))
        return f"{reverse}.{resource.version}.{resource.kind}"
    for name, schema in builtin_types().items():
        for one in schema.get("x-kubernetes-group-version-kind") or ():
            if (one["group"], one["version"], one["kind"]) == (
                resource.group,
                resource.version,
                resource.kind,
            ):
                return name
    return None


def _schema(resource: Resource, name: str) -> Object:
    if resource.custom is None:
        return builtin_types()[name]
    given = resource.custom.schema
    properties = {
        **(given.get("properties") or {}),
        "apiVersion": _TEXT,
        "kind": _TEXT,
        "metadata": _META_REFERENCE,
    }
    return {
        **given,
        "type": "object",
        "properties": properties,
        "x-kubernetes-group-version-kind": [
            {"group": resource.group, "version": resource.version, "kind": resource.kind}
        ],
    }


def _parameter(name: str, kind: str = "string") -> Object:
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def _add_paths(paths: Object, resource: Resource, name: str) -> None:
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    where = (
        f"{base}/namespaces/{{namespace}}/{resource.plural}"
        if resource.namespaced
        else f"{base}/{resource.plural}"
    )
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    content = {"application/json": {"schema": {"$ref": DEFINITIONS_PREFIX + name}}}
    answer = {"200": {"description": "OK", "content": content}}
    written = [_parameter("dryRun"), _parameter("fieldManager"), _parameter("fieldValidation")]

    def operation(action: str, parameters: list[Object], *, body: bool = False) -> Object:
        document: Object = {
            "parameters": parameters,
            "responses": answer,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": kind,
        }
        if body:
            document["requestBody"] = {"content": content}
        return document

    paths[where] = {
        "get": operation("list", [_parameter("labelSelector"), _parameter("fieldSelector")]),
        "post": operation("post", written, body=True),
    }
    paths[where + "/{name}"] = {
        "get": operation("get", []),
        "put": operation("put", written, body=True),
        "patch": operation("patch", [*written, _parameter("force", "boolean")], body=True),
        "delete": operation("delete", [_parameter("dryRun")]),
    }


def _close(schemas: Object) -> None:
    """Add every type that is referred to."""
    types: dict[str, Any] = builtin_types()
    waiting = list(schemas.values())
    while waiting:
        for match in _REFERENCE.findall(encode(waiting.pop())):
            name = match.decode()
            if name not in schemas:
                schemas[name] = types[name]
                waiting.append(types[name])
