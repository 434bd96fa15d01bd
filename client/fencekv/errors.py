"""What can go wrong, named by what the caller does next.

  - Invalid      fix the request
  - Denied       ask for access
  - Conflict     retry the transaction from its reads
  - Lost         what the token stood for was lost: read anew
  - TooLarge     send less
  - NotOwner     ask the owner named in the error
  - Fenced       stop: a newer owner exists
  - Exhausted    come back later, slower
  - Unavailable  retry the same request later: it was not carried out
  - Unknown      the outcome is not known: repeat with the same idempotency key

Invariants:
  * Every error that leaves a shard is one of these; each has one HTTP status (`Invalid` and `Conflict`: two).
  * Only `Unknown` leaves open whether the request was carried out; after every other one it was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

TYPE_PREFIX = "https://fencekv.io/errors/"


class FenceKVError(Exception):
    """Base of all errors of FenceKV.

    Attributes:
        detail: a sentence for people.
        status: HTTP status.
        extra: further members of the problem document (`field`, `limit`, `owner`, `epoch`, `end`).
    """

    name: ClassVar[str] = "FenceKVError"
    default_status: ClassVar[int] = 500
    retry_after_seconds: ClassVar[float | None] = None

    def __init__(self, detail: str, *, status: int | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = self.default_status if status is None else status
        self.extra = {key: value for key, value in extra.items() if value is not None}

    def to_problem(self) -> dict[str, Any]:
        """The RFC 9457 problem document."""
        head = {"type": TYPE_PREFIX + self.name.lower(), "title": self.name, "status": self.status}
        return {**head, "detail": self.detail, **self.extra}


class Invalid(FenceKVError):
    """The request is wrong: fix it. 400; 404 for an unknown table; 422 where a table's own limits refuse it."""

    name = "Invalid"
    default_status = 400


class Denied(FenceKVError):
    """The caller may not do this."""

    name = "Denied"
    default_status = 403


class NotFound(FenceKVError):
    """The key does not exist. An answer more than an error; only HTTP needs it as one."""

    name = "NotFound"
    default_status = 404


class Conflict(FenceKVError):
    """A condition did not hold: retry from the reads. 409; 412 for If-Match and If-None-Match."""

    name = "Conflict"
    default_status = 409


class Lost(FenceKVError):
    """What the token stands for was lost in a failover; `end` names the last token that was kept."""

    name = "Lost"
    default_status = 410


class TooLarge(FenceKVError):
    """More bytes or operations than the limit named in the error."""

    name = "TooLarge"
    default_status = 413


class NotOwner(FenceKVError):
    """This shard does not own the partition; `owner` and `http` name the one that does, where it is known."""

    name = "NotOwner"
    default_status = 421


class Fenced(FenceKVError):
    """A newer owner exists: whoever got this must stop writing under the old epoch."""

    name = "Fenced"
    default_status = 423


class Exhausted(FenceKVError):
    """A bounded resource is full."""

    name = "Exhausted"
    default_status = 429
    retry_after_seconds = 0.1


class Unavailable(FenceKVError):
    """Cannot be done now, and was not done: retry later."""

    name = "Unavailable"
    default_status = 503
    retry_after_seconds = 0.1


class Unknown(FenceKVError):
    """The outcome cannot be known: repeat with the same idempotency key."""

    name = "Unknown"
    default_status = 504


ERRORS: Mapping[str, type[FenceKVError]] = {
    kind.name: kind
    for kind in (
        Invalid,
        Denied,
        NotFound,
        Conflict,
        Lost,
        TooLarge,
        NotOwner,
        Fenced,
        Exhausted,
        Unavailable,
        Unknown,
    )
}


def from_problem(problem: Mapping[str, Any], status: int) -> FenceKVError:
    """The error that a problem document stands for; one that nobody here knows is `Unknown`, the safest."""
    kind = ERRORS.get(str(problem.get("title")), Unknown)
    known = {"type", "title", "status", "detail"}
    extra = {key: value for key, value in problem.items() if key not in known and key.isidentifier()}
    return kind(str(problem.get("detail", f"HTTP {status}")), status=status, **extra)
