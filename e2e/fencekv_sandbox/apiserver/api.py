"""The API server without I/O: requests in, answers out, watches that are polled.

Invariants:
  * `handle` never raises for what a client sent, and never waits.
  * A request is handled as a whole before the next one: what it read is what it wrote upon.
  * All consequences of a write (dependents, namespaces, definitions) are committed before it is answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Final

from . import discovery, openapi, tokens
from .admission import Admission
from .core import Core
from .decoding import BODY_BYTES_MAX, document_of, load
from .errors import (
    ApiError,
    PageNotFound,
    field_not_supported,
    invalid,
    method_not_allowed,
    not_found,
)
from .garbage import Collector
from .message import Request, Response, Target, answer, parse_target, text_answer
from .patching import Patcher
from .reads import Reader, list_meta, number_of
from .resources import DEFINITIONS
from .scales import scale_of
from .store import Log, Object, Snapshot
from .watch import Watcher
from .writes import Options, Writer, Written, stored_words

_METHODS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_HEALTH: Final = frozenset({"/healthz", "/livez", "/readyz"})


class ApiServer:
    """An API server in memory, with an optional log below it.

    `now` and `new_uid` are its only sources of time and chance. `collect_owners` false leaves
    ownerReferences alone, as a control plane without a controller manager does.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        new_uid: Callable[[], str],
        log: Log | None = None,
        collect_owners: bool = True,
    ) -> None:
        self.core = Core(now=now, new_uid=new_uid, log=log)
        self._admission = Admission(self.core)
        self._reader = Reader(self.core)
        self._writer = Writer(self.core, self._admission)
        self._patcher = Patcher(self.core, self._admission, self._writer)
        self._collector = Collector(self.core, self._writer, owners=collect_owners)
        self._snapshot: Snapshot | None = None  # What stale lists show.
        self._openapi: tuple[int, dict[str, Response]] = (-1, {})
        self._collector.resume()

    # Entry points

    def handle(self, request: Request) -> Response:
        """Answer one request that is not a watch."""
        try:
            return self._route(request)
        except ApiError as error:
            headers = tuple(error.headers.items())
            return answer(error.document(), error.code, headers)
        except PageNotFound:
            return text_answer("404 page not found\n", 404)

    def watch(self, request: Request) -> Watcher:
        """Open a watch; raises ApiError if it is refused before its stream begins."""
        try:
            target = parse_target(request.path, self.core.registry)
        except PageNotFound as error:
            raise ApiError(404, "NotFound", "the server could not find the requested resource") from error
        return self._reader.watch(target, request)

    @staticmethod
    def is_watch(request: Request) -> bool:
        """Whether the request wants a stream."""
        return request.method == "GET" and request.flag("watch")

    def target_of(self, request: Request) -> Target | None:
        """The resource that a request is about, None if it is about none."""
        try:
            return parse_target(request.path, self.core.registry)
        except (PageNotFound, ApiError):
            return None

    def remember_for_stale_lists(self) -> None:
        """Lists asked to be stale will show the objects as they are now."""
        self._snapshot = self.core.store.snapshot()

    def stale_list(self, request: Request) -> Response:
        """Answer a list (or a get with resourceVersion=0) from the remembered state, as a lagging cache."""
        if self._snapshot is None:
            self.remember_for_stale_lists()
        assert self._snapshot is not None
        try:
            target = parse_target(request.path, self.core.registry)
            return self._reader.stale(target, request, self._snapshot)
        except ApiError as error:
            return answer(error.document(), error.code)

    # Routing

    def _route(self, request: Request) -> Response:
        if len(request.body) > BODY_BYTES_MAX:
            message = f"Request entity too large: limit is {BODY_BYTES_MAX}"
            raise ApiError(413, "RequestEntityTooLarge", message)
        path = request.path.rstrip("/")
        fixed = self._fixed(path, request)
        if fixed is not None:
            return fixed
        target = parse_target(request.path, self.core.registry)
        if request.method in {"GET", "HEAD"}:
            return self._reader.read(target, request)
        verb = _METHODS.get(request.method)
        if verb is None:
            raise method_not_allowed()
        try:
            return self._write(verb, target, request)
        finally:
            self._collector.settle()

    def _fixed(self, path: str, request: Request) -> Response | None:
        """Documents that are no objects."""
        registry = self.core.registry
        if path in _HEALTH:
            return text_answer("ok")
        if path == "/version":
            return answer(discovery.VERSION)
        if path in {"/api", "/apis"} and discovery.wants_aggregated(request.headers.get("accept", "")):
            document = discovery.aggregated(registry, core=path == "/api")
            body = answer(document).body
            return Response(status=200, body=body, content_type=discovery.AGGREGATED_TYPE)
        if path == "/api":
            return answer(discovery.core_versions())
        if path == "/apis":
            return answer(discovery.group_list(registry))
        if path.startswith("/openapi/v3"):
            return self._openapi_document(path)
        return self._group_document(path)

    def _openapi_document(self, path: str) -> Response:
        """Made anew only when what is served has changed: that takes its time."""
        registry = self.core.registry
        if self._openapi[0] != registry.generation:
            self._openapi = (registry.generation, {})
        known = self._openapi[1]
        if path not in known:
            if path == "/openapi/v3":
                found: Object | None = openapi.paths_document(registry)
            else:
                _, _, rest = path.partition("/openapi/v3/")
                root, _, group_version = rest.partition("/")
                group, _, version = group_version.rpartition("/")
                served = root == ("apis" if group else "api")
                found = openapi.group_document(registry, group, version) if served else None
            if found is None:
                raise PageNotFound(path)
            known[path] = answer(found)
        return known[path]

    def _group_document(self, path: str) -> Response | None:
        """Discovery of one group."""
        registry = self.core.registry
        found: Object | None = None
        match path.strip("/").split("/"):
            case ["api", version]:
                found = discovery.resource_list(registry, "", version)
            case ["apis", group]:
                found = discovery.group_document(registry, group)
            case ["apis", group, version]:
                found = discovery.resource_list(registry, group, version)
            case _:
                return None
        if found is None:
            raise PageNotFound(path)
        return answer(found)

    # Writes

    def _write(self, verb: str, target: Target, request: Request) -> Response:
        if target.name is None and verb == "delete" and (target.namespace or not target.resource.namespaced):
            return self._delete_collection(target, request)
        if (target.name is None) != (verb == "create") and target.subresource is None:
            raise method_not_allowed()
        if target.resource.namespaced and target.namespace is None:
            raise method_not_allowed()
        if verb not in target.resource.verbs and target.subresource is None:
            raise method_not_allowed()
        if target.subresource in {"binding", "eviction", "token", "log"}:
            return self._action(verb, target, request)
        if verb == "delete":
            return self._delete(target, request)
        view = self._reader.view(target, request)
        if target.resource.kind in {"SelfSubjectAccessReview", "SelfSubjectReview"}:
            return answer(tokens.review(target.resource.kind, document_of(request), request.user), 201)
        options = Options.of(request)
        written = self._written(verb, target, request, options)
        if target.resource.storage == DEFINITIONS and not options.dry_run:
            self._collector.settle()
            self._collector.established(written.stored.key.name)
        headers = tuple(("Warning", f"299 - {json.dumps(text)}") for text in written.warnings)
        if target.subresource == "scale":
            assert target.resource.scale is not None
            return answer(scale_of(target.resource.scale, written.stored.object), 200, headers)
        status = 201 if written.created else 200
        return Response(status=status, body=view.one(written.stored), headers=headers)

    def _written(self, verb: str, target: Target, request: Request, options: Options) -> Written:
        if verb == "patch":
            return self._patcher.patch(target, request, options)
        obj = stored_words(target, document_of(request, target.resource.kind))
        if verb == "create":
            if target.subresource is not None:
                raise method_not_allowed()
            return self._writer.create(target, obj, options)
        if target.subresource == "scale":
            return self._writer.scale(target, obj, options)
        return self._writer.replace(target, obj, options)

    def _delete(self, target: Target, request: Request) -> Response:
        if target.subresource is not None:
            raise method_not_allowed()
        document = _delete_options(request)
        options = Options.of(request, document)
        outcome, gone = self._writer.delete(target, document, options)
        if not gone and not options.dry_run:
            self._collector.deleting(target)
        self._collector.settle()
        if outcome.get("kind") == "Status":
            return answer(outcome)
        view = self._reader.view(target, request)
        return answer(view.document(outcome))

    def _delete_collection(self, target: Target, request: Request) -> Response:
        resource = target.resource
        if "deletecollection" not in resource.verbs:
            raise method_not_allowed()
        document = _delete_options(request)
        options = Options.of(request, document)
        predicate = self._reader.predicate(target, request)
        deleted = []
        for stored in self.core.store.list(resource.storage, target.namespace):
            if predicate is not None and not predicate(stored.object):
                continue
            one = Target(
                resource=resource,
                namespace=stored.key.namespace or None,
                name=stored.key.name,
                subresource=None,
            )
            _, gone = self._writer.delete(one, document, options)
            if not gone and not options.dry_run:
                self._collector.deleting(one)
            deleted.append(stored)
        version = self.core.store.version
        self._collector.settle()
        return Response(status=200, body=self._reader.view(target, request).many(deleted, list_meta(version)))

    def _action(self, verb: str, target: Target, request: Request) -> Response:
        """Subresources that do something instead of being something."""
        if verb != "create":
            raise method_not_allowed()
        assert target.name is not None
        resource = target.resource
        key = self.core.key(resource, target.at, target.name)
        stored = self.core.store.get(key)
        if stored is None:
            raise not_found(resource.plural, resource.group, target.name)
        document = document_of(request)
        whole = Target(resource=resource, namespace=target.namespace, name=target.name, subresource=None)
        if target.subresource == "token":
            return answer(tokens.request(stored, document, self.core), 201)
        if target.subresource == "eviction":
            deletion = document.get("deleteOptions") or {}
            _, gone = self._writer.delete(whole, deletion, Options.of(request, deletion))
            if not gone:
                self._collector.deleting(whole)
            return answer(_SUCCESS, 201)
        if target.subresource == "binding":
            node = (document.get("target") or {}).get("name")
            bound = json.loads(stored.encoded)
            bound["spec"]["nodeName"] = node
            # The sandbox's scheduler binds like any other client.
            self._writer.update(whole, key, stored, bound, Options.of(request))
            return answer(_SUCCESS, 201)
        raise method_not_allowed()


_SUCCESS: Final = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _delete_options(request: Request) -> Object:
    document = load(request.body, yaml_too=True) if request.body else {}
    for name in ("propagationPolicy", "gracePeriodSeconds"):
        if name in request.query:
            text = request.query[name]
            document[name] = number_of(text, name) if name == "gracePeriodSeconds" else text
    policy = document.get("propagationPolicy")
    if policy not in {None, "Foreground", "Background", "Orphan"}:
        known = ["Foreground", "Background", "Orphan", "nil"]
        cause = field_not_supported("propagationPolicy", policy, known)
        raise invalid("DeleteOptions", "meta.k8s.io", "", [cause])
    return document
