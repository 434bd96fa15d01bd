"""The API server without I/O: requests in, answers out, watches that are polled.

Invariants:
  * `handle` never raises for what a client sent, and never waits.
  * A request is handled as a whole before the next one: what it read is what it wrote upon.
  * All consequences of a write (dependents, namespaces, definitions) are committed before it is answered.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from . import discovery, openapi, tokens
from .admission import Admission
from .core import Core
from .decoding import BODY_BYTES_MAX, document_of, load
from .errors import (
    ApiError,
    Cause,
    PageNotFound,
    bad_request,
    expired,
    field_forbidden,
    field_invalid,
    field_not_supported,
    invalid,
    method_not_allowed,
    not_found,
    too_large_version,
)
from .garbage import Collector
from .message import Request, Response, Target, answer, parse_target, text_answer
from .patching import Patcher
from .resources import DEFINITIONS
from .scales import scale_of
from .selectors import Predicate, both, field_selector, label_selector
from .store import Log, Object, Snapshot, Stored, listed
from .views import View, wanted_form
from .watch import Watcher
from .writes import Options, Writer, Written, stored_words

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"
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
        self._writer = Writer(self.core, self._admission)
        self._patcher = Patcher(self.core, self._admission, self._writer)
        self._collector = Collector(self.core, self._writer, owners=collect_owners)
        self._snapshot: Snapshot | None = None  # What stale lists show.
        self.core.created.clear()

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
        return self._open_watch(target, request)

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
            view = self._view(target, request)
            if target.name is not None:
                shelf = self._snapshot.shelves.get(target.resource.storage, {})
                stored = shelf.get((target.at, target.name))
                if stored is None:
                    raise not_found(target.resource.plural, target.resource.group, target.name)
                return Response(status=200, body=view.one(stored))
            items = listed(self._snapshot, target.resource.storage, target.namespace)
            predicate = self._predicate(target, request)
            items = [one for one in items if predicate is None or predicate(one.object)]
            return Response(status=200, body=view.many(items, _list_meta(self._snapshot.version)))
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
            return self._read(target, request)
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
        if path == "/openapi/v3":
            return answer(openapi.paths_document(registry))
        steps = path.strip("/").split("/")
        document_found: Object | None = None
        match steps:
            case ["api", version]:
                document_found = discovery.resource_list(registry, "", version)
            case ["apis", group]:
                document_found = discovery.group_document(registry, group)
            case ["apis", group, version]:
                document_found = discovery.resource_list(registry, group, version)
            case ["openapi", "v3", "api", version]:
                document_found = openapi.group_document(registry, "", version)
            case ["openapi", "v3", "apis", group, version]:
                document_found = openapi.group_document(registry, group, version)
            case _:
                return None
        if document_found is None:
            raise PageNotFound(path)
        return answer(document_found)

    # Reads

    def _view(self, target: Target, request: Request) -> View:
        return View(
            resource=target.resource,
            form=wanted_form(request.headers.get("accept", "")),
            now=self.core.now,
            include_object=request.query.get("includeObject") or "Metadata",
        )

    def _read(self, target: Target, request: Request) -> Response:
        resource = target.resource
        verb = "list" if target.name is None else "get"
        if verb not in resource.verbs:
            raise method_not_allowed()
        view = self._view(target, request)
        if target.name is None:
            return self._list(target, request, view)
        key = self.core.key(resource, target.at, target.name)
        stored = self.core.store.get(key)
        if stored is None:
            raise not_found(resource.plural, resource.group, target.name)
        if target.subresource == "scale":
            assert resource.scale is not None
            return answer(scale_of(resource.scale, stored.object))
        if target.subresource in {"eviction", "token", "binding", "finalize"}:
            raise method_not_allowed()
        return Response(status=200, body=view.one(stored))

    def _predicate(self, target: Target, request: Request) -> Predicate | None:
        return both(
            label_selector(request.query.get("labelSelector", "")),
            field_selector(
                request.query.get("fieldSelector", ""),
                target.resource.selectable,
                plain=not target.resource.fields and target.resource.custom is None,
            ),
        )

    def _list(self, target: Target, request: Request, view: View) -> Response:
        predicate = self._predicate(target, request)
        version, start, items = self._page(target, request)
        if predicate is not None:
            items = [one for one in items if predicate(one.object)]
        if start is not None:
            items = [one for one in items if (one.key.namespace, one.key.name) > start]
        metadata = _list_meta(version)
        limit = _number(request.query.get("limit"), "limit") or 0
        if limit and len(items) > limit:
            last = items[limit - 1].key
            metadata["continue"] = _continue_token(version, last.namespace, last.name)
            if predicate is None:
                metadata["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        return Response(status=200, body=view.many(items, metadata))

    def _page(self, target: Target, request: Request) -> tuple[int, tuple[str, str] | None, list[Stored]]:
        """The version to show, where to go on, and all objects at that version."""
        store, storage = self.core.store, target.resource.storage
        token = request.query.get("continue")
        asked = request.query.get("resourceVersion", "")
        rule = request.query.get("resourceVersionMatch", "")
        _check_match(asked, rule, token)
        if token:
            if asked not in {"", "0"}:
                raise bad_request("specifying resource version is not allowed when using continue")
            version, namespace, name = _parse_continue(token)
            items = store.list_at(storage, target.namespace, version)
            if items is None:
                raise expired(
                    "The provided continue parameter is too old to display a consistent list result. You can "
                    "start a new list without the continue parameter, or use the continue token in this "
                    "response to retrieve the remainder of the results."
                )
            return version, (namespace, name), items
        wanted = _version(asked)
        if wanted > store.version:
            raise too_large_version(wanted, store.version)
        if rule == "Exact":
            items = store.list_at(storage, target.namespace, wanted)
            if items is None:
                raise expired("The resourceVersion for the provided list is too old.")
            return wanted, None, items
        return store.version, None, store.list(storage, target.namespace)

    # Watches

    def _open_watch(self, target: Target, request: Request) -> Watcher:
        resource, store = target.resource, self.core.store
        if "watch" not in resource.verbs:
            raise method_not_allowed()
        view = self._view(target, request)
        predicate = self._predicate(target, request)
        initial = _wants_initial(request)
        asked = request.query.get("resourceVersion", "")
        start = _version(asked)
        seconds = _number(request.query.get("timeoutSeconds"), "timeoutSeconds")
        watcher = Watcher(
            matches=_matcher(target, predicate),
            render=view.event,
            bookmark=lambda version, ended: _bookmark(view, version, initial_end=ended),
            bookmarks=request.flag("allowWatchBookmarks"),
            version=store.version,
            timeout_seconds=seconds or None,
        )
        if start > store.version:
            watcher.fail(too_large_version(start, store.version))
            return watcher
        if asked in {"", "0"} or initial:
            for stored in store.list(resource.storage, target.namespace):
                watcher.add_initial(stored)
            if initial:
                watcher.add_bookmark(initial_end=True)
        elif start < store.oldest_version:
            watcher.fail(expired(f"too old resource version: {start} ({store.oldest_version})"))
            return watcher
        else:
            for change in store.events_since(resource.storage, start):
                watcher.changed(change)
        watcher.attach(store.subscribe(resource.storage, watcher.changed))
        return watcher

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
        view = self._view(target, request)
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
        view = self._view(target, request)
        return answer(view.document(outcome))

    def _delete_collection(self, target: Target, request: Request) -> Response:
        resource = target.resource
        if "deletecollection" not in resource.verbs:
            raise method_not_allowed()
        document = _delete_options(request)
        options = Options.of(request, document)
        predicate = self._predicate(target, request)
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
        return Response(status=200, body=self._view(target, request).many(deleted, _list_meta(version)))

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


def _matcher(target: Target, predicate: Predicate | None) -> Callable[[Stored], bool]:
    namespace, name = target.namespace, target.name

    def matches(stored: Stored) -> bool:
        return (
            (namespace is None or stored.key.namespace == namespace)
            and (name is None or stored.key.name == name)
            and (predicate is None or predicate(stored.object))
        )

    return matches


def _list_meta(version: int) -> Object:
    return {"resourceVersion": str(version)}


def _bookmark(view: View, version: int, *, initial_end: bool) -> Object:
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if initial_end:
        metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
    if view.form == "table":
        return {
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": None,
            "rows": [],
        }
    if view.form == "metadata":
        return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    resource = view.resource
    return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}


def _version(text: str) -> int:
    if not text:
        return 0
    if not text.isdigit():
        cause = field_invalid("resourceVersion", text, f'strconv.ParseUint: parsing "{text}": invalid syntax')
        raise bad_request(f"invalid resource version: {cause.field}: {cause.message}")
    return int(text)


def _list_options(cause: Cause) -> ApiError:
    return invalid("ListOptions", "meta.k8s.io", "", [cause])


def _check_match(asked: str, rule: str, token: str | None) -> None:
    field = "resourceVersionMatch"
    if rule and rule not in {"Exact", "NotOlderThan"}:
        raise _list_options(field_invalid(field, rule, "supported values are Exact, NotOlderThan"))
    if rule and not asked and not token:
        raise _list_options(
            field_forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided")
        )
    if rule and token:
        raise _list_options(field_forbidden(field, "resourceVersionMatch is forbidden when continue is provided"))
    if rule == "Exact" and asked == "0":
        raise _list_options(
            field_forbidden(field, 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
        )


def _wants_initial(request: Request) -> bool:
    """Whether a watch is to begin with the state, closed by a bookmark."""
    field = "resourceVersionMatch"
    rule = request.query.get(field, "")
    if "sendInitialEvents" not in request.query:
        if rule:
            raise _list_options(
                field_forbidden(
                    field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
                )
            )
        return False
    if rule != "NotOlderThan":
        text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        raise _list_options(field_forbidden(field, text))
    return request.flag("sendInitialEvents")


def _number(text: str | None, name: str) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise bad_request(f"{name}: {text!r} is not a number") from error


def _continue_token(version: int, namespace: str, name: str) -> str:
    document = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": f"{namespace}/{name}"})
    return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")


def _parse_continue(token: str) -> tuple[int, str, str]:
    try:
        padded = token + "=" * (-len(token) % 4)
        document: Any = json.loads(base64.urlsafe_b64decode(padded))
        namespace, _, name = document["start"].partition("/")
        return int(document["rv"]), namespace, name
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad_request("continue key is not valid: illegal base64 data") from error


def _delete_options(request: Request) -> Object:
    document = load(request.body, yaml_too=True) if request.body else {}
    for name in ("propagationPolicy", "gracePeriodSeconds"):
        if name in request.query:
            text = request.query[name]
            document[name] = _number(text, name) if name == "gracePeriodSeconds" else text
    policy = document.get("propagationPolicy")
    if policy not in {None, "Foreground", "Background", "Orphan"}:
        known = ["Foreground", "Background", "Orphan", "nil"]
        cause = field_not_supported("propagationPolicy", policy, known)
        raise invalid("DeleteOptions", "meta.k8s.io", "", [cause])
    return document
