"""Requests and answers without I/O, and what a path points at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .errors import PageNotFound, not_found, resource_not_found
from .resources import Registry, Resource
from .store import encode

Object = dict[str, Any]

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request. Header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    user: str = "system:admin"

    @staticmethod
    def make(
        method: str,
        target: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        user: str = "system:admin",
    ) -> Request:
        """A request from a URL's path with its query, and a JSON document."""
        parts = urlsplit(target)
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if body is not None:
            given.setdefault("content-type", JSON_TYPE)
        return Request(
            method=method,
            path=unquote(parts.path),
            query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers=given,
            body=b"" if body is None else body if isinstance(body, bytes) else encode(body),
            user=user,
        )

    def flag(self, name: str) -> bool:
        """Whether a query parameter says yes."""
        return self.query.get(name, "").lower() in {"true", "1", "t"}

    @property
    def user_agent(self) -> str:
        """Who says to be asking."""
        return self.headers.get("user-agent", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP answer."""

    status: int
    body: bytes = b""
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()

    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.body)


def answer(document: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """A JSON answer."""
    return Response(status=status, body=encode(document), headers=headers)


def text_answer(text: str, status: int = 200) -> Response:
    """A plain-text answer."""
    return Response(status=status, body=text.encode(), content_type="text/plain; charset=utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a path points at."""

    resource: Resource
    namespace: str | None  # None: all namespaces, or cluster scope.
    name: str | None  # None: the collection.
    subresource: str | None  # None: the object itself.

    @property
    def at(self) -> str:
        """The namespace as the store keeps it."""
        return self.namespace or ""


def parse_target(path: str, registry: Registry) -> Target:
    """Find the resource that a path below `/api` or `/apis` names."""
    steps = path.strip("/").split("/")
    if steps[0] == "api" and len(steps) >= 3:
        group, version, rest = "", steps[1], steps[2:]
    elif steps[0] == "apis" and len(steps) >= 4:
        group, version, rest = steps[1], steps[2], steps[3:]
    else:
        raise PageNotFound(path)
    namespace: str | None = None
    inside = len(rest) >= 3 and rest[0] == "namespaces"
    if inside and not (not group and rest[2] in {"status", "finalize"} and len(rest) == 3):
        namespace, rest = rest[1], rest[2:]
    resource = registry.find(group, version, rest[0])
    if resource is None and registry.serves(group, version):
        raise resource_not_found()
    if resource is None or len(rest) > 3 or not all(rest):
        raise PageNotFound(path)
    if (namespace is not None) != resource.namespaced and (namespace is not None or len(rest) > 1):
        raise PageNotFound(path)
    subresource = rest[2] if len(rest) > 2 else None
    name = rest[1] if len(rest) > 1 else None
    if subresource is not None and subresource not in resource.subresources:
        if resource.custom is None:
            raise resource_not_found()
        raise not_found(resource.plural, resource.group, str(name))
    return Target(resource=resource, namespace=namespace, name=name, subresource=subresource)
