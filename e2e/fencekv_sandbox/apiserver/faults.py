"""Faults on demand: what a test or a person wants the API server to do wrong.

The rules are plain data; the front (or a simulation) asks `Faults.decide` about each request and carries the
outcome out. Nothing here waits or sends.

Invariants:
  * Without rules nothing is wrong.
  * A rule with `count` strikes exactly that often, then it is gone.
  * Chance comes from the generator that was passed in: the same seed gives the same faults.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal, Protocol

Kind = Literal[
    "freeze", "delay", "conflict", "too_many", "unavailable", "lost_reply", "stale_list", "cut_watch", "gone"
]
KINDS: Final = (
    "freeze",
    "delay",
    "conflict",
    "too_many",
    "unavailable",
    "lost_reply",
    "stale_list",
    "cut_watch",
    "gone",
)
VERBS: Final = frozenset(
    {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "other"}
)


class Chance(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float:
        """A number in [0, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request is about, as rules see it."""

    verb: str
    resource: str = ""  # `leases`; empty outside of resources.
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    user_agent: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One fault. Empty or absent conditions match everything; texts are shell patterns."""

    kind: Kind
    id: str = ""  # Given by `Faults.add` when empty.
    verbs: tuple[str, ...] = ()
    resource: str = "*"
    namespace: str = "*"
    name: str = "*"
    user_agent: str = "*"
    user: str = "*"
    percentage: float = 100.0
    count: int | None = None  # None: until it is removed.
    seconds: float = 0.0  # Of a delay, or Retry-After of `too_many`.

    def matches(self, asked: Asked) -> bool:
        """Whether this rule is about the request."""
        return (not self.verbs or asked.verb in self.verbs) and all(
            fnmatch.fnmatchcase(value, pattern)
            for value, pattern in (
                (asked.resource, self.resource),
                (asked.namespace, self.namespace),
                (asked.name, self.name),
                (asked.user_agent, self.user_agent),
                (asked.user, self.user),
            )
        )


class BadFault(ValueError):
    """The document is no rule."""


def rule_from(document: Mapping[str, Any]) -> Rule:
    """A rule from JSON; raises BadFault naming the field."""
    known = {one.name for one in fields(Rule)}
    for name in document:
        if name not in known:
            raise BadFault(f"unknown field {name!r}; known are {', '.join(sorted(known))}")
    if document.get("kind") not in KINDS:
        raise BadFault(f"kind must be one of {', '.join(KINDS)}, not {document.get('kind')!r}")
    given = dict(document)
    given["verbs"] = tuple(given.get("verbs") or ())
    for verb in given["verbs"]:
        if verb not in VERBS:
            raise BadFault(f"verbs: {verb!r} is none of {', '.join(sorted(VERBS))}")
    for name, least, most in (("percentage", 0, 100), ("seconds", 0, 3600), ("count", 1, 1_000_000)):
        value = given.get(name)
        if value is not None and (not isinstance(value, int | float) or not least <= value <= most):
            raise BadFault(f"{name} must be a number from {least} to {most}, not {value!r}")
    for name in ("resource", "namespace", "name", "user_agent", "user", "id"):
        if name in given and not isinstance(given[name], str):
            raise BadFault(f"{name} must be a text")
    return Rule(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to go wrong with one request."""

    freeze: str | None = None  # The rule that holds the request; it goes on when that is removed.
    delay_seconds: float = 0.0
    error: Kind | None = None  # conflict, too_many, unavailable, gone: answered instead of being handled.
    retry_after_seconds: int = 1
    lost_reply: bool = False
    stale: bool = False


@dataclass(slots=True)
class Faults:
    """The rules in force."""

    chance: Chance
    changed: Callable[[], None] = field(default=lambda: None)  # Called when rules come or go.
    on_cut: Callable[[Rule], None] = field(default=lambda rule: None)  # Called by `cut_watch` rules at once.
    on_stale: Callable[[], None] = field(default=lambda: None)  # Called before the first stale list.
    _rules: dict[str, Rule] = field(default_factory=dict)
    _made: int = 0

    def rules(self) -> list[Rule]:
        """All rules in force, oldest first."""
        return list(self._rules.values())

    def documents(self) -> list[dict[str, Any]]:
        """The same as JSON documents."""
        return [asdict(rule) for rule in self._rules.values()]

    def add(self, rule: Rule) -> str:
        """Put a rule in force; returns its id. `cut_watch` also cuts the watches that are open now."""
        self._made += 1
        rule = replace(rule, id=rule.id or f"fault-{self._made}")
        if rule.kind == "stale_list":
            self.on_stale()
        self._rules[rule.id] = rule
        if rule.kind == "cut_watch":
            self.on_cut(rule)
            if rule.count is None:  # Cut once; later watches are let alone.
                del self._rules[rule.id]
        self.changed()
        return rule.id

    def remove(self, rule_id: str) -> bool:
        """Take a rule out of force; requests that it froze go on."""
        removed = self._rules.pop(rule_id, None) is not None
        self.changed()
        return removed

    def clear(self) -> None:
        """Take all rules out of force."""
        self._rules.clear()
        self.changed()

    def is_frozen(self, rule_id: str) -> bool:
        """Whether a freeze still holds."""
        return rule_id in self._rules

    def freezes(self, asked: Asked) -> bool:
        """Whether a freeze holds what concerns an open watch: its events wait."""
        return any(rule.kind == "freeze" and rule.matches(asked) for rule in self._rules.values())

    def decide(self, asked: Asked) -> Decision:
        """What goes wrong with this request; strikes are counted."""
        decision = Decision()
        for rule in list(self._rules.values()):
            if not rule.matches(asked) or not self._strikes(rule):
                continue
            match rule.kind:
                case "freeze":
                    decision = replace(decision, freeze=rule.id)
                case "delay":
                    decision = replace(decision, delay_seconds=decision.delay_seconds + rule.seconds)
                case "lost_reply":
                    decision = replace(decision, lost_reply=True)
                case "stale_list":
                    decision = replace(decision, stale=True)
                case "cut_watch":
                    if asked.verb == "watch":
                        decision = replace(decision, lost_reply=True)
                case error:
                    seconds = max(1, round(rule.seconds))
                    decision = replace(decision, error=error, retry_after_seconds=seconds)
        return decision

    def _strikes(self, rule: Rule) -> bool:
        if rule.percentage < 100 and self.chance.random() * 100 >= rule.percentage:
            return False
        if rule.count is not None and rule.kind != "freeze":
            if rule.count <= 1:
                del self._rules[rule.id]
            else:
                self._rules[rule.id] = replace(rule, count=rule.count - 1)
        return True
