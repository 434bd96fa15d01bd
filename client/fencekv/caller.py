"""Requests to the shards of a namespace: find the owner, send, and send again where that is safe.

Invariants:
  * All decisions about repeating are `attempts.judge`'s.
  * A request ends within its timeout, and if it may have been carried out, never in an error that denies it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from fencekv import wire
from fencekv.attempts import Chance, Failure, Step, final_error, judge, pause_seconds
from fencekv.codec import decode_json
from fencekv.discovery import Source
from fencekv.errors import FenceKVError, Invalid, Lost, Unavailable, from_problem
from fencekv.routing import Routes, TableRoutes
from fencekv.token import Token
from fencekv.transport import Broken, Refused, Reply, send

ROUTE_SECONDS: Final = 0.5
WATCH_SECONDS: Final = 0.5  # without an answer, then one looks whether the owner has changed
FOLLOWED_AT_ONCE_MAX: Final = 2  # then a NotOwner costs a pause as well: two shards could name each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a client behaves."""

    timeout_seconds: float = 10.0  # for a request with all its attempts
    attempt_seconds: float = 2.0  # for one attempt that may be repeated
    standard_success_seconds: float = 2.0  # D - V of the namespace: a `standard` success after it is not believed
    idempotency: bool = True  # give every write a key, so that it can be repeated in every case


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a table; `place` is the key or the partition that it is about, None: any shard will do."""

    method: str
    table: str
    path: str  # behind /v1/{namespace}/{table}, with its query
    place: str | int | None
    write: bool = False
    keyed: bool = False
    slow: bool = False  # an attempt may take the whole timeout
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Superseded(Broken):
    """No answer yet, and the partition has a new owner: the routes say whom to ask."""


class Caller:
    """Sends requests over `session`, which its maker closes."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        namespace: str,
        source: Source,
        settings: Settings,
        chance: Chance,
        clock: Callable[[], float],
    ) -> None:
        self.routes = Routes()
        self._session = session
        self._namespace = namespace
        self._source = source
        self._settings = settings
        self._chance = chance
        self._clock = clock
        self._endpoints: Sequence[str] = ()
        self._loading: dict[str, asyncio.Lock] = {}

    async def call(self, request: Request) -> Reply:
        """Sends a request until it is answered.

        Raises:
            FenceKVError: the answer, or what is known when there is none in time.
        """
        deadline = self._clock() + self._settings.timeout_seconds
        uncertain, followed, pauses = False, 0, 0
        while True:
            outcome = await self._attempt(request, deadline)
            if isinstance(outcome, Reply):
                return outcome
            failure, detail = outcome
            verdict = judge(failure, write=request.write, keyed=request.keyed, uncertain=uncertain)
            uncertain = verdict.uncertain
            if verdict.step is Step.RAISE:
                raise final_error(failure, uncertain=uncertain, detail=detail)
            if verdict.step is Step.FOLLOW and followed < FOLLOWED_AT_ONCE_MAX:
                followed += 1
                continue
            followed, pause = 0, pause_seconds(pauses, self._chance)
            pauses += 1
            if self._clock() + pause >= deadline:
                raise final_error(failure, uncertain=uncertain, detail=detail)
            await asyncio.sleep(pause)

    async def route(self, table: str) -> TableRoutes:
        """The routes of a table, asked for if they are not known.

        Raises:
            FenceKVError: no shard gave them.
        """
        known = self.routes.tables.get(table)
        if known is not None and not known.stale:
            return known
        async with self._loading.setdefault(table, asyncio.Lock()):
            known = self.routes.tables.get(table)
            if known is not None and not known.stale:
                return known  # somebody else asked while this one waited
            return self.routes.load(table, await self.route_document(table))

    async def route_document(self, table: str, *, key: str | None = None) -> Mapping[str, Any]:
        """What some shard answers to `/v1/route`.

        Raises:
            Invalid: there is no such table or namespace.
            Unavailable: no shard answered.
        """
        path = f"/v1/route/{wire.segment(self._namespace)}/{wire.segment(table)}"
        query = "" if key is None else f"?key={wire.segment(key)}"
        last: FenceKVError | None = None
        for fresh in (False, True):
            for address in await self._addresses(fresh=fresh):
                try:
                    reply = await self._send("GET", address, path + query, {}, b"", ROUTE_SECONDS)
                except (Refused, Broken) as error:
                    self.routes.avoid(address, now=self._clock())
                    last = Unavailable(str(error))
                    continue
                if reply.status == 200:
                    return _document(reply)
                last = from_problem(_document(reply), reply.status)
                if isinstance(last, Invalid):
                    raise last
        raise last or Unavailable(f"no shard of {self._namespace} is known")

    async def _attempt(self, request: Request, deadline: float) -> Reply | tuple[FenceKVError | Failure, str]:
        """One attempt: its answer, or why there is none and a sentence about it."""
        left = deadline - self._clock()
        seconds = left if request.slow or (request.write and not request.keyed) else self._settings.attempt_seconds
        try:
            async with asyncio.timeout(max(left, 0)):
                index, address = await self._target(request)
        except TimeoutError:
            error = Unavailable(f"no route to {request.table} in time")
            return error, error.detail
        except FenceKVError as refusal:
            return refusal, refusal.detail
        target = f"/v1/{wire.segment(self._namespace)}/{wire.segment(request.table)}{request.path}"
        headers = self._headers(request, index)
        sent = self._clock()
        try:
            seconds = max(min(seconds, deadline - sent), 0.05)
            send = self._send(request.method, address, target, headers, request.body, seconds)
            if index is None or request.slow or (request.write and not request.keyed):
                reply = await send
            else:
                reply = await self._watched(send, request.table, index, address)
        except Superseded as lack:
            return Failure.BROKEN, str(lack)
        except (Refused, Broken) as lack:
            # A shard that took the request and is no owner may have waited for the one that it forwarded to.
            if (
                isinstance(lack, Refused)
                or index is None
                or self.routes.owner_http(request.table, index) == address
            ):
                self.routes.avoid(address, now=self._clock())
            self.routes.doubt(request.table)
            return Failure.REFUSED if isinstance(lack, Refused) else Failure.BROKEN, str(lack)
        if index is not None:
            self._learn(request.table, index, reply)
        if reply.status >= 400:
            answered = self._refusal(request, index, reply)
            return answered, answered.detail
        late = self._clock() - sent > self._settings.standard_success_seconds
        if late and request.write and reply.headers.get(wire.DURABILITY) == "standard":
            return Failure.LATE, f"{request.method} {target}: a success under standard that came too late"
        return reply

    async def _watched(self, send: Coroutine[Any, Any, Reply], table: str, index: int, address: str) -> Reply:
        """Sends, and gives up early if the partition has a new owner meanwhile.

        A frozen owner keeps its connections: without a look at the routes, each request to it would cost a
        whole attempt.

        Raises:
            Broken, Refused: no answer, or none to be expected.
        """
        sending = asyncio.ensure_future(send)
        epoch = self.routes.epoch_of(table, index)
        try:
            while True:
                await asyncio.wait([sending], timeout=WATCH_SECONDS)
                if sending.done():
                    return sending.result()
                if self.routes.owner_http(table, index) == address:
                    # Another shard is not to blame: it may wait for the owner that it forwarded to.
                    self.routes.avoid(address, now=self._clock())
                self.routes.doubt(table)
                with contextlib.suppress(FenceKVError):
                    owner = (await self.route(table)).owners.get(index)
                    # The new owner may be `address` itself, which still waits for the one before it.
                    if owner is not None and owner.http and owner.epoch > epoch:
                        raise Superseded(f"{address} does not answer, and {owner.http} owns the partition now")
        finally:
            sending.cancel()

    async def _target(self, request: Request) -> tuple[int | None, str]:
        index: int | None = None
        if request.place is not None:
            routes = await self.route(request.table)
            index = _index(routes, request.place)
            owner = routes.owners.get(index)
            if owner is not None and self.routes.usable(owner.http, now=self._clock()):
                return index, owner.http
        # Any shard forwards to the owner, and may know better who that is.
        return index, (await self._addresses())[0]

    def _headers(self, request: Request, index: int | None) -> dict[str, str]:
        headers = dict(request.headers)
        if index is None:
            return headers
        seen = self.routes.of(request.table, index)
        if seen.epoch:
            headers[wire.EPOCH] = str(seen.epoch)
        if not request.write and seen.token is not None:
            given = headers.get(wire.MIN_TOKEN)
            least = max(seen.token, Token.parse(given, field=wire.MIN_TOKEN)) if given else seen.token
            headers[wire.MIN_TOKEN] = str(least)
        return headers

    def _learn(self, table: str, index: int, reply: Reply) -> None:
        token, epoch = reply.headers.get(wire.TOKEN), reply.headers.get(wire.EPOCH, "")
        try:
            seen = Token.parse(token, field=wire.TOKEN) if token else None
        except Invalid:
            seen = None  # it would change nothing about the answer that came with it
        self.routes.saw(table, index, token=seen, epoch=int(epoch) if epoch.isdecimal() else None)

    def _refusal(self, request: Request, index: int | None, reply: Reply) -> FenceKVError:
        error = from_problem(_document(reply), reply.status)
        if index is None:
            return error
        if isinstance(error, Lost):
            self.routes.lost(request.table, index)
        http, epoch = error.extra.get("http"), error.extra.get("epoch")
        if (
            http
            and isinstance(epoch, int)
            and self.routes.follow(request.table, index, http=str(http), epoch=epoch)
        ):
            return error
        error.extra.pop("http", None)
        if judge(error, write=request.write, keyed=request.keyed).step is not Step.RAISE:
            self.routes.doubt(request.table)
        return error

    async def _addresses(self, *, fresh: bool = False) -> Sequence[str]:
        """The known addresses in random order, those that could not be reached at the end."""
        if fresh or not self._endpoints:
            self._endpoints = await self._source()
        if not self._endpoints:
            raise Unavailable(f"no shard of {self._namespace} is known")
        now = self._clock()
        ranked = [(not self.routes.usable(http, now=now), self._chance.random(), http) for http in self._endpoints]
        return [http for _, _, http in sorted(ranked)]

    async def _send(
        self, method: str, address: str, target: str, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> Reply:
        return await send(
            self._session,
            method=method,
            url=f"http://{address}{target}",
            headers=headers,
            body=body,
            timeout=seconds,
        )


def _index(routes: TableRoutes, place: str | int) -> int:
    if isinstance(place, int):
        return place
    try:
        return routes.partitioning.partition_of(place)
    except UnicodeEncodeError as error:
        raise Invalid("key: not UTF-8", field="key") from error


def _document(reply: Reply) -> Mapping[str, Any]:
    """The JSON document of an answer; one that is none says nothing, which `from_problem` takes as Unknown."""
    try:
        document = decode_json(reply.body)
    except Invalid:
        document = None
    return document if isinstance(document, dict) else {}
