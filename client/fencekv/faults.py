"""An order to do a fault: an annotation on a session Lease, written by the operator, read by the pod's helper.

Invariants:
  * An order names the one session that it is for; every other session takes no notice of it.
  * Every order ends: after its seconds, counted from its arrival, what it did is undone, whoever has died.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from fencekv.codec import canonical_json, decode_json
from fencekv.errors import Invalid
from fencekv.leases import GROUP

FAULT: Final = f"{GROUP}/fault"
EXPIRES_SECONDS_MAX: Final = 180
ORDER_CHARS_MAX: Final = 1024


class Fault(enum.StrEnum):
    """What can be done to a shard."""

    KILL = "kill"  # its process
    FREEZE = "freeze"  # its process
    CUT_FROM_API = "cutFromAPI"
    CUT_FROM_PEERS = "cutFromPeers"
    DELETE_POD = "deletePod"  # by the operator itself, without an order


ORDERED: Final = frozenset(Fault) - {Fault.DELETE_POD}
CUTS: Final = frozenset({Fault.CUT_FROM_API, Fault.CUT_FROM_PEERS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Do `fault` to the process of `session`, for `seconds` from when this is seen."""

    fault: Fault
    session: str
    seconds: int

    def annotation(self) -> str:
        """As the Lease carries it."""
        return canonical_json({"fault": str(self.fault), "session": self.session, "expires": self.seconds})

    @classmethod
    def of(cls, lease: Mapping[str, Any]) -> Self | None:
        """The order on a session Lease; None: there is none.

        Raises:
            Invalid: what stands there is no order.
        """
        text = (lease.get("metadata", {}).get("annotations") or {}).get(FAULT)
        if text is None:
            return None
        if len(text) > ORDER_CHARS_MAX:
            limit = ORDER_CHARS_MAX
            raise Invalid(f"{FAULT}: {len(text)} characters, at most {limit}", field=FAULT, limit=limit)
        document = decode_json(text, what=FAULT)
        if not isinstance(document, dict) or document.keys() != {"fault", "session", "expires"}:
            raise Invalid(f"{FAULT}: want fault, session and expires", field=FAULT)
        fault, session, seconds = document["fault"], document["session"], document["expires"]
        if fault not in ORDERED or not isinstance(session, str):
            raise Invalid(f"{FAULT}: {str(fault)[:40]!r} cannot be ordered", field=FAULT)
        if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds <= EXPIRES_SECONDS_MAX:
            limit = EXPIRES_SECONDS_MAX
            raise Invalid(f"{FAULT}: expires: want 1 to {limit} seconds", field=FAULT, limit=limit)
        return cls(fault=Fault(fault), session=session, seconds=seconds)
