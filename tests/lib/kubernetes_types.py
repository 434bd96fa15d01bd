"""Reads names and types of the built-in kinds' fields from a real API server, for the embedded one.

    KUBEBUILDER_ASSETS=... python tests/lib/kubernetes_types.py

starts a control plane and writes e2e/fencekv_sandbox/apiserver/kubernetes.json. Only facts of the wire format are
kept: no descriptions.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp

from fencekv_sandbox import apiserver
from fencekv_sandbox.apiserver.resources import BUILTIN
from fencekv_sandbox.controlplane import control_plane

Object = dict[str, Any]

TARGET = Path(apiserver.__file__).with_name("kubernetes.json")
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
MORE = {
    ("policy", "v1", "Eviction"),
    ("authentication.k8s.io", "v1", "TokenRequest"),
    ("autoscaling", "v1", "Scale"),
}
_NAMES = "APIResourceList DeleteOptions ListMeta ObjectMeta PartialObjectMetadata Status WatchEvent"
MORE_NAMES = {META + name for name in _NAMES.split()}
KEPT = {"type", "format", "required", "$ref", "enum"}
REFERENCE = re.compile(r'"#/components/schemas/([^"]+)"')


def wanted_kinds() -> set[tuple[str, str, str]]:
    return MORE | {(one.group, one.version, one.kind) for one in BUILTIN}


def stripped(schema: Any, kinds: set[tuple[str, str, str]]) -> Any:
    """The schema without prose and without defaults that only say zero."""
    if not isinstance(schema, dict):
        return schema
    if len(schema.get("allOf", ())) == 1:
        inner = stripped(schema["allOf"][0], kinds)
        return {**inner, **{name: value for name, value in schema.items() if name.startswith("x-")}}
    kept: Object = {}
    for name, value in schema.items():
        if name == "properties":
            kept[name] = {field: stripped(one, kinds) for field, one in value.items()}
        elif name in {"items", "additionalProperties"}:
            kept[name] = stripped(value, kinds)
        elif name in {"oneOf", "anyOf"}:
            kept[name] = [stripped(one, kinds) for one in value]
        elif name == "x-kubernetes-group-version-kind":
            named = [one for one in value if (one["group"], one["version"], one["kind"]) in kinds]
            kept[name] = named or value[:1]
        elif name in KEPT or name.startswith("x-") or (name == "default" and value):
            kept[name] = value
    return kept


def selected(schemas: Object) -> Object:
    """The wanted kinds and every type that they refer to."""
    kinds = wanted_kinds()
    waiting = [
        name
        for name, schema in schemas.items()
        if name in MORE_NAMES
        or any(
            (one["group"], one["version"], one["kind"]) in kinds
            for one in schema.get("x-kubernetes-group-version-kind", ())
        )
    ]
    chosen: Object = {}
    while waiting:
        name = waiting.pop()
        if name not in chosen:
            chosen[name] = stripped(schemas[name], kinds)
            waiting += REFERENCE.findall(json.dumps(chosen[name]))
    return dict(sorted(chosen.items()))


async def read_types(session: aiohttp.ClientSession) -> Object:
    """The types as the server at the other end describes them."""
    async with session.get("/openapi/v3") as response:
        paths = (await response.json(content_type=None))["paths"]
    schemas: Object = {}
    for group, version, _ in sorted(wanted_kinds()):
        url = paths[f"apis/{group}/{version}" if group else f"api/{version}"]["serverRelativeURL"]
        async with session.get(url) as response:
            document = await response.json(content_type=None)
        schemas.update(document["components"]["schemas"])
    return selected(schemas)


def text_of(types: Object) -> str:
    """One line a type."""
    lines = (
        json.dumps(name) + ":" + json.dumps(one, separators=(",", ":"), sort_keys=True)
        for name, one in types.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


async def main() -> None:
    async with control_plane() as plane:
        headers = {"Authorization": f"Bearer {plane.token}"}
        connector = aiohttp.TCPConnector(ssl=plane.ssl_context())
        async with aiohttp.ClientSession(plane.url, headers=headers, connector=connector) as session:
            types = await read_types(session)
    TARGET.write_text(text_of(types), encoding="utf-8")
    print(f"{len(types)} types written to {TARGET}")


if __name__ == "__main__":
    asyncio.run(main())
