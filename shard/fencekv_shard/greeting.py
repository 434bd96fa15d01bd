"""How two shards begin to speak: who is there, and which version of the replication stream both speak.

| version | what it knows |
|---|---|
| 1 | entries alone; takes a hello of its own version and no other, so that it is greeted with 1 |
| 2 | the standby speaks first, and each says the highest version that it knows; bases are sent (`seed`, `rows`) |

Invariants:
  * What is spoken is the lower version of the two, and those are neighbours; else nothing is, and both sides say
    which of them is to be updated.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from fencekv.leases import MalformedLease, Session
from fencekv_shard import limits
from fencekv_shard.peer import Channel, ChannelClosed, Message

PROTOCOL: Final = 2
FIRST: Final = 1
SEEDS: Final = 2  # from this version on a standby takes a base
# Why a standby refuses: its base is sound, and another than the owner's. It follows on. An owner that does not
# know this reason ends the subscription as for any other, so that such a standby is not counted either.
BASE_DIFFERS: Final = "base-differs"

_FIELDS: Final = 5


class Incompatible(ChannelClosed):
    """The other side's version is no neighbour of ours. The text says whom to update."""


class SaysFirst(ChannelClosed):
    """The other side is of version 1: it is to be dialled again, and greeted with that."""


class Greeted(NamedTuple):
    """Who is there, and the version that is spoken."""

    session: Session
    version: int


def agreed(theirs: int, *, peer: str, own: int = PROTOCOL) -> int:
    """The version that two shards speak. `peer` names the other one.

    Raises:
        Incompatible: they are more than one step apart.
    """
    if abs(own - theirs) <= 1:
        return min(own, theirs)
    if theirs < own:
        whom = f"update {peer} to a release that speaks {own - 1} first"
    else:
        whom = f"update this shard to a release that speaks {theirs - 1} first"
    raise Incompatible(f"{peer} speaks version {theirs} of the replication stream, this shard {own}: {whom}")


async def call(
    channel: Channel, *, session: Session, kvns: str, says: int = PROTOCOL, own: int = PROTOCOL
) -> Greeted:
    """Greets as the side that dialled. `says`: the version in the hello, `own` but for a shard of version 1.

    Raises:
        SaysFirst, Incompatible, ChannelClosed: see there.
    """
    await channel.send(_hello(says, session, kvns))
    there, theirs = await _heard(channel, kvns)
    version = agreed(theirs, peer=there.pod, own=own)
    if theirs == FIRST and says != FIRST:
        raise SaysFirst(f"{there.pod} speaks version {FIRST} of the replication stream")
    return Greeted(there, version)


async def answer(channel: Channel, *, session: Session, kvns: str, own: int = PROTOCOL) -> Greeted:
    """Greets as the side that was dialled.

    Raises:
        Incompatible: the other side was told our version, so that it can say the same.
        ChannelClosed: it is none of ours.
    """
    there, theirs = await _heard(channel, kvns)
    try:
        version = agreed(theirs, peer=there.pod, own=own)
    except Incompatible:
        await channel.send(_hello(own, session, kvns))
        raise
    await channel.send(_hello(FIRST if theirs == FIRST else own, session, kvns))
    return Greeted(there, version)


def _hello(version: int, session: Session, kvns: str) -> Message:
    return ["hello", version, str(session), session.pod, kvns]


async def _heard(channel: Channel, kvns: str) -> tuple[Session, int]:
    """The other side's hello: its session and version. A later version may say more in it."""
    try:
        async with asyncio.timeout(limits.PEER_SILENCE_SECONDS):
            hello = await channel.receive()
    except TimeoutError as error:
        raise ChannelClosed("no hello") from error
    match hello[:_FIELDS]:
        case ["hello", int(version), str(session), str(), str(theirs)] if version >= FIRST and theirs == kvns:
            try:
                return Session.parse(session), version
            except MalformedLease as error:
                raise ChannelClosed(str(error)) from error
    raise ChannelClosed(f"not one of us: {hello[:2]}")
