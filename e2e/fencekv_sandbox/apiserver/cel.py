"""CEL rules of CustomResourceDefinitions (`x-kubernetes-validations`).

The language is the installed library's; this module adds what Kubernetes adds to it: `self` and `oldSelf`,
names that are reserved words (`self.__namespace__`), and the list and string functions of its libraries.

Invariants:
  * A rule that mentions `oldSelf` runs only where an old value exists.
  * A rule that cannot be evaluated refuses the object: it never lets it pass.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cel import Context, Program
from cel import compile as compile_source
from cel.stdlib import add_stdlib_to_context

from .errors import Cause, _shown
from .store import Object

_WORDS = (
    "true false null in as break const continue else for function if import let loop package namespace "
    "return var void while"
)
RESERVED: Final = frozenset(_WORDS.split())
_ESCAPES: Final = {".": "__dot__", "-": "__dash__", "/": "__slash__", "__": "__underscores__"}
_FIND_MAX: Final = 10_000


@lru_cache(maxsize=4096)
def escaped(name: str) -> str | None:
    """A property's name as rules spell it; None: rules cannot reach it."""
    if name in RESERVED:
        return f"__{name}__"
    spelled = re.sub(r"__|[.\-/]", lambda match: _ESCAPES[match[0]], name)
    return spelled if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", spelled) else None


class BadRule(Exception):
    """The rule is no CEL."""


@lru_cache(maxsize=1024)
def _compiled(source: str) -> Program:
    try:
        return compile_source(source)
    except Exception as error:
        raise BadRule(str(error)) from error


def check(source: str) -> None:
    """Raise BadRule if the rule cannot be read."""
    _compiled(source)


def uses_old(source: str) -> bool:
    """Whether this is a transition rule."""
    return "oldSelf" in _compiled(source).variables()


def _is_sorted(items: list[Any]) -> bool:
    return all(first <= second for first, second in itertools.pairwise(items))


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""


def _find_all(text: str, pattern: str, limit: int = _FIND_MAX) -> list[str]:
    found = [match[0] for match in re.finditer(pattern, text)]
    return found if limit < 0 else found[:limit]


def _index_of(container: Any, item: Any, *rest: Any) -> int:
    if isinstance(container, str):
        return int(container.find(item, *rest))
    return int(container.index(item)) if item in container else -1


def _last_index_of(container: Any, item: Any) -> int:
    if isinstance(container, str):
        return int(container.rfind(item))
    return max((at for at, other in enumerate(container) if other == item), default=-1)


def _sum(items: list[Any]) -> Any:
    return sum(items)


_SUFFIXES: Final = {
    "": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip
_QUANTITY: Final = re.compile(r"^([+-]?[0-9.]+)(?:([eE][+-]?[0-9]+)|([EPTGMKk]i?|[num]))?$")


def quantity_value(text: Any) -> float | None:
    """A quantity (`1Gi`, `500m`) as a number; None if it is none."""
    match = _QUANTITY.match(str(text))
    if match is None or match[3] == "K":
        return None
    try:
        number = float(match[1] + (match[2] or ""))
    except ValueError:
        return None
    return number * _SUFFIXES[match[3] or ""]


def _quantity(text: str) -> float:
    number = quantity_value(text)
    if number is None:
        raise ValueError(f"quantities must match the regular expression, got {text!r}")
    return number


def _compare(first: Any, second: Any) -> int:
    return int(first > second) - int(first < second)


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "isSorted": _is_sorted,
    "sum": _sum,
    "find": _find,
    "findAll": _find_all,
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "quantity": _quantity,
    "isQuantity": lambda text: quantity_value(text) is not None,
    "isInteger": lambda number: math.isfinite(number) and number == int(number),
    "isGreaterThan": lambda first, second: first > second,
    "isLessThan": lambda first, second: first < second,
    "compareTo": _compare,
}


def _as_cel(value: Any, schema: Object) -> Any:
    """A value as rules see it: reserved names escaped, unknown properties hidden."""
    if isinstance(value, dict):
        properties = schema.get("properties")
        if properties is None:
            inner = schema.get("additionalProperties")
            inner = inner if isinstance(inner, dict) else {}
            return {name: _as_cel(item, inner) for name, item in value.items()}
        seen = {}
        for name, item in value.items():
            spelled = escaped(name)
            if spelled is not None and item is not None:
                seen[spelled] = _as_cel(item, properties.get(name) or {})
        return seen
    if isinstance(value, list):
        inner = schema.get("items") or {}
        return [_as_cel(item, inner) for item in value]
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


@lru_cache(maxsize=1)
def _base() -> Context:
    """The functions, set up once: that takes far longer than a rule."""
    context = Context()
    add_stdlib_to_context(context)
    for name, function in _FUNCTIONS.items():
        context.add_function(name, function)
    return context


def _context(value: Any, old: Any, schema: Object, *, with_old: bool) -> Context:
    context = _base()
    context.add_variable("self", _as_cel(value, schema))
    context.add_variable("oldSelf", _as_cel(old, schema) if with_old else None)
    return context


_REASONS: Final = {
    "FieldValueInvalid": "Invalid value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A value under validation. `old` counts only if `correlated`: the old object has this very place."""

    path: str
    value: Any
    old: Any
    correlated: bool


def broken_rules(schema: Object, place: Place) -> list[Cause]:
    """The rules of this schema node that do not hold for the value."""
    causes = []
    for rule in schema.get("x-kubernetes-validations") or ():
        source = rule["rule"]
        transition = uses_old(source)
        optional = bool(rule.get("optionalOldSelf"))
        if transition and not place.correlated and not optional:
            continue
        context = _context(place.value, place.old, schema, with_old=transition)
        try:
            held = _compiled(source).execute(context)
        except Exception as error:
            text = f"rule evaluation error: {error}: evaluating rule: {source}"
            causes.append(
                Cause(reason="FieldValueInvalid", message=_invalid(place.value, text), field=_field(place, rule))
            )
            continue
        if held is not True:
            causes.append(_broken(rule, place, context))
    return causes


def _invalid(value: Any, text: str) -> str:
    """Only plain values are shown."""
    return (
        f"Invalid value: {text}" if isinstance(value, dict | list) else f"Invalid value: {_shown(value)}: {text}"
    )


def _field(place: Place, rule: Object) -> str:
    path: str = rule.get("fieldPath") or ""
    if not path:
        return place.path or "<nil>"
    return (place.path + path).lstrip(".") if path.startswith((".", "[")) else f"{place.path}.{path}"


def _broken(rule: Object, place: Place, context: Context) -> Cause:
    text = str(rule.get("message") or f"failed rule: {rule['rule']}").strip()
    if rule.get("messageExpression"):
        try:
            said = _compiled(rule["messageExpression"]).execute(context)
        except Exception:
            said = None
        if isinstance(said, str) and said.strip() and "\n" not in said:
            text = said.strip()
    reason = rule.get("reason") or "FieldValueInvalid"
    if reason == "FieldValueInvalid":
        return Cause(reason=reason, message=_invalid(place.value, text), field=_field(place, rule))
    if reason == "FieldValueDuplicate":
        message = f"Duplicate value: {_shown(place.value)}: {text}"
    else:
        message = f"{_REASONS[reason]}: {text}"
    return Cause(reason=reason, message=message, field=_field(place, rule))
