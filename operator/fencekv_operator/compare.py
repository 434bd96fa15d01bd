"""Whether an object of the cluster is as we asked, and the patch that makes it so.

Invariants:
  * What the server filled in beside our fields is no difference; neither is another spelling of the same quantity.
  * `merge_patch` of what does not match makes it match.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final

Object = dict[str, Any]

# Keys under which an object holds our entries and no others: what we do not name is to go.
EXACT: Final = frozenset({"nodeSelector", "matchLabels", "updateStrategy"})
_UNITS: Final = {
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def matches(ours: Any, theirs: Any, *, exact: bool = False) -> bool:
    """Whether an object has our fields. What the server filled in beside them does not count."""
    if isinstance(ours, dict):
        theirs = theirs or {}
        if not isinstance(theirs, dict) or (exact and theirs.keys() - ours.keys()):
            return False
        return all(matches(value, theirs.get(key), exact=key in EXACT) for key, value in ours.items())
    if isinstance(ours, list):
        theirs = theirs or []
        same = isinstance(theirs, list) and len(ours) == len(theirs)
        return same and all(matches(mine, other) for mine, other in zip(ours, theirs, strict=True))
    # An empty or zero value is left out where the server omits what is empty.
    return ours == theirs or (not ours and theirs is None) or _same_quantity(ours, theirs)


def merge_patch(ours: Object, theirs: Object, *, exact: bool = False) -> Object:
    """The merge patch that brings our fields into `theirs`; under `EXACT` keys also takes away the others."""
    patch: Object = {}
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            patch[key] = merge_patch(value, other, exact=key in EXACT)
        else:
            patch[key] = value
    if exact:
        patch.update({key: None for key in theirs if key not in ours})
    return patch


def _same_quantity(ours: Any, theirs: Any) -> bool:
    mine, other = quantity(ours), quantity(theirs)
    return mine is not None and mine == other


def quantity(value: Any) -> Decimal | None:
    """A quantity such as `500m`, `2Gi` or 3 as a number; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    for suffix in sorted(_UNITS, key=len, reverse=True):
        if text.endswith(suffix):
            return _decimal(text.removesuffix(suffix), _UNITS[suffix])
    return _decimal(text, Decimal(1))


def _decimal(text: str, unit: Decimal) -> Decimal | None:
    try:
        return Decimal(text) * unit
    except InvalidOperation:
        return None
