"""Tokens and versions: `<epoch>.<number>`, ordered by epoch first.

A token's number is a txid (a commit round), a version's is a seq (a journal entry). A bare number is not
enough: after a loss of unshipped writes, numbers are used again under a higher epoch.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from fencekv.errors import Invalid

NUMBER_MAX = 2**63 - 1
_SHAPE = re.compile(r"(0|[1-9][0-9]{0,18})\.(0|[1-9][0-9]{0,18})", re.ASCII)


class _Numbered(NamedTuple):  # not a dataclass: two are made for each request
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"

    @classmethod
    def parse(cls, text: str, *, field: str) -> Self:
        """Reads `<epoch>.<number>`.

        Raises:
            Invalid: naming `field`, for any other shape.
        """
        match = _SHAPE.fullmatch(text)
        if match is None or any(int(part) > NUMBER_MAX for part in match.groups()):
            raise Invalid(f"{field}: want <epoch>.<number>, got {text[:64]!r}", field=field)
        return cls(int(match[1]), int(match[2]))


class Token(_Numbered):
    """What a client carries for read-your-writes: epoch and txid."""

    __slots__ = ()


class Version(_Numbered):
    """The transaction that wrote a key: epoch and seq."""

    __slots__ = ()
