"""What follows from a write elsewhere: dependents of a deleted owner, contents of a deleted namespace,
instances of a deleted definition.

Runs to its end inside the request that caused it, so that a simulation has nothing to schedule.

Invariants:
  * An object goes only when none of its owners exists any more.
  * A namespace or definition goes only when nothing of it is left.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from .core import Core, timestamp
from .definitions import CLEANUP_FINALIZER, served_status
from .message import Target
from .resources import DEFINITIONS, Resource
from .store import Key, Object, Stored, copied
from .writes import Options, Writer

FOREGROUND: Final = "foregroundDeletion"
EVENTS_LIVE: Final = timedelta(hours=1)
EVENTS_BETWEEN_SWEEPS: Final = 64
_OPTIONS: Final = Options(manager="garbage-collector")


class Collector:
    """Settles all consequences of the commits made so far. `owners` false: owners are left to others."""

    def __init__(self, core: Core, writer: Writer, *, owners: bool = True) -> None:
        self._core = core
        self._writer = writer
        self._owners = owners
        self._events_made = 0

    def resume(self) -> None:
        """Take up what the end of an earlier process interrupted."""
        for stored in self._core.store.all():
            meta = stored.object["metadata"]
            if self._writer.is_released(stored.object):
                self._core.remove(stored.key)
            elif meta.get("deletionTimestamp"):
                self._follow_up(stored)
            elif meta.get("ownerReferences"):
                self._core.created.append(stored.key)
        for stored in self._core.store.list(DEFINITIONS):
            self.established(stored.key.name)
        self.settle()

    def settle(self) -> None:
        """Work off everything that commits have caused."""
        core = self._core
        while core.removed or core.created:
            while core.created:
                self._placed(core.created.popleft())
            if core.removed:
                self._gone(core.removed.popleft())

    def deleting(self, target: Target) -> None:
        """Called after a deletion was only marked: start on what hangs on the object."""
        assert target.name is not None
        key = self._core.key(target.resource, target.at, target.name)
        stored = self._core.store.get(key)
        if stored is not None:
            self._follow_up(stored)

    def _follow_up(self, stored: Stored) -> None:
        key, meta = stored.key, stored.object["metadata"]
        if key.resource == "namespaces":
            self._empty_namespace(key.name)
        elif key.resource == DEFINITIONS:
            self._delete_instances(stored.object)
        elif FOREGROUND in (meta.get("finalizers") or ()):
            for dependent in self._core.store.dependents(meta["uid"]):
                self._delete(dependent, "Foreground")
            self._release_foreground(stored)

    def _placed(self, key: Key) -> None:
        """An object whose owners are all gone already goes too."""
        if key.resource == "events":
            self._expire_events()
        stored = self._core.store.get(key)
        if stored is not None and self._owners:
            self._check_owners(stored)

    def _expire_events(self) -> None:
        """Events live for an hour; looked for now and then."""
        self._events_made += 1
        if self._events_made % EVENTS_BETWEEN_SWEEPS:
            return
        oldest = timestamp(self._core.now() - EVENTS_LIVE)
        for stored in self._core.store.list("events"):
            if stored.object["metadata"]["creationTimestamp"] < oldest:
                self._core.remove(stored.key)

    def _check_owners(self, stored: Stored) -> None:
        references = stored.object["metadata"].get("ownerReferences") or []
        if not references:
            return
        alive = [one for one in references if self._owner(one, stored) is not None]
        if not alive:
            self._delete(stored.key, "Background")
        elif len(alive) < len(references):
            obj = copied(stored.object)
            obj["metadata"]["ownerReferences"] = alive
            self._core.put(stored.key, obj)

    def _owner(self, reference: Object, dependent: Stored) -> Stored | None:
        owner = self._core.store.by_uid(reference.get("uid", ""))
        if owner is None or owner.key.namespace not in {"", dependent.key.namespace}:
            return None
        return owner

    def _gone(self, last: Stored) -> None:
        meta = last.object["metadata"]
        if self._owners:
            for key in self._core.store.dependents(meta.get("uid", "")):
                stored = self._core.store.get(key)
                if stored is not None:
                    self._check_owners(stored)
            for reference in meta.get("ownerReferences") or ():
                owner = self._core.store.by_uid(reference.get("uid", ""))
                if owner is not None:
                    self._release_foreground(owner)
        if last.key.namespace:
            self._release_namespace(last.key.namespace)
        self._release_definition(last.key.resource)

    def _delete(self, key: Key, policy: str) -> None:
        resource = self._core.registry.of_storage(key.resource)
        if resource is None or self._core.store.get(key) is None:
            return
        target = Target(resource=resource, namespace=key.namespace or None, name=key.name, subresource=None)
        _, gone = self._writer.delete(target, {"propagationPolicy": policy}, _OPTIONS)
        if not gone:
            self.deleting(target)

    def _release_foreground(self, owner: Stored) -> None:
        meta = owner.object["metadata"]
        if not meta.get("deletionTimestamp") or FOREGROUND not in (meta.get("finalizers") or ()):
            return
        for key in self._core.store.dependents(meta["uid"]):
            dependent = self._core.store.get(key)
            assert dependent is not None, key
            references = dependent.object["metadata"]["ownerReferences"]
            if any(one["uid"] == meta["uid"] and one.get("blockOwnerDeletion") for one in references):
                return
        self._drop_finalizer(owner, FOREGROUND)

    def _drop_finalizer(self, stored: Stored, finalizer: str) -> None:
        obj: Any = copied(stored.object)
        meta = obj["metadata"]
        meta["finalizers"] = [one for one in meta["finalizers"] if one != finalizer]
        if meta["finalizers"]:
            self._core.put(stored.key, obj)
        else:
            self._core.remove(stored.key)

    # Namespaces

    def _resources(self, *, namespaced: bool) -> list[Resource]:
        resources = self._core.registry.all()
        return [one for one in resources if one.namespaced is namespaced and not one.stored_as]

    def _empty_namespace(self, name: str) -> None:
        for resource in self._resources(namespaced=True):
            for stored in self._core.store.list(resource.storage, name):
                self._delete(stored.key, "Background")
        self._release_namespace(name)

    def _release_namespace(self, name: str) -> None:
        namespace = self._core.store.get(Key(resource="namespaces", namespace="", name=name))
        if namespace is None or not namespace.object["metadata"].get("deletionTimestamp"):
            return
        if any(self._core.store.list(one.storage, name) for one in self._resources(namespaced=True)):
            return
        obj = copied(namespace.object)
        obj.get("spec", {}).pop("finalizers", None)
        if obj["metadata"].get("finalizers"):
            if obj != namespace.object:
                self._core.put(namespace.key, obj)
        else:
            self._core.remove(namespace.key)

    # Definitions

    def established(self, name: str) -> None:
        """Put the status that says a definition is served."""
        key = Key(resource=DEFINITIONS, namespace="", name=name)
        stored = self._core.store.get(key)
        if stored is None:
            return
        obj = copied(stored.object)
        obj["status"] = served_status(obj, self._core.timestamp())
        if obj != stored.object:
            self._core.put(key, obj)

    def _delete_instances(self, definition: Object) -> None:
        spec = definition["spec"]
        storage = f"{spec['names']['plural']}.{spec['group']}"
        for stored in self._core.store.list(storage):
            self._delete(stored.key, "Background")
        self._release_definition(storage)

    def _release_definition(self, storage: str) -> None:
        key = Key(resource=DEFINITIONS, namespace="", name=storage)
        stored = self._core.store.get(key)
        if stored is None or not stored.object["metadata"].get("deletionTimestamp"):
            return
        if not self._core.store.list(storage) and CLEANUP_FINALIZER in (
            stored.object["metadata"].get("finalizers") or ()
        ):
            self._drop_finalizer(stored, CLEANUP_FINALIZER)
