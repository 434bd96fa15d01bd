"""Who is asking: bearer tokens, service account tokens, and reviews of oneself.

This is for telling users apart on a developer's machine, not a protection: everything listens on loopback.

Invariants:
  * A service account's token is good as long as that very account (by UID) exists, over restarts too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from .core import Core, timestamp
from .store import Key, Object, Stored

SECONDS_DEFAULT: Final = 3600
ADMIN: Final = "system:admin"
_PREFIX: Final = "sandbox."


def request(account: Stored, document: Object, core: Core) -> Object:
    """Answer a TokenRequest for a service account."""
    spec = dict(document.get("spec") or {})
    seconds = int(spec.get("expirationSeconds") or SECONDS_DEFAULT)
    spec.setdefault("audiences", ["https://kubernetes.default.svc"])
    spec["expirationSeconds"] = seconds
    meta = account.object["metadata"]
    claims = [account.key.namespace, account.key.name, meta["uid"]]
    token = _PREFIX + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": account.key.name, "namespace": account.key.namespace},
        "spec": spec,
        "status": {"token": token, "expirationTimestamp": timestamp(core.now() + timedelta(seconds=seconds))},
    }


def user_of(authorization: str, tokens: Mapping[str, str], core: Core) -> str | None:
    """The user behind an Authorization header; None: unknown. Without tokens everybody is the admin."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    if token in tokens:
        return tokens[token]
    if token.startswith(_PREFIX):
        name = _account_of(token, core)
        if name is not None:
            return name
    return None if tokens else ADMIN


def _account_of(token: str, core: Core) -> str | None:
    text = token.removeprefix(_PREFIX)
    try:
        claims = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        namespace, name, uid = (str(one) for one in claims)
    except (ValueError, TypeError):
        return None
    stored = core.store.get(Key(resource="serviceaccounts", namespace=namespace, name=name))
    if stored is None or stored.object["metadata"]["uid"] != uid:
        return None
    return f"system:serviceaccount:{namespace}:{name}"


def review(kind: str, document: Object, user: str) -> Object:
    """Answer a review of oneself: everything is allowed here."""
    if kind == "SelfSubjectReview":
        return {**document, "status": {"userInfo": {"username": user, "groups": ["system:authenticated"]}}}
    return {**document, "status": {"allowed": True, "reason": "the sandbox allows everything"}}
