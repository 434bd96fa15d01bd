"""Whether a replica is fresh enough for a token. Pure.

A token e.t at a replica that stands at (E, N): satisfied if e = E and t <= N, or if e < E and t <= end(e),
the last txid of epoch e as its successor recorded it. Above end(e) it is lost; if e > E, or e = E and t > N,
one waits.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from fencekv.errors import Lost
from fencekv.token import Token


class Freshness(enum.Enum):
    """What a token means here, if it is not lost."""

    SATISFIED = "satisfied"
    BEHIND = "behind"  # this replica has to catch up first


def judge(token: Token, *, at: Token, ends: Iterable[tuple[int, int, int]]) -> Freshness:
    """Judges `token` at a replica that stands `at`; `ends` lists (epoch, end seq, end txid) of earlier epochs.

    Raises:
        Lost: the token stands for something that a failover lost.
    """
    if token.epoch > at.epoch:
        return Freshness.BEHIND
    if token.epoch == at.epoch:
        return Freshness.SATISFIED if token.number <= at.number else Freshness.BEHIND
    earlier = [(epoch, txid) for epoch, _, txid in ends if epoch <= token.epoch]
    last_epoch, last_txid = max(earlier, default=(0, 0))
    if token.number <= last_txid and last_epoch == token.epoch:
        return Freshness.SATISFIED
    end = Token(last_epoch, last_txid)
    if not earlier:
        raise Lost(f"token {token} is of an epoch whose end is not known (any more): read anew", end=str(end))
    raise Lost(f"token {token} was lost in a failover; {end} is the last before it that was kept", end=str(end))
