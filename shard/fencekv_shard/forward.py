"""Asking another shard: a client's request as it came, one hop on, or a page of a partition for a wide listing.

Invariants:
  * A request is sent once. A write that may have arrived and has no answer is `Unknown`; one that did not leave,
    and every read, is `Unavailable`.
  * Every request that leaves here carries `FenceKV-Forwarded`, so that it travels no further.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from fencekv import wire
from fencekv.codec import decode_json
from fencekv.errors import ERRORS, Invalid, NotOwner, Unavailable, Unknown, from_problem
from fencekv.token import Token, Version
from fencekv.transport import Broken, Refused, Reply, send
from fencekv_shard.api import Item, Options, Page, Range
from fencekv_shard.calls import List, Relayed
from fencekv_shard.faults import Cuts
from fencekv_shard.http_answers import HttpAnswer
from fencekv_shard.limits import UNCLEAN_ANSWER_SECONDS
from fencekv_shard.transaction import Record

# The owner answers Unknown by itself after UNCLEAN_ANSWER_SECONDS; the rest is for the way there and back.
RELAY_SECONDS: Final = UNCLEAN_ANSWER_SECONDS + 5.0

_PASSED_ON: Final = {
    name.lower()
    for name in (
        wire.MIN_TOKEN,
        wire.CONSISTENCY,
        wire.DURABILITY,
        wire.EPOCH,
        wire.IDEMPOTENCY_KEY,
        wire.IF_MATCH,
        wire.IF_NONE_MATCH,
        "Content-Type",
    )
}
_PASSED_BACK: Final = (
    wire.TOKEN,
    wire.EPOCH,
    wire.VERSION,
    wire.PARTITION,
    wire.DURABILITY,
    wire.SEQ,
    "Retry-After",
)
_OUTCOMES: Final = {kind.default_status: name for name, kind in ERRORS.items()} | {412: "Conflict", 422: "Invalid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A client's request, as it came."""

    method: str
    target: str
    headers: Iterable[tuple[str, str]]
    body: bytes
    write: bool


class Forwarder:
    """Sends requests to other shards over `session`, which its maker closes."""

    def __init__(self, session: aiohttp.ClientSession, *, pod: str, cuts: Cuts) -> None:
        self._session = session
        self._pod = pod
        self._cuts = cuts

    async def relay(self, http: str, request: Received) -> Relayed:
        """Has the shard at `http` answer a client's request.

        Raises:
            Unavailable: nothing was sent, or a read had no answer.
            Unknown: a write was sent and had no answer.
        """
        headers = {name: value for name, value in request.headers if name.lower() in _PASSED_ON}
        reply = await self._send(http, request.method, request.target, headers, request.body, write=request.write)
        back = {name: reply.headers[name] for name in _PASSED_BACK if name in reply.headers}
        answer = HttpAnswer(
            status=reply.status,
            body=reply.body,
            content_type=reply.headers.get("Content-Type", wire.OCTETS),
            headers=back,
            outcome="ok" if reply.status < 400 else _OUTCOMES.get(reply.status, "Unknown"),
        )
        return Relayed(reply=answer, owner_http=_owner_http(reply))

    async def page(self, http: str, call: List, index: int, span: Range, options: Options) -> Page:
        """A page of one partition from the shard at `http`.

        Raises:
            Unavailable: no answer, or one that cannot be read.
            FenceKVError: what that shard answered.
        """
        reply = await self._send(http, "GET", _page_target(call, index, span, options), _asked(options), b"")
        document = _document(http, reply)
        if reply.status >= 400:
            raise from_problem(document, reply.status)
        try:
            return _page(document, seq=int(reply.headers[wire.SEQ]))
        except (Invalid, KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"{http}: malformed page: {error!r}") from error

    async def _send(
        self, http: str, method: str, target: str, headers: Mapping[str, str], body: bytes, *, write: bool = False
    ) -> Reply:
        try:
            await self._cuts.reached(http)
            async with asyncio.timeout(RELAY_SECONDS):
                reply = await send(
                    self._session,
                    method=method,
                    url=f"http://{http}{target}",
                    headers={**headers, wire.FORWARDED: self._pod},
                    body=body,
                    timeout=RELAY_SECONDS,
                )
                await self._cuts.arrived()
            return reply
        except Refused as error:
            raise Unavailable(f"the owner at {http} cannot be reached") from error
        except (Broken, TimeoutError) as error:
            if write:
                raise Unknown(f"the owner at {http} was asked and did not answer") from error
            raise Unavailable(f"the owner at {http} did not answer") from error


def _owner_http(reply: Reply) -> str:
    """The owner that a NotOwner names; empty: another answer, or it names none."""
    if reply.status != NotOwner.default_status:
        return ""
    try:
        document = decode_json(reply.body)
    except Invalid:
        return ""
    return str(document.get("http") or "") if isinstance(document, dict) else ""


def _document(http: str, reply: Reply) -> Mapping[str, Any]:
    try:
        document = decode_json(reply.body)
    except Invalid as error:
        raise Unavailable(f"{http}: status {reply.status} without a document") from error
    if not isinstance(document, dict):
        raise Unavailable(f"{http}: status {reply.status} without a document")
    return document


def _page_target(call: List, index: int, span: Range, options: Options) -> str:
    query = {"partition": str(index), "limit": str(span.limit), "start": span.start, "end": span.end}
    token = options.min_token
    if span.after or span.at is not None:
        listing = wire.listing_id(call.table, span.start, span.end, index)
        position = wire.Position(index, token, span.at)
        query["cursor"] = wire.encode_list_cursor(wire.ListCursor(span.after, (position,)), listing)
    pairs = "&".join(f"{name}={wire.segment(value)}" for name, value in query.items() if value)
    return f"/v1/{wire.segment(call.namespace)}/{wire.segment(call.table)}/keys?{pairs}"


def _asked(options: Options) -> dict[str, str]:
    headers = {wire.CONSISTENCY: str(options.consistency)}
    if options.min_token is not None:
        headers[wire.MIN_TOKEN] = str(options.min_token)
    if options.epoch is not None:
        headers[wire.EPOCH] = str(options.epoch)
    return headers


def _page(document: Mapping[str, Any], *, seq: int) -> Page:
    items = [
        Item(str(item["key"]), Record(wire.value_of(item, field="items"), _version(item)))
        for item in document["items"]
    ]
    more = document["cursor"] is not None
    if more and not items:
        raise ValueError("more keys are promised, and none is there")
    return Page(items=items, more=more, token=Token.parse(document["token"], field="token"), seq=seq)


def _version(item: Mapping[str, Any]) -> Version:
    return Version.parse(item["version"], field="version")
