"""The objects, their versions, and what happened to them: etcd's place in the embedded API server.

Synchronous and without I/O but for the log it is given: a simulation runs it in virtual time.

Invariants:
  * One resourceVersion for the whole store; each commit takes the next number, also deletions.
  * A stored object is never changed in place: readers may keep what they were given.
  * A commit reaches the log before it is visible, and watchers hear of it in commit order.
  * Events between `oldest_version` (exclusive) and `version` are all in the ring, gap-free.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

Object = dict[str, Any]
T = TypeVar("T")

EVENTS_MAX: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """Where an object lives. `resource` is `plural.group`; `namespace` is empty for cluster scope."""

    resource: str
    namespace: str
    name: str


class Stored:
    """An object at one version, and its JSON, made once when first asked for."""

    __slots__ = ("_encoded", "key", "object", "version")

    def __init__(self, key: Key, obj: Object, version: int) -> None:
        self.key = key
        self.object = obj
        self.version = version
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        """The object as JSON."""
        if self._encoded is None:
            self._encoded = encode(self.object)
        return self._encoded


_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


def encode(document: Any) -> bytes:
    """JSON as it goes over the wire and into the log."""
    return _to_json(document).encode("utf-8", "surrogatepass")


def copied(value: T) -> T:
    """A deep copy of a JSON value; many times faster than copy.deepcopy."""
    copy: T = _copied(value)
    return copy


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One commit. `new` is None for a deletion, `old` is None for a creation."""

    version: int
    key: Key
    old: Stored | None
    new: Stored | None
    last: Stored  # What a watcher is shown: the new object, or the deleted one at the deletion's version.


class Log(Protocol):
    """Where commits are made durable."""

    def append(self, version: int, key: Key, obj: Object | None) -> None:
        """Keep one commit; None: the object was deleted."""

    def replay(self) -> Iterable[tuple[int, Key | None, Object | None]]:
        """Everything kept so far; a key of None carries the version alone."""

    def compact(self, version: int, objects: Iterable[Stored]) -> None:
        """Replace all by the state at `version`."""

    def wants_compaction(self) -> bool:
        """Whether most of the log is history."""


Shelf = dict[tuple[str, str], Stored]
Items = list[Stored]  # Aliases, because `Store.list` hides the builtin in signatures.
Changes = list[Change]
Keys = list[Key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All objects at one version."""

    version: int
    shelves: dict[str, Shelf]


class Store:
    """All objects by (resource, namespace, name)."""

    def __init__(self, *, log: Log | None = None, events_max: int = EVENTS_MAX) -> None:
        self._shelves: dict[str, Shelf] = {}
        self._by_owner: dict[str, set[Key]] = {}
        self._by_uid: dict[str, Key] = {}
        self._events: deque[Change] = deque()
        self._events_max = events_max
        self._listeners: dict[str, list[Callable[[Change], None]]] = {}
        self._log = log
        self.version = 0
        if log is not None:
            for version, key, obj in log.replay():
                assert version >= self.version, (version, self.version)
                self.version = version
                if key is not None:
                    self._place(key, None if obj is None else Stored(key, obj, version))
            log.compact(self.version, self.all())
        # What happened before this process is not remembered: a watch from there gets 410.
        self.oldest_version = self.version

    # Reads

    def get(self, key: Key) -> Stored | None:
        """The object, or None."""
        return self._shelves.get(key.resource, {}).get((key.namespace, key.name))

    def by_uid(self, uid: str) -> Stored | None:
        """The object with this UID, or None."""
        key = self._by_uid.get(uid)
        return None if key is None else self.get(key)

    def dependents(self, uid: str) -> Keys:
        """Objects whose ownerReferences name this UID, in a stable order."""
        return sorted(self._by_owner.get(uid, ()))

    def list(self, resource: str, namespace: str | None = None) -> Items:
        """All objects of a resource, by namespace and name."""
        return _listed(self._shelves.get(resource, {}), namespace)

    def list_at(self, resource: str, namespace: str | None, version: int) -> Items | None:
        """The same as it was at an earlier version; None if that is forgotten."""
        if version < self.oldest_version:
            return None
        shelf = dict(self._shelves.get(resource, {}))
        for change in reversed(self._events):
            if change.version <= version:
                break
            if change.key.resource != resource:
                continue
            where = (change.key.namespace, change.key.name)
            if change.old is None:
                shelf.pop(where, None)
            else:
                shelf[where] = change.old
        return _listed(shelf, namespace)

    def all(self) -> Items:
        """Every object."""
        return [stored for resource in sorted(self._shelves) for stored in self.list(resource)]

    def snapshot(self) -> Snapshot:
        """All objects as they are now; later commits do not show in it."""
        return Snapshot(version=self.version, shelves={name: dict(s) for name, s in self._shelves.items()})

    def events_since(self, resource: str, version: int) -> Changes:
        """Commits after `version`, which must not lie before `oldest_version`."""
        assert version >= self.oldest_version, (version, self.oldest_version)
        found: list[Change] = []
        for change in reversed(self._events):
            if change.version <= version:
                break
            if change.key.resource == resource:
                found.append(change)
        found.reverse()
        return found

    # Writes

    def put(self, key: Key, obj: Object) -> Stored:
        """Commit an object; sets its resourceVersion. The store owns `obj` from now on."""
        version = self.version + 1
        obj["metadata"]["resourceVersion"] = str(version)
        if self._log is not None:
            self._log.append(version, key, obj)
        stored = Stored(key, obj, version)
        old = self._place(key, stored)
        self._committed(Change(version=version, key=key, old=old, new=stored, last=stored))
        return stored

    def delete(self, key: Key) -> Stored:
        """Commit the deletion of an existing object; returns it as it was, at the deletion's version."""
        version = self.version + 1
        if self._log is not None:
            self._log.append(version, key, None)
        old = self._place(key, None)
        assert old is not None, key
        gone = dict(old.object)
        gone["metadata"] = {**old.object["metadata"], "resourceVersion": str(version)}
        last = Stored(key, gone, version)
        self._committed(Change(version=version, key=key, old=old, new=None, last=last))
        return last

    def subscribe(self, resource: str, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call `listener` at each commit of the resource; the result ends that."""
        listeners = self._listeners.setdefault(resource, [])
        listeners.append(listener)

        def end() -> None:
            if listener in listeners:
                listeners.remove(listener)

        return end

    def forget_events(self) -> None:
        """Drop the history, as etcd's compaction does: older watches get 410 Expired."""
        self._events.clear()
        self.oldest_version = self.version

    def _place(self, key: Key, stored: Stored | None) -> Stored | None:
        shelf = self._shelves.setdefault(key.resource, {})
        old = shelf.pop((key.namespace, key.name), None)
        if old is not None:
            self._by_uid.pop(old.object["metadata"].get("uid", ""), None)
            for uid in _owners(old.object):
                self._by_owner[uid].discard(key)
                if not self._by_owner[uid]:
                    del self._by_owner[uid]
        if stored is not None:
            shelf[(key.namespace, key.name)] = stored
            self._by_uid[stored.object["metadata"].get("uid", "")] = key
            for uid in _owners(stored.object):
                self._by_owner.setdefault(uid, set()).add(key)
        return old

    def _committed(self, change: Change) -> None:
        assert change.version == self.version + 1, (change.version, self.version)
        self.version = change.version
        self._events.append(change)
        while len(self._events) > self._events_max:
            self.oldest_version = self._events.popleft().version
        if self._log is not None and self._log.wants_compaction():
            self._log.compact(self.version, self.all())
        for listener in tuple(self._listeners.get(change.key.resource, ())):
            listener(change)


def _listed(shelf: Shelf, namespace: str | None) -> Items:
    names = sorted(where for where in shelf if namespace is None or where[0] == namespace)
    return [shelf[where] for where in names]


def listed(snapshot: Snapshot, resource: str, namespace: str | None) -> Items:
    """All objects of a resource in a snapshot, by namespace and name."""
    return _listed(snapshot.shelves.get(resource, {}), namespace)


def _owners(obj: Object) -> set[str]:
    references = obj["metadata"].get("ownerReferences") or ()
    return {reference.get("uid", "") for reference in references}
