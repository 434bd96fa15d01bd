"""What all parts of the API server share: the store, the registry, the clock, new identities.

Invariants:
  * Every commit goes through `Core`, so that definitions, dependents and namespaces follow at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .resources import DEFINITIONS, Registry, Resource
from .store import Key, Log, Store, Stored

Object = dict[str, Any]

NAMESPACES_AT_START = ("default", "kube-node-lease", "kube-public", "kube-system")


def timestamp(moment: datetime) -> str:
    """A `Time`: whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Core:
    """The store and all that is needed beside it."""

    def __init__(self, *, now: Callable[[], datetime], new_uid: Callable[[], str], log: Log | None = None) -> None:
        self.now = now
        self.new_uid = new_uid
        self.store = Store(log=log)
        self.registry = Registry()
        self.removed: deque[Stored] = deque()  # Deletions that dependents have not heard of yet.
        self.created: deque[Key] = deque()  # Objects whose owners have not been looked for yet.
        for stored in self.store.list(DEFINITIONS):
            self.registry.define(stored.key.name, stored.object)
        for name in NAMESPACES_AT_START:
            key = Key(resource="namespaces", namespace="", name=name)
            if self.store.get(key) is None:
                self.store.put(key, self._namespace(name))

    def timestamp(self) -> str:
        """This moment as a `Time`."""
        return timestamp(self.now())

    def put(self, key: Key, obj: Object) -> Stored:
        """Commit an object."""
        fresh = self.store.get(key) is None
        stored = self.store.put(key, obj)
        if key.resource == DEFINITIONS:
            self.registry.define(key.name, stored.object)
        if obj["metadata"].get("ownerReferences") or (fresh and key.namespace):
            self.created.append(key)
        return stored

    def remove(self, key: Key) -> Stored:
        """Commit a deletion."""
        last = self.store.delete(key)
        if key.resource == DEFINITIONS:
            self.registry.define(key.name, None)
        self.removed.append(last)
        return last

    def key(self, resource: Resource, namespace: str, name: str) -> Key:
        """Where an object of a resource lives."""
        return Key(resource=resource.storage, namespace=namespace, name=name)

    def _namespace(self, name: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "uid": self.new_uid(),
                "creationTimestamp": self.timestamp(),
                "labels": {"kubernetes.io/metadata.name": name},
            },
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        }
