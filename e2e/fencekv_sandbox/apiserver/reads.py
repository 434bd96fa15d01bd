"""Reading: single objects, lists in pages and at versions, watches.

Invariants:
  * A list shows one state of the store, all its pages included.
  * A read without resourceVersion sees every commit that was answered before it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Final

from .core import Core
from .errors import (
    ApiError,
    Cause,
    bad_request,
    expired,
    field_forbidden,
    field_invalid,
    invalid,
    method_not_allowed,
    not_found,
    too_large_version,
)
from .message import Request, Response, Target, answer
from .scales import scale_of
from .selectors import Predicate, both, field_selector, label_selector
from .store import Object, Snapshot, Stored, listed
from .views import View, wanted_form
from .watch import Watcher

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"


class Reader:
    """All verbs that change nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def view(self, target: Target, request: Request) -> View:
        """How the request wants to see objects."""
        return View(
            resource=target.resource,
            form=wanted_form(request.headers.get("accept", "")),
            now=self._core.now,
            include_object=request.query.get("includeObject") or "Metadata",
        )

    def read(self, target: Target, request: Request) -> Response:
        """GET of an object, a subresource or a collection."""
        resource = target.resource
        verb = "list" if target.name is None else "get"
        if verb not in resource.verbs:
            raise method_not_allowed()
        view = self.view(target, request)
        if target.name is None:
            return self._list(target, request, view)
        key = self._core.key(resource, target.at, target.name)
        stored = self._core.store.get(key)
        if stored is None:
            raise not_found(resource.plural, resource.group, target.name)
        if target.subresource == "scale":
            assert resource.scale is not None
            return answer(scale_of(resource.scale, stored.object))
        if target.subresource in {"eviction", "token", "binding", "finalize"}:
            raise method_not_allowed()
        return Response(status=200, body=view.one(stored))

    def predicate(self, target: Target, request: Request) -> Predicate | None:
        """What the request's selectors select; None: everything."""
        return both(
            label_selector(request.query.get("labelSelector", "")),
            field_selector(
                request.query.get("fieldSelector", ""),
                target.resource.selectable,
                plain=not target.resource.fields and target.resource.custom is None,
            ),
        )

    def _list(self, target: Target, request: Request, view: View) -> Response:
        predicate = self.predicate(target, request)
        version, start, items = self._page(target, request)
        if predicate is not None:
            items = [one for one in items if predicate(one.object)]
        if start is not None:
            items = [one for one in items if (one.key.namespace, one.key.name) > start]
        metadata = list_meta(version)
        limit = number_of(request.query.get("limit"), "limit") or 0
        if limit and len(items) > limit:
            last = items[limit - 1].key
            metadata["continue"] = _continue_token(version, last.namespace, last.name)
            if predicate is None:
                metadata["remainingItemCount"] = len(items) - limit
            items = items[:limit]
        return Response(status=200, body=view.many(items, metadata))

    def _page(self, target: Target, request: Request) -> tuple[int, tuple[str, str] | None, list[Stored]]:
        """The version to show, where to go on, and all objects at that version."""
        store, storage = self._core.store, target.resource.storage
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

    def stale(self, target: Target, request: Request, snapshot: Snapshot) -> Response:
        """The answer of a cache that has seen nothing since the snapshot."""
        resource, view = target.resource, self.view(target, request)
        if target.name is not None:
            stored = snapshot.shelves.get(resource.storage, {}).get((target.at, target.name))
            if stored is None:
                raise not_found(resource.plural, resource.group, target.name)
            return Response(status=200, body=view.one(stored))
        predicate = self.predicate(target, request)
        items = listed(snapshot, resource.storage, target.namespace)
        items = [one for one in items if predicate is None or predicate(one.object)]
        return Response(status=200, body=view.many(items, list_meta(snapshot.version)))

    # Watches

    def watch(self, target: Target, request: Request) -> Watcher:
        """Open a watch."""
        resource, store = target.resource, self._core.store
        if "watch" not in resource.verbs:
            raise method_not_allowed()
        view = self.view(target, request)
        predicate = self.predicate(target, request)
        initial = _wants_initial(request)
        asked = request.query.get("resourceVersion", "")
        start = _version(asked)
        seconds = number_of(request.query.get("timeoutSeconds"), "timeoutSeconds")
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


def _matcher(target: Target, predicate: Predicate | None) -> Callable[[Stored], bool]:
    namespace, name = target.namespace, target.name

    def matches(stored: Stored) -> bool:
        return (
            (namespace is None or stored.key.namespace == namespace)
            and (name is None or stored.key.name == name)
            and (predicate is None or predicate(stored.object))
        )

    return matches


def list_meta(version: int) -> Object:
    """The metadata of a list."""
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


def number_of(text: str | None, name: str) -> int | None:
    """A query parameter as a number, None where it is absent or empty."""
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
