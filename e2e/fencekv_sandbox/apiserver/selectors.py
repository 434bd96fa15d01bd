"""Label and field selectors of lists and watches, as pure predicates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ApiError, bad_request

Object = dict[str, Any]
Predicate = Callable[[Object], bool]

_SET = re.compile(r"^(?P<key>[^\s!=()<>,]+)\s+(?P<verb>in|notin)\s+\((?P<values>[^()]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s!=()<>,]+)\s*(?P<verb>==|=|!=)\s*(?P<value>[^\s!=()<>,]*)$")
_ORDER = re.compile(r"^(?P<key>[^\s!=()<>,]+)\s*(?P<verb>[<>])\s*(?P<value>-?\d+)$")
_NAME = re.compile(r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$")


def split_requirements(text: str) -> list[str]:
    """Split at commas that stand outside of parentheses."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return parts


def _unable(text: str) -> ApiError:
    return bad_request(f'unable to parse requirement: invalid label selector "{text}"')


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    if match := _SET.match(text):
        key = match["key"]
        values = frozenset(value.strip() for value in match["values"].split(","))
        if match["verb"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(text):
        key, value = match["key"], match["value"]
        if match["verb"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _ORDER.match(text):
        key, bound, above = match["key"], int(match["value"]), match["verb"] == ">"

        def ordered(labels: Mapping[str, str]) -> bool:
            try:
                number = int(labels.get(key, ""))
            except ValueError:
                return False
            return number > bound if above else number < bound

        return ordered
    absent = text.startswith("!")
    key = text[1:].strip() if absent else text
    if not _NAME.match(key):
        raise _unable(text)
    return lambda labels: (key in labels) != absent


def label_selector(text: str) -> Predicate | None:
    """Parse `labelSelector`; None selects everything."""
    if not text.strip():
        return None
    requirements = [_requirement(part) for part in split_requirements(text)]

    def matches(obj: Object) -> bool:
        labels = obj["metadata"].get("labels") or {}
        return all(requirement(labels) for requirement in requirements)

    return matches


def value_at(obj: Any, path: str) -> Any:
    """The value at a dotted path, None where it leads nowhere."""
    for step in path.split("."):
        if not isinstance(obj, dict):
            return None
        obj = obj.get(step)
    return obj


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _unknown_field(field: str, *, plain: bool) -> ApiError:
    if plain:
        known = '"metadata.name", "metadata.namespace"'
        return bad_request(f'"{field}" is not a known field selector: only {known}')
    return bad_request(f"field label not supported: {field}")


def field_selector(text: str, fields: frozenset[str], *, plain: bool) -> Predicate | None:
    """Parse `fieldSelector`; only `fields` may be named. None selects everything.

    `plain`: the kind has no fields of its own to select by.
    """
    if not text.strip():
        return None
    wanted: list[tuple[str, str, bool]] = []
    for part in text.split(","):
        match = re.match(r"^([^!=]+?)\s*(==|=|!=)\s*(.*)$", part.strip())
        if match is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        field, verb, value = match.groups()
        if field not in fields:
            raise _unknown_field(field, plain=plain)
        wanted.append((field, value, verb != "!="))

    def matches(obj: Object) -> bool:
        return all((_as_text(value_at(obj, field)) == value) is equal for field, value, equal in wanted)

    return matches


def both(first: Predicate | None, second: Predicate | None) -> Predicate | None:
    """Both predicates at once; None selects everything."""
    if first is None or second is None:
        return first or second
    return lambda obj: first(obj) and second(obj)
