"""Creating, replacing, patching and deleting objects.

Invariants:
  * Nothing is committed before everything about it has been checked.
  * A write that changes nothing commits nothing: the resourceVersion stays.
  * `metadata.uid`, `creationTimestamp`, `generation` and `deletionTimestamp` are the server's alone.
  * The status is written through `/status` only, and `/status` writes nothing else of the spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from . import events, managed, scales
from .admission import Admission
from .core import Core, timestamp
from .definitions import CLEANUP_FINALIZER
from .errors import (
    ApiError,
    Cause,
    already_exists,
    another_uid,
    bad_request,
    conflict,
    failed_precondition,
    field_forbidden,
    field_invalid,
    field_not_supported,
    internal,
    invalid,
    not_found,
)
from .message import Request, Target
from .resources import DEFINITIONS
from .store import Key, Object, Stored, copied

NAME_RANDOM_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"
NAME_RANDOM_COUNT: Final = 5
NAME_LENGTH_MAX: Final = 63
GRACE_SECONDS_DEFAULT: Final = 30

# Deleting one of these answers with the object, not with a Status.
RETURNED_WHEN_DELETED: Final = frozenset(
    {"pods", "persistentvolumeclaims", "persistentvolumes", "services", "serviceaccounts", "namespaces"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a write wants to be made."""

    manager: str
    dry_run: bool = False
    field_validation: str = "Warn"
    force: bool = False

    @staticmethod
    def of(request: Request, document: Object | None = None) -> Options:
        """Options from the query; a delete may carry them in its body."""
        given = request.query.get("dryRun")
        asked = [given] if given is not None else (document or {}).get("dryRun") or []
        for value in asked:
            if value != "All":
                raise invalid(_kind_of_options(request), "meta.k8s.io", "", [_bad_dry_run(asked)])
        level = request.query.get("fieldValidation") or "Warn"
        if level not in {"Ignore", "Warn", "Strict"}:
            cause = field_not_supported("fieldValidation", level, ["", "Ignore", "Strict", "Warn"])
            raise invalid(_kind_of_options(request), "meta.k8s.io", "", [cause])
        agent = request.user_agent.split("/", 1)[0] or "unknown"
        return Options(
            manager=request.query.get("fieldManager") or agent,
            dry_run=bool(asked),
            field_validation=level,
            force=request.flag("force"),
        )


def _kind_of_options(request: Request) -> str:
    kinds = {"POST": "CreateOptions", "PUT": "UpdateOptions", "PATCH": "PatchOptions"}
    return kinds.get(request.method, "DeleteOptions")


def _bad_dry_run(asked: list[str]) -> Cause:
    return field_not_supported("dryRun", asked, ["All"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The outcome of a write."""

    stored: Stored
    created: bool = False
    warnings: tuple[str, ...] = ()


class Writer:
    """All verbs that change something."""

    def __init__(self, core: Core, admission: Admission) -> None:
        self._core = core
        self._admission = admission

    # Create

    def create(self, target: Target, obj: Object, options: Options) -> Written:
        """POST of a new object."""
        resource = target.resource
        meta = self._checked_metadata(target, obj, name=None)
        if meta.get("resourceVersion"):
            raise internal("resourceVersion should not be set on objects to be created")
        if not meta.get("name"):
            if not meta.get("generateName"):
                raise self._no_name(target)
            meta["name"] = self._generated(target, str(meta["generateName"]))
        if target.name is not None and target.name != meta["name"]:
            raise bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({target.name})"
            )
        key = self._core.key(resource, target.at, meta["name"])
        obj, warnings = self._admission.decoded(resource, obj, options.field_validation)
        self._admission.may_create(target, key)
        self._fresh_metadata(target, obj)
        if resource.status:
            obj.pop("status", None)
        obj = self._admission.defaulted(resource, obj, None)
        self._admission.validate(resource, obj, None)
        if self._core.store.get(key) is not None:
            raise already_exists(resource.plural, resource.group, key.name)
        moment = self._core.timestamp()
        shape = self._admission.schema_of(resource)
        managed.record_update(
            None, obj, options.manager, None, moment, shape,
            custom=resource.custom is not None, has_status=resource.status,
        )  # fmt: skip
        return Written(stored=self._commit(key, obj, options), created=True, warnings=warnings)

    def create_applied(self, target: Target, obj: Object, options: Options) -> Written:
        """Create what a server-side apply asks for; its managers are settled already."""
        assert target.name is not None
        resource, meta = target.resource, obj["metadata"]
        if meta.get("uid"):
            why = (
                f"uid mismatch: the provided object specified uid {meta['uid']}, and no existing object was found"
            )
            raise conflict(resource.plural, resource.group, target.name, why)
        key = self._core.key(resource, target.at, target.name)
        self._admission.may_create(target, key)
        self._fresh_metadata(target, obj)
        if resource.status:
            obj.pop("status", None)
        obj = self._admission.defaulted(resource, obj, None)
        self._admission.validate(resource, obj, None)
        return Written(stored=self._commit(key, obj, options), created=True)

    def _no_name(self, target: Target) -> ApiError:
        resource = target.resource
        cause = {"reason": "FieldValueRequired", "field": "metadata.name"}
        text = "Required value: name or generateName is required"
        details: Object = {"kind": resource.kind, "causes": [{**cause, "message": text}]}
        if resource.group:
            details["group"] = resource.group
        name = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
        message = f'{name} "" is invalid: metadata.name: {text}'
        return ApiError(422, "Invalid", message, details=details)

    def _generated(self, target: Target, prefix: str) -> str:
        letters = NAME_RANDOM_LETTERS
        number = int(self._core.new_uid().replace("-", ""), 16)
        tail = ""
        for _ in range(NAME_RANDOM_COUNT):
            number, index = divmod(number, len(letters))
            tail += letters[index]
        return prefix[: NAME_LENGTH_MAX - NAME_RANDOM_COUNT] + tail

    def _fresh_metadata(self, target: Target, obj: Object) -> None:
        meta = obj["metadata"]
        for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"):
            meta.pop(field, None)
        if target.namespace is not None:
            meta["namespace"] = target.namespace
        meta["uid"] = self._core.new_uid()
        meta["creationTimestamp"] = self._core.timestamp()
        if target.resource.generation:
            meta["generation"] = 1
        else:
            meta.pop("generation", None)

    def _checked_metadata(self, target: Target, obj: Object, name: str | None) -> Object:
        """The object's metadata, after its place was compared with the URL's."""
        resource = target.resource
        self._admission.check_kind(resource, obj)
        meta = obj.setdefault("metadata", {})
        if not isinstance(meta, dict):
            raise bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                "json: cannot unmarshal metadata into an object"
            )
        given = meta.get("namespace")
        if given and given != (target.namespace or ""):
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        if name is not None:
            own = meta.setdefault("name", name)
            if own != name:
                raise bad_request(f"the name of the object ({own}) does not match the name on the URL ({name})")
        if target.namespace is not None:
            meta["namespace"] = target.namespace
        return meta

    # Replace

    def replace(self, target: Target, obj: Object, options: Options) -> Written:
        """PUT of an object or of its status."""
        assert target.name is not None
        resource = target.resource
        meta = self._checked_metadata(target, obj, name=target.name)
        key = self._core.key(resource, target.at, target.name)
        old = self._core.store.get(key)
        if old is None:
            if not resource.update_creates or target.subresource:
                raise not_found(resource.plural, resource.group, target.name)
            if meta.get("uid"):
                raise _another_uid(target, meta["uid"], "")
            # As the real server: without a UID, even an update with a version creates.
            meta.pop("resourceVersion", "")
            return self.create(target, obj, options)
        if not meta.get("resourceVersion") and resource.update_needs_version:
            raise version_required(target)
        obj, warnings = self._admission.decoded(resource, obj, options.field_validation)
        return self._update(target, key, old, obj, options, warnings)

    def update(
        self, target: Target, key: Key, old: Stored, obj: Object, options: Options, warnings: tuple[str, ...] = ()
    ) -> Written:
        """Commit a decoded `obj` as the successor of `old`."""
        return self._update(target, key, old, obj, options, warnings)

    def _update(
        self,
        target: Target,
        key: Key,
        old: Stored,
        obj: Object,
        options: Options,
        warnings: tuple[str, ...],
        applied: bool = False,
    ) -> Written:
        resource = target.resource
        self._check_version(target, old, obj)
        obj = self._isolated(target, old.object, obj)
        self._kept_metadata(target, old.object, obj)
        obj = self._admission.defaulted(resource, obj, old.object)
        self._admission.validate(resource, obj, old.object)
        if resource.generation and target.subresource != "status" and _spec_changed(old.object, obj):
            obj["metadata"]["generation"] = old.object["metadata"].get("generation", 0) + 1
        if _same(old.object, obj) and not (applied and _managers_changed(old.object, obj)):
            return Written(stored=old, warnings=warnings)
        if not applied:
            moment = self._core.timestamp()
            shape = self._admission.schema_of(resource)
            managed.record_update(
                old.object, obj, options.manager, target.subresource, moment, shape,
                custom=resource.custom is not None, has_status=resource.status,
            )  # fmt: skip
        if self.is_released(obj):
            version = old.version if options.dry_run else self._core.remove(key).version
            return Written(stored=Stored(key, obj, version), warnings=warnings)
        return Written(stored=self._commit(key, obj, options), warnings=warnings)

    def apply(self, target: Target, key: Key, old: Stored, obj: Object, options: Options) -> Written:
        """Commit the outcome of a server-side apply, whose managers are settled already."""
        return self._update(target, key, old, obj, options, (), applied=True)

    def _check_version(self, target: Target, old: Stored, obj: Object) -> None:
        resource, meta = target.resource, obj["metadata"]
        assert target.name is not None
        uid = meta.get("uid")
        own = old.object["metadata"]["uid"]
        if uid and uid != own:
            raise _another_uid(target, uid, own)
        given = meta.get("resourceVersion")
        if given and given != old.object["metadata"]["resourceVersion"]:
            if not given.isdigit():
                raise internal(f'strconv.ParseUint: parsing "{given}": invalid syntax')
            raise conflict(resource.plural, resource.group, target.name)

    def _isolated(self, target: Target, old: Object, obj: Object) -> Object:
        """Only what the (sub)resource may write comes from `obj`."""
        resource = target.resource
        if target.subresource == "status":
            kept = {name: value for name, value in old.items() if name not in {"status", "metadata"}}
            kept["metadata"] = obj["metadata"]
            if resource.custom is not None:
                kept["metadata"] = {**old["metadata"], "managedFields": obj["metadata"].get("managedFields")}
            if "status" in obj:
                kept["status"] = obj["status"]
            return copied(kept)
        if resource.status:
            obj = {name: value for name, value in obj.items() if name != "status"}
            if "status" in old:
                obj["status"] = copied(old["status"])
        return obj

    def _kept_metadata(self, target: Target, old: Object, obj: Object) -> None:
        meta, was = obj["metadata"], old["metadata"]
        for field in _SERVER_FIELDS:
            if field in was:
                meta[field] = was[field]
            else:
                meta.pop(field, None)
        if meta.get("managedFields") is None:
            meta.pop("managedFields", None)
            if "managedFields" in was:
                meta["managedFields"] = copied(was["managedFields"])
        if was.get("deletionTimestamp"):
            added = [one for one in meta.get("finalizers") or () if one not in (was.get("finalizers") or ())]
            if added:
                cause = _no_new_finalizers(added)
                raise invalid(target.resource.kind, target.resource.group, was["name"], [cause])

    @staticmethod
    def is_released(obj: Object) -> bool:
        """Whether an object that is being deleted is held by nothing any more."""
        meta = obj["metadata"]
        if not meta.get("deletionTimestamp") or meta.get("finalizers"):
            return False
        if obj.get("kind") == "Namespace":
            return not (obj.get("spec") or {}).get("finalizers")
        return not meta.get("deletionGracePeriodSeconds")

    def _commit(self, key: Key, obj: Object, options: Options) -> Stored:
        if options.dry_run:
            return Stored(key, obj, self._core.store.version)
        return self._core.put(key, obj)

    # Delete

    def delete(self, target: Target, document: Object, options: Options) -> tuple[Object, bool]:
        """DELETE of one object: what to answer, and whether it is gone at once."""
        assert target.name is not None
        resource = target.resource
        key = self._core.key(resource, target.at, target.name)
        stored = self._core.store.get(key)
        if stored is None:
            raise not_found(resource.plural, resource.group, target.name)
        self._check_preconditions(target, stored, document.get("preconditions") or {})
        self._admission.may_delete(target)
        marked = self._marked(target, stored.object, document)
        if marked is not None:
            if options.dry_run or _same(stored.object, marked):
                return marked, False
            return self._core.put(key, marked).object, False
        last = stored if options.dry_run else self._core.remove(key)
        if resource.storage in RETURNED_WHEN_DELETED:
            return last.object, True
        details: Object = {"name": target.name}
        if resource.group:
            details["group"] = resource.group
        details |= {"kind": resource.plural, "uid": stored.object["metadata"]["uid"]}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return {**status, "details": details}, True

    def _check_preconditions(self, target: Target, stored: Stored, wanted: Object) -> None:
        resource, meta = target.resource, stored.object["metadata"]
        assert target.name is not None
        for field, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            value = wanted.get(field)
            if value is not None and value != meta[field]:
                raise failed_precondition(
                    resource.kind, resource.group, target.name, field=label, asked=value, found=meta[field]
                )

    def _marked(self, target: Target, obj: Object, document: Object) -> Object | None:
        """The object marked as being deleted; None: nothing keeps it."""
        meta = obj["metadata"]
        finalizers = list(meta.get("finalizers") or ())
        if target.resource.storage == DEFINITIONS and CLEANUP_FINALIZER not in finalizers:
            finalizers.append(CLEANUP_FINALIZER)
        policy = document.get("propagationPolicy")
        if policy == "Foreground" and "foregroundDeletion" not in finalizers:
            finalizers.append("foregroundDeletion")
        grace = self._grace(target, obj, document)
        spec_finalizers = target.resource.storage == "namespaces" and (obj.get("spec") or {}).get("finalizers")
        if not finalizers and not grace and not spec_finalizers:
            return None
        marked = copied(obj)
        marked_meta = marked["metadata"]
        if finalizers:
            marked_meta["finalizers"] = finalizers
        if meta.get("deletionTimestamp"):
            if grace < (meta.get("deletionGracePeriodSeconds") or 0):
                marked_meta["deletionGracePeriodSeconds"] = grace
            return marked
        ends = self._core.now() + timedelta(seconds=grace)
        marked_meta["deletionTimestamp"] = timestamp(ends)
        marked_meta["deletionGracePeriodSeconds"] = grace
        if target.resource.storage == "namespaces":
            marked_meta.pop("deletionGracePeriodSeconds")
            marked.setdefault("status", {})["phase"] = "Terminating"
        if meta.get("generation"):
            marked_meta["generation"] = meta["generation"] + 1
        return marked

    @staticmethod
    def _grace(target: Target, obj: Object, document: Object) -> int:
        """Seconds that a pod's processes get to end; whoever runs them deletes it again with 0."""
        if target.resource.storage != "pods":
            return 0
        if not (obj.get("spec") or {}).get("nodeName"):
            return 0
        if (obj.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return 0
        given = document.get("gracePeriodSeconds")
        if given is None:
            given = (obj.get("spec") or {}).get("terminationGracePeriodSeconds", GRACE_SECONDS_DEFAULT)
        return max(int(given), 0)

    def scale(self, target: Target, document: Object, options: Options) -> Written:
        """PUT of a `scale` subresource."""
        assert target.name is not None
        resource = target.resource
        assert resource.scale is not None
        key = self._core.key(resource, target.at, target.name)
        old = self._core.store.get(key)
        if old is None:
            raise not_found(resource.plural, resource.group, target.name)
        obj = scales.with_scale(resource.scale, old.object, document)
        meta = document.get("metadata") or {}
        obj["metadata"]["resourceVersion"] = meta.get("resourceVersion") or old.object["metadata"].get(
            "resourceVersion"
        )
        whole = Target(resource=resource, namespace=target.namespace, name=target.name, subresource=None)
        return self._update(whole, key, old, obj, options, ())


_SERVER_FIELDS: Final = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "resourceVersion",
    "namespace",
    "name",
    "generateName",
)


def version_required(target: Target) -> ApiError:
    """An update of this kind must say which version it was made for."""
    resource = target.resource
    cause = field_invalid("metadata.resourceVersion", 0, "must be specified for an update")
    return invalid(resource.plural, resource.group, str(target.name), [cause])


def _another_uid(target: Target, asked: str, found: str) -> ApiError:
    resource = target.resource
    return another_uid(resource.plural, resource.group, target.at, str(target.name), asked=asked, found=found)


def _no_new_finalizers(added: list[str]) -> Cause:
    text = "no new finalizers can be added if the object is being deleted, found new finalizers " + repr(added)
    return field_forbidden("metadata.finalizers", text)


def _spec_changed(old: Object, new: Object) -> bool:
    """Everything but metadata and status is spec."""
    fields = (set(old) | set(new)) - {"metadata", "status", "apiVersion", "kind"}
    return any(old.get(field) != new.get(field) for field in fields)


def _same(old: Object, new: Object) -> bool:
    """Equal but for who manages which field."""
    if {k: v for k, v in old.items() if k != "metadata"} != {k: v for k, v in new.items() if k != "metadata"}:
        return False
    return _without_managers(old["metadata"]) == _without_managers(new["metadata"])


def _without_managers(meta: Object) -> Object:
    return {name: value for name, value in meta.items() if name != "managedFields"}


def _managers_changed(old: Object, new: Object) -> bool:
    def shown(obj: Object) -> list[Object]:
        entries = obj["metadata"].get("managedFields") or ()
        return [{name: value for name, value in entry.items() if name != "time"} for entry in entries]

    return shown(old) != shown(new)


def stored_words(target: Target, obj: Object) -> Object:
    """A document in the wording in which its resource is stored."""
    return events.to_core(obj) if target.resource.stored_as else obj
