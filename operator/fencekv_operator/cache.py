"""What the operator last saw of the cluster: objects by kind and key.

Fed by watches, by the answers to our own writes, and by a periodic list. It is a hint, good enough to plan by:
every write that could do harm on an old sight is a compare-and-swap, or asks the server anew.

Invariants:
  * A list never undoes what was learned after it was begun, and a watch that lags nothing that a write's answer
    showed. A store that was put back, whose versions are lower, is believed by the next list.
  * An object is of one incarnation: a deletion of another UID does not remove it, and what was deleted does not
    come back: the answer to the write that took the last finalizer may be read after the watch told of the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fencekv.kube import PODS, Resource
from fencekv.leases import LABEL_NAMESPACE

Object = dict[str, Any]
Name = tuple[str, str]  # Kubernetes namespace, name

POD_CONDITIONS: Final = frozenset({"Ready", "PodScheduled"})


@dataclass(frozen=True, slots=True)
class _Entry:
    object: Object | None  # None: deleted, remembered until the next list that began later.
    tick: int
    uid: str


def kvns_of(obj: Mapping[str, Any]) -> str:
    """The KVNamespace that an object belongs to, by label or by spec; empty: none."""
    label = (obj["metadata"].get("labels") or {}).get(LABEL_NAMESPACE)
    named = (obj.get("spec") or {}).get("namespace")
    if label:
        return str(label)
    return named if isinstance(named, str) else ""


class Cache:
    """Objects by kind and key, and by KVNamespace."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[Name, _Entry]] = {}
        self._members: dict[tuple[str, str, str], set[str]] = {}
        self.tick = 0

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object as it was last seen."""
        entry = self._entries.get(resource.plural, {}).get((namespace, name))
        return entry.object if entry else None

    def all(self, resource: Resource) -> list[Object]:
        """Every object of a kind, in order of its key."""
        entries = self._entries.get(resource.plural, {})
        return [obj for key in sorted(entries) if (obj := entries[key].object) is not None]

    def of_kvns(self, resource: Resource, namespace: str, kvns: str) -> list[Object]:
        """Every object of a kind that belongs to a KVNamespace, in order of its name."""
        names = self._members.get((resource.plural, namespace, kvns), ())
        found = (self.get(resource, namespace, name) for name in sorted(names))
        return [obj for obj in found if obj is not None]

    def count_of_kvns(self, resource: Resource, namespace: str, kvns: str) -> int:
        """How many objects of a kind belong to a KVNamespace; as cheap as it gets."""
        return len(self._members.get((resource.plural, namespace, kvns), ()))

    def put(self, resource: Resource, obj: Object, *, listed: bool = False) -> bool:
        """Takes an object; says whether that is news. `listed`: from a list, which is believed in any case."""
        key, uid = _key(obj), obj["metadata"]["uid"]
        entries = self._entries.setdefault(resource.plural, {})
        entry = entries.get(key)
        if entry is not None and entry.object is None and entry.uid == uid:
            return False
        old = entry.object if entry else None
        self.tick += 1
        if old is not None:
            if old["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]:
                entries[key] = _Entry(old, self.tick, uid)
                return False
            if not listed and entry is not None and entry.uid == uid and _is_older(obj, old):
                return False
            self._leave(resource, old)
        slim = _slim(resource, obj)
        entries[key] = _Entry(slim, self.tick, uid)
        self._members.setdefault((resource.plural, key[0], kvns_of(slim)), set()).add(key[1])
        return True

    def drop(self, resource: Resource, namespace: str, name: str, *, uid: str = "") -> Object | None:
        """Takes a deletion; gives what is gone. `uid`: only that incarnation."""
        old = self.get(resource, namespace, name)
        if old is None or (uid and old["metadata"]["uid"] != uid):
            return None
        self.tick += 1
        self._leave(resource, old)
        self._entries[resource.plural][namespace, name] = _Entry(None, self.tick, old["metadata"]["uid"])
        return old

    def relisted(
        self, resource: Resource, objects: Iterable[Object], *, since: int, namespace: str | None
    ) -> list[Object]:
        """Takes a whole list that was begun at tick `since`; gives what is new, changed or gone.

        `namespace` None: the list was of all of them.
        """
        known = self._entries.setdefault(resource.plural, {})
        recent = {key for key, entry in known.items() if entry.tick > since}
        listed: set[Name] = set()
        news: list[Object] = []
        for obj in objects:
            key = _key(obj)
            listed.add(key)
            if key not in recent and self.put(resource, obj, listed=True):
                news.append(obj)
        for key in sorted(known.keys() - listed - recent):
            if namespace is not None and key[0] != namespace:
                continue
            gone = self.drop(resource, *key)
            if gone is not None:
                news.append(gone)
            del known[key]
        return news

    def _leave(self, resource: Resource, obj: Object) -> None:
        namespace, name = _key(obj)
        where = (resource.plural, namespace, kvns_of(obj))
        members = self._members.get(where, set())
        members.discard(name)
        if not members:
            self._members.pop(where, None)


def _is_older(obj: Object, known: Object) -> bool:
    """Whether one version came before another: as numbers, which they are, and may be compared since 1.35."""
    versions = [each["metadata"]["resourceVersion"] for each in (obj, known)]
    return all(each.isdecimal() for each in versions) and int(versions[0]) < int(versions[1])


def _key(obj: Mapping[str, Any]) -> Name:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _slim(resource: Resource, obj: Object) -> Object:
    """The object without what nobody here reads, which is most of a pod and of every object's history."""
    meta = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    if resource is PODS:
        node = (obj.get("spec") or {}).get("nodeName", "")
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"nodeName": node},
            "status": _slim_pod_status(obj.get("status") or {}),
        }
    return {**obj, "metadata": meta}


def _slim_pod_status(status: Mapping[str, Any]) -> Object:
    return {
        "conditions": [
            {key: each[key] for key in ("type", "status", "message") if key in each}
            for each in status.get("conditions") or ()
            if each.get("type") in POD_CONDITIONS
        ],
        "containerStatuses": [
            {"state": {"waiting": each["state"]["waiting"]}}
            for each in status.get("containerStatuses") or ()
            if "waiting" in (each.get("state") or {})
        ],
    }
