"""Takes out of objects and logs what nobody should mail around. Pure.

What is taken out is replaced by a word that says so, so that a reader sees that there was something. It rather
takes too much; it cannot know every form that a secret has, and the bundle says that as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

REDACTED: Final = "(redacted)"

_SECRET_NAME: Final = re.compile(
    r"pass(word|wd|phrase)?$|passw|secret|token|credential|api[-_.]?key|access[-_.]?key|private[-_.]?key"
    r"|auth(orization)?$|cookie|signature|bearer|dsn$|connection[-_.]?string|sas$",
    re.IGNORECASE,
)
# Names that sound like secrets and are none of them: they only say where one is, or they are ours.
_HARMLESS_NAME: Final = re.compile(
    r"^(token|durableToken|secretName|secretRef|secretKeyRef|credentialsSecret|automountServiceAccountToken"
    r"|imagePullSecrets|serviceAccountToken|tokenExpirationSeconds|expirationSeconds)$"
)
_PATTERNS: Final = (
    # user:password@ in an address
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^/\s:@]*:)[^/\s@]+(@)", re.IGNORECASE), rf"\1{REDACTED}\2"),
    (re.compile(r"(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(r"(\bbasic\s+)[A-Za-z0-9+/=]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    # a JSON web token
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REDACTED),
    # the id of an access key at AWS
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), REDACTED),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        REDACTED,
    ),
    # password=…, "secret": "…" and their like
    (
        re.compile(
            r"""((?:password|passwd|secret|api[-_]?key|access[-_]?key|private[-_]?key|credential)s?["']?\s*[=:]\s*["']?)"""
            r"""[^\s"',;&]{3,}""",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    # what an address carries to prove who asks
    (re.compile(r"([?&](?:sig|signature|token|x-amz-[a-z-]+|se|sp)=)[^&\s\"']+", re.IGNORECASE), rf"\1{REDACTED}"),
)

# Annotations that hold whole objects again, with all that was taken out of them elsewhere.
_COPIES: Final = frozenset({"kubectl.kubernetes.io/last-applied-configuration"})


def redacted_text(text: str) -> str:
    """A log or any other text."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def redacted(item: Any) -> Any:
    """An object as the API server gives it: without managedFields, and without what looks like a credential."""
    if isinstance(item, Mapping):
        if _is_named_value(item):
            return {**{key: redacted(value) for key, value in item.items()}, "value": REDACTED}
        return {key: _member(str(key), value) for key, value in item.items() if key != "managedFields"}
    if isinstance(item, list | tuple):
        return [redacted(value) for value in item]
    return redacted_text(item) if isinstance(item, str) else item


def _member(name: str, value: Any) -> Any:
    if name in _COPIES:
        return REDACTED
    if isinstance(value, str) and value and _is_secret_name(name):
        return REDACTED
    return redacted(value)


def _is_named_value(item: Mapping[str, Any]) -> bool:
    """An environment variable, or whatever else is a name and a value."""
    value = item.get("value")
    return (
        isinstance(item.get("name"), str)
        and isinstance(value, str)
        and bool(value)
        and _is_secret_name(item["name"])
    )


def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS_NAME.match(name)
