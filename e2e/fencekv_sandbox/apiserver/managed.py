"""Who manages which field (`metadata.managedFields`), and server-side apply.

A set of fields is a `FieldsV1` tree: `{"f:spec": {"f:replicas": {}}}`; list items are `k:{"name":"a"}` in
associative lists and `v:"x"` in sets; `.` stands for the item or map itself.

Invariants:
  * One entry for each (manager, operation, subresource); an entry without fields is dropped.
  * Metadata that the server alone writes belongs to nobody.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from .errors import ApiError, Cause, apply_conflict
from .schema import resolved
from .store import Object, copied

Tree = dict[str, Any]
Marks = Literal["none", "maps", "all"]  # Which new containers are owned as such, by their ".".

MANAGERS_MAX: Final = 10  # Older updaters are merged into one entry, as the real server does.

# Never owned by anybody.
_STRIPPED: Final = frozenset(
    {
        "apiVersion",
        "kind",
    }
)
_STRIPPED_META: Final = frozenset(
    {
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    }
)


# Trees


def union(first: Tree, second: Tree) -> Tree:
    """Fields of either."""
    merged = dict(first)
    for name, below in second.items():
        merged[name] = union(merged[name], below) if name in merged else below
    return merged


def difference(first: Tree, second: Tree) -> Tree:
    """Leaves of the first that the second does not name."""
    left: Tree = {}
    for name, below in first.items():
        if name not in second:
            left[name] = below
        elif below:
            rest = difference(below, second[name])
            if rest:
                left[name] = rest
    return left


def intersection(first: Tree, second: Tree) -> Tree:
    """Leaves that both name."""
    shared: Tree = {}
    for name, below in first.items():
        if name in second:
            deeper = intersection(below, second[name])
            if deeper or not below or not second[name]:
                shared[name] = deeper
    return shared


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _item_name(item: Any, schema: Object) -> str | None:
    """The path step of a list's item; None: the list is atomic."""
    kind = schema.get("x-kubernetes-list-type")
    if kind == "set" and not isinstance(item, dict | list):
        return "v:" + _compact(item)
    if kind == "map" and isinstance(item, dict):
        return "k:" + _compact(item_key(item, schema))
    return None


def item_key(item: Object, schema: Object) -> Object:
    """What identifies an item of an associative list, defaults filled in."""
    properties = resolved(schema.get("items") or {}).get("properties") or {}
    key = {}
    for name in schema.get("x-kubernetes-list-map-keys") or ():
        value = item.get(name)
        if value is None:
            value = (properties.get(name) or {}).get("default")
        if value is not None:
            key[name] = value
    return key


def _schema_below(schema: Object, name: str) -> Object:
    known = schema.get("properties") or {}
    inner = schema.get("additionalProperties")
    return known.get(name) or (inner if isinstance(inner, dict) else {})


def _list_schema(schema: Object) -> Object:
    if "$ref" not in schema:
        return schema
    return {**resolved(schema), **{name: value for name, value in schema.items() if name.startswith("x-")}}


def is_granular(value: Any, schema: Object) -> bool:
    """Whether parts of the value may belong to different managers."""
    if isinstance(value, dict):
        return schema.get("x-kubernetes-map-type") != "atomic"
    if isinstance(value, list):
        return schema.get("x-kubernetes-list-type") in {"map", "set"}
    return False


def fields_of(value: Any, schema: Object, marks: Marks = "none") -> Tree:
    """The tree of everything that a value sets."""
    schema = _list_schema(schema)
    if not is_granular(value, schema):
        return {}
    tree: Tree = {}
    if isinstance(value, dict):
        if marks == "all" or (marks == "maps" and "properties" not in schema):
            tree["."] = {}
        for name, item in value.items():
            tree["f:" + name] = fields_of(item, _schema_below(schema, name), marks)
        return tree
    for item in value:
        name = _item_name(item, schema)
        if name is not None:
            below = fields_of(item, schema.get("items") or {}, marks) if isinstance(item, dict) else {}
            tree[name] = {".": {}, **below} if isinstance(item, dict) else {}
    return tree


def changed_fields(old: Any, new: Any, schema: Object, marks: Marks = "none") -> Tree:
    """The tree of what `new` adds or sets differently."""
    schema = _list_schema(schema)
    if isinstance(old, dict) and isinstance(new, dict) and is_granular(new, schema):
        tree: Tree = {}
        for name, item in new.items():
            below = _schema_below(schema, name)
            if name not in old:
                tree["f:" + name] = fields_of(item, below, marks)
            elif old[name] != item:
                tree["f:" + name] = changed_fields(old[name], item, below, marks)
        return tree
    if isinstance(old, list) and isinstance(new, list) and is_granular(new, schema):
        before = {_item_name(item, schema): item for item in old}
        tree = {}
        for item in new:
            name = _item_name(item, schema)
            if name is None:
                continue
            if name not in before:
                tree[name] = {".": {}, **fields_of(item, schema.get("items") or {}, marks)}
            elif before[name] != item:
                tree[name] = changed_fields(before[name], item, schema.get("items") or {}, marks)
        return tree
    return fields_of(new, schema, marks)


def _stripped(tree: Tree, *, status: bool | None) -> Tree:
    """Without what nobody owns. `status`: True keeps only the status, False all but it, None everything."""
    kept = {name: below for name, below in tree.items() if name[2:] not in _STRIPPED}
    if "f:metadata" in kept:
        meta = {name: below for name, below in kept["f:metadata"].items() if name[2:] not in _STRIPPED_META}
        kept["f:metadata"] = meta
        if not meta:
            del kept["f:metadata"]
    if status is True:
        kept = {name: below for name, below in kept.items() if name == "f:status"}
    elif status is False:
        kept.pop("f:status", None)
    return kept


# Entries


def entries_of(obj: Object) -> list[Object]:
    """The managedFields of an object."""
    return list(obj["metadata"].get("managedFields") or ())


def _with_entry(
    entries: list[Object], *, manager: str, operation: str, subresource: str | None, obj: Object, tree: Tree,
    moment: str,
) -> list[Object]:  # fmt: skip
    """The entries with one manager's fields set; without fields the entry goes."""
    kept, before = [], None
    for entry in entries:
        if _is_entry(entry, manager, operation, subresource):
            before = entry
        else:
            kept.append(entry)
    if tree:
        same = before is not None and before.get("fieldsV1") == tree
        entry = {
            "manager": manager,
            "operation": operation,
            "apiVersion": obj["apiVersion"],
            "time": before["time"] if before is not None and same else moment,
            "fieldsType": "FieldsV1",
            "fieldsV1": tree,
        }
        if subresource:
            entry["subresource"] = subresource
        kept.append(entry)
    return kept


def _is_entry(entry: Object, manager: str, operation: str, subresource: str | None) -> bool:
    return (
        entry.get("manager") == manager
        and entry.get("operation") == operation
        and entry.get("subresource", "") == (subresource or "")
    )


def record_update(
    old: Object | None, obj: Object, manager: str, subresource: str | None, moment: str,
    schema: Object | None = None, *, custom: bool = False, has_status: bool = False,
) -> None:  # fmt: skip
    """Note that a plain write by `manager` changed what differs between `old` and `obj`."""
    meta = obj["metadata"]
    shape = schema or {}
    marks: Marks = "all" if custom else "maps"
    before: Object = {"metadata": {}} if old is None else old
    # A write of the status owns nothing of the spec, and the other way round.
    own_part = {"status": True, None: False if has_status else None}.get(subresource)
    changed = _stripped(changed_fields(before, obj, shape, marks), status=own_part)
    entries: list[Object] = []
    if old is None:
        meta.pop("managedFields", None)
    else:
        removed = _stripped(removed_fields(old, obj, shape), status=None)
        entries = _without(entries_of(obj), union(changed, removed))
    own = next((one for one in entries if _is_entry(one, manager, "Update", subresource)), None)
    tree = union(own["fieldsV1"], changed) if own is not None else changed
    entries = _with_entry(
        entries, manager=manager, operation="Update", subresource=subresource, obj=obj, tree=tree,
        moment=moment,
    )  # fmt: skip
    if own is not None and changed:
        for entry in entries:
            if _is_entry(entry, manager, "Update", subresource):
                entry["time"] = moment
    if entries:
        meta["managedFields"] = _bounded(entries)
    else:
        meta.pop("managedFields", None)


def removed_fields(old: Any, new: Any, schema: Object) -> Tree:
    """The tree of what `old` had and `new` has no more."""
    schema = _list_schema(schema)
    if type(old) is not type(new) or not is_granular(old, schema):
        return {}
    tree: Tree = {}
    if isinstance(old, dict):
        for name, item in old.items():
            below = _schema_below(schema, name)
            if name not in new:
                tree["f:" + name] = fields_of(item, below)
            elif new[name] != item and (deeper := removed_fields(item, new[name], below)):
                tree["f:" + name] = deeper
        return tree
    after = {_item_name(item, schema): item for item in new}
    inner = schema.get("items") or {}
    for item in old:
        step = _item_name(item, schema) or ""
        if step not in after:
            tree[step] = {".": {}, **fields_of(item, inner)} if isinstance(item, dict) else {}
        elif deeper := removed_fields(item, after[step], inner):
            tree[step] = deeper
    return tree


def _without(entries: list[Object], tree: Tree) -> list[Object]:
    kept = []
    for entry in entries:
        left = difference(entry.get("fieldsV1") or {}, tree)
        if left:
            kept.append(entry if left == entry["fieldsV1"] else {**entry, "fieldsV1": left})
    return kept


def _bounded(entries: list[Object]) -> list[Object]:
    updates = [entry for entry in entries if entry["operation"] == "Update"]
    if len(updates) <= MANAGERS_MAX:
        return entries
    oldest = updates[: len(updates) - MANAGERS_MAX + 1]
    fields: Tree = {}
    for entry in oldest:
        fields = union(fields, entry["fieldsV1"])
    ancient = {**oldest[-1], "manager": "ancient-changes", "fieldsV1": fields}
    return [ancient, *(entry for entry in entries if entry not in oldest)]


# Apply


def apply(
    live: Object | None, wanted: Object, manager: str, *, force: bool, moment: str, schema: Object,
    subresource: str | None,
) -> Object:  # fmt: skip
    """The object that comes of applying `wanted` over `live`; raises a conflict with other managers."""
    status = True if subresource == "status" else None
    fields = _stripped(fields_of(wanted, schema), status=status)
    if live is None:
        obj = copied(wanted)
        obj["metadata"].pop("managedFields", None)
        entries: list[Object] = []
    else:
        entries = entries_of(live)
        entries = _settled(entries, live, wanted, manager, fields, schema, subresource, force=force)
        obj = merged(live, wanted, schema)
        mine = next((one for one in entries if _is_entry(one, manager, "Apply", subresource)), None)
        if mine is not None:
            dropped = difference(mine["fieldsV1"], fields)
            for entry in entries:
                if entry is not mine:
                    dropped = difference(dropped, entry["fieldsV1"])
            obj = _pruned(obj, dropped, schema)
    entries = _with_entry(
        entries, manager=manager, operation="Apply", subresource=subresource, obj=wanted, tree=fields,
        moment=moment,
    )  # fmt: skip
    obj["metadata"]["managedFields"] = entries
    return obj


def _settled(
    entries: list[Object], live: Object, wanted: Object, manager: str, fields: Tree, schema: Object,
    subresource: str | None, *, force: bool,
) -> list[Object]:  # fmt: skip
    """Other managers' entries after the conflicts: refused, or taken from them by force."""
    differing = _stripped(changed_fields(live, merged(live, wanted, schema), schema), status=None)
    contested = intersection(fields, differing)
    conflicts: list[Cause] = []
    settled = []
    for entry in entries:
        if _is_entry(entry, manager, "Apply", subresource):
            settled.append(entry)
            continue
        shared = intersection(entry.get("fieldsV1") or {}, contested)
        if not shared:
            settled.append(entry)
            continue
        conflicts += [_conflict(entry, path) for path in leaf_paths(shared)]
        left = difference(entry["fieldsV1"], shared)
        if left:
            settled.append({**entry, "fieldsV1": left})
    if conflicts and not force:
        raise apply_conflict(conflicts)
    return settled


def _conflict(entry: Object, path: str) -> Cause:
    using = f" using {entry['apiVersion']}" if entry["operation"] == "Update" else ""
    if entry.get("subresource"):
        who = f'"{entry["manager"]}" with subresource "{entry["subresource"]}"{using}'
    else:
        who = f'"{entry["manager"]}"{using}'
    return Cause(reason="FieldManagerConflict", message=f"conflict with {who}", field=path)


def leaf_paths(tree: Tree, path: str = "") -> list[str]:
    """The paths of a tree's leaves, as conflicts name them."""
    found = []
    for name, below in sorted(tree.items()):
        if name == ".":
            continue
        where = path + _step_text(name)
        found += leaf_paths(below, where) if set(below) - {"."} else [where]
    return found


def _step_text(name: str) -> str:
    if name.startswith("f:"):
        return "." + name[2:]
    if name.startswith("k:"):
        pairs = ",".join(f"{key}={_compact(value)}" for key, value in json.loads(name[2:]).items())
        return f"[{pairs}]"
    return f"[={name[2:]}]"


def merged(live: Any, wanted: Any, schema: Object) -> Any:
    """`wanted` laid over `live`: maps and associative lists merge, the rest replaces."""
    schema = _list_schema(schema)
    if isinstance(live, dict) and isinstance(wanted, dict) and is_granular(wanted, schema):
        result = dict(live)
        for name, item in wanted.items():
            if item is None:
                continue
            below = _schema_below(schema, name)
            result[name] = merged(live[name], item, below) if name in live else copied(item)
        return result
    if isinstance(live, list) and isinstance(wanted, list) and is_granular(wanted, schema):
        return _merged_list(live, wanted, schema)
    return copied(wanted)


def _merged_list(live: list[Any], wanted: list[Any], schema: Object) -> list[Any]:
    result = list(live)
    places = {_item_name(item, schema): index for index, item in enumerate(result)}
    for item in wanted:
        name = _item_name(item, schema)
        if name in places:
            index = places[name]
            result[index] = merged(result[index], item, schema.get("items") or {})
        else:
            result.append(copied(item))
    return result


def _pruned(value: Any, dropped: Tree, schema: Object) -> Any:
    """The value without the fields of a tree."""
    schema = _list_schema(schema)
    if isinstance(value, dict):
        result = {}
        for name, item in value.items():
            below = dropped.get("f:" + name)
            if below is None:
                result[name] = item
            elif below:
                left = _pruned(item, below, _schema_below(schema, name))
                if left or left == item:
                    result[name] = left
        return result
    if isinstance(value, list):
        items = []
        for item in value:
            below = dropped.get(_item_name(item, schema) or "")
            if below is None:
                items.append(item)
            elif below and "." not in below:
                items.append(_pruned(item, below, schema.get("items") or {}))
        return items
    return value


def check_apply_document(wanted: Object) -> None:
    """What an apply configuration may not hold."""
    if (wanted.get("metadata") or {}).get("managedFields"):
        raise ApiError(400, "BadRequest", "metadata.managedFields must be nil")
