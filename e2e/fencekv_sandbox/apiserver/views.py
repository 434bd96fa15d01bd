"""Objects as a client asked to see them: whole, as metadata, or as table rows; and lists of them.

Invariants:
  * A view never changes a stored object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from . import events
from .errors import ApiError, not_acceptable
from .resources import Resource
from .store import Object, Stored, encode
from .tables import columns_of, row_of

Form = Literal["object", "table", "metadata"]
JSON_TYPES = frozenset({"application/json", "application/*", "*/*", ""})
SERVED_TYPES = ("application/json", "application/json;stream=watch")


def wanted_form(accept: str) -> Form:
    """The first form in `Accept` that is served."""
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        given = dict(part.split("=", 1) for part in parameters if "=" in part)
        if media not in JSON_TYPES:
            continue
        match given.get("as"):
            case None:
                return "object"
            case "Table" if given.get("v", "v1") == "v1":
                return "table"
            case "PartialObjectMetadata" | "PartialObjectMetadataList":
                return "metadata"
            case _:
                continue
    raise _unserved()


def _unserved() -> ApiError:
    return not_acceptable(SERVED_TYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How one request wants to see the objects of one resource."""

    resource: Resource
    form: Form
    now: Callable[[], datetime]
    include_object: str = "Metadata"

    def converted(self, obj: Object) -> Object:
        """The object in the words of this resource's version."""
        resource = self.resource
        if resource.stored_as:
            return events.to_events_k8s_io(obj)
        if obj.get("apiVersion") != resource.api_version:
            return {**obj, "apiVersion": resource.api_version}
        return obj

    def one(self, stored: Stored) -> bytes:
        """A single object."""
        if self.form == "object":
            obj = self.converted(stored.object)
            return stored.encoded if obj is stored.object else encode(obj)
        if self.form == "metadata":
            return encode(_metadata_only(stored.object))
        return encode(self._table([stored], {"resourceVersion": str(stored.version)}))

    def event(self, stored: Stored) -> bytes:
        """A single object of a watch."""
        return self.one(stored)

    def document(self, obj: Object) -> Object:
        """An object that need not be stored, as a document."""
        stored = Stored(_NOWHERE, obj, 0)
        if self.form == "object":
            return self.converted(obj)
        if self.form == "metadata":
            return _metadata_only(obj)
        return self._table([stored], {"resourceVersion": obj["metadata"].get("resourceVersion", "")})

    def many(self, items: list[Stored], metadata: Object) -> bytes:
        """A list of objects."""
        if self.form == "table":
            return encode(self._table(items, metadata))
        if self.form == "metadata":
            head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
            return encode({**head, "items": [_metadata_only(stored.object) for stored in items]})
        head = {
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind_of_list,
            "metadata": metadata,
        }
        body = b",".join(self._item(stored) for stored in items)
        return encode(head)[:-1] + b',"items":[' + body + b"]}"

    def _item(self, stored: Stored) -> bytes:
        if self.resource.custom is not None:
            return self.one(stored)
        # Items of a built-in list do not repeat their kind.
        obj = self.converted(stored.object)
        return encode({name: value for name, value in obj.items() if name not in {"kind", "apiVersion"}})

    def _table(self, items: list[Stored], metadata: Object) -> Object:
        columns = columns_of(self.resource)
        now = self.now()
        rows = []
        for stored in items:
            row: Object = {"cells": row_of(self.resource, stored.object, now)}
            if self.include_object == "Object":
                row["object"] = self.converted(stored.object)
            elif self.include_object == "Metadata":
                row["object"] = _metadata_only(stored.object)
            rows.append(row)
        return {
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        }


_NOWHERE: Any = None  # A document outside of the store has no key.


def _metadata_only(obj: Object) -> Object:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }
