"""Strategic merge patch: like a merge patch, but lists of objects merge by a key that the schema names.

Directives: `$patch: delete|replace|merge`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`,
`$retainKeys`.

Invariants:
  * The object that is patched is never changed.
"""

from __future__ import annotations

from typing import Any, Final

from .managed import _list_schema, _schema_below
from .schema import resolved
from .store import Object, copied

_DELETE_FROM: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"
_RETAIN: Final = "$retainKeys"
_DIRECTIVE: Final = "$patch"


def strategic_patch(document: Any, patch: Object, schema: Object) -> Any:
    """The document with the patch merged into it."""
    schema = resolved(schema)
    if patch.get(_DIRECTIVE) == "replace":
        return {name: copied(value) for name, value in patch.items() if name != _DIRECTIVE}
    if patch.get(_DIRECTIVE) == "delete":
        return {}
    merged = copied(document) if isinstance(document, dict) else {}
    if _RETAIN in patch:
        merged = {name: value for name, value in merged.items() if name in patch[_RETAIN]}
    for name, value in patch.items():
        if name in {_DIRECTIVE, _RETAIN} or name.startswith(_ORDER):
            continue
        if name.startswith(_DELETE_FROM):
            field = name.removeprefix(_DELETE_FROM)
            merged[field] = [one for one in merged.get(field) or () if one not in value]
        elif value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = strategic_patch(merged.get(name), value, _schema_below(schema, name))
        elif isinstance(value, list):
            order = patch.get(_ORDER + name)
            merged[name] = _merged_list(merged.get(name), value, _schema_below(schema, name), order)
        else:
            merged[name] = value
    for name, order in patch.items():
        field = name.removeprefix(_ORDER)
        if name.startswith(_ORDER) and field not in patch and isinstance(merged.get(field), list):
            merged[field] = _ordered(merged[field], order, _merge_key(_schema_below(schema, field)))
    return merged


def _merge_key(schema: Object) -> str | None:
    key: str | None = _list_schema(schema).get("x-kubernetes-patch-merge-key")
    return key


def _merged_list(document: Any, patch: list[Any], schema: Object, order: Any) -> list[Any]:
    shape = _list_schema(schema)
    if "merge" not in str(shape.get("x-kubernetes-patch-strategy", "")).split(","):
        return copied([one for one in patch if not (isinstance(one, dict) and _DIRECTIVE in one)])
    items = list(document) if isinstance(document, list) else []
    key = _merge_key(schema)
    if any(isinstance(one, dict) and one.get(_DIRECTIVE) == "replace" for one in patch):
        return copied([one for one in patch if _DIRECTIVE not in one])
    if key is None:
        items += [one for one in patch if one not in items]
        return _ordered(items, order, None)
    for one in patch:
        place = next((at for at, item in enumerate(items) if item.get(key) == one.get(key)), None)
        if one.get(_DIRECTIVE) == "delete":
            if place is not None:
                del items[place]
        elif place is None:
            items.append(strategic_patch({}, one, shape.get("items") or {}))
        else:
            items[place] = strategic_patch(items[place], one, shape.get("items") or {})
    return _ordered(items, order, key)


def _ordered(items: list[Any], order: Any, key: str | None) -> list[Any]:
    """The listed items in the wished order; others keep their place after them."""
    if not isinstance(order, list):
        return items
    marks = [one.get(key) if key is not None and isinstance(one, dict) else one for one in order]

    def rank(item: Any) -> int:
        mark = item.get(key) if key is not None and isinstance(item, dict) else item
        return marks.index(mark) if mark in marks else len(marks)

    return sorted(items, key=rank)
