"""What accounts did, from an API server's audit log, and what RBAC lets them do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Object = dict[str, Any]

SHARD = "fencekv-shard-"
OPERATOR = "system:serviceaccount:fencekv-system:fencekv-operator"
FORBIDDEN = 403


class Right(NamedTuple):
    """One verb on one resource; `resource` holds the subresource too, as a Role writes it."""

    verb: str
    group: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


class Deed(NamedTuple):
    """One request: what it used, where, and what it was answered."""

    account: str  # "operator" or "shard"
    right: Right
    namespace: str
    status: int
    message: str


def deeds(log: Path) -> Iterator[Deed]:
    """Every request of the operator and of shards for an object; discovery asks for none."""
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            account = account_of(event["user"]["username"])
            about = event.get("objectRef")
            # Which APIs there are may be asked by everybody, and RBAC of ours says nothing of it.
            if not account or not about or "resource" not in about:
                continue
            resource = "/".join(part for part in (about["resource"], about.get("subresource")) if part)
            yield Deed(
                account=account,
                right=Right(event["verb"], about.get("apiGroup", ""), resource),
                namespace=about.get("namespace", ""),
                status=int((event.get("responseStatus") or {}).get("code", 0)),
                message=str((event.get("responseStatus") or {}).get("message", "")),
            )


def account_of(user: str) -> str:
    """Which of our accounts a user is; empty: none of them."""
    if user == OPERATOR:
        return "operator"
    return "shard" if user.rpartition(":")[2].startswith(SHARD) else ""


def granted(rules: Iterable[Mapping[str, Any]]) -> set[Right]:
    """What the rules of a Role allow."""
    return {
        Right(verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
