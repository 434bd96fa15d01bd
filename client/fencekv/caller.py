"""Requests to the shards of a namespace: find the owner, send, and send again where that is safe.

Invariants:
  * All decisions about repeating are `attempts.judge`'s.
  * A request ends within its timeout, and if it may have been carried out, never in an error that denies it.
  * One timer looks after all attempts, and only while there are some.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fencekv import messages as m
from fencekv.attempts import Chance, Failure, Step, final_error, judge, pause_seconds
from fencekv.discovery import Source
from fencekv.errors import (
    Conflict,
    Exhausted,
    FenceKVError,
    Invalid,
    Lost,
    NotOwner,
    TooLarge,
    Unavailable,
    Unknown,
    from_problem,
)
from fencekv.resting import Resting
from fencekv.routing import Routes, TableRoutes
from fencekv.sending import Attempt, Broken, Build, Refused, Transport

ROUTE_SECONDS: Final = 0.5
ROUTE_SECONDS_PER_PARTITION: Final = 0.001  # besides, where those of a whole table are asked for
ROUTES_GAP_SECONDS: Final = 0.1  # those of a whole table are not asked for anew before
WATCH_SECONDS: Final = 0.5  # without an answer, then one looks whether the owner has changed
SWEEP_SECONDS: Final = 0.05  # how exact timeouts are
FOLLOWED_AT_ONCE_MAX: Final = 2  # then a NotOwner costs a pause as well: two shards could name each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a client behaves."""

    timeout_seconds: float = 10.0  # for a request with all its attempts
    attempt_seconds: float = 2.0  # for one attempt that may be repeated
    standard_success_seconds: float = 2.0  # D - V of the namespace: a `standard` success after it is not believed
    idempotency: bool = True  # give every write a key, so that it can be repeated in every case


class Request(NamedTuple):
    """One request to a table. A named tuple, because one is made for every request."""

    table: str
    operation: int
    build: Build
    place: str | int | None  # the key or the partition that it is about, None: any shard will do
    options: m.Options
    write: bool = False
    slow: bool = False  # an attempt may take the whole timeout

    @property
    def key(self) -> str | None:
        """By which its partition can be asked for; None: it is about no single key."""
        return self.place if isinstance(self.place, str) else None


class _Failed(NamedTuple):
    """An attempt without an answer that ends the request, and a sentence about it."""

    outcome: FenceKVError | Failure
    detail: str
    partition: int | None = None  # by index, the one that was asked; None: none was


class Superseded(Broken):
    """No answer yet, and the partition has a new owner: the routes say whom to ask."""


class Caller:
    """Sends requests over `transport`, which its maker closes. End it with `close`."""

    def __init__(
        self,
        transport: Transport,
        *,
        namespace: str,
        source: Source,
        settings: Settings,
        chance: Chance,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.routes = Routes()
        self._transport = transport
        self._namespace = namespace
        self._source = source
        self._settings = settings
        self._chance = chance
        self._clock: Callable[[], float] = loop.time
        self._loop = loop
        self._endpoints: Sequence[str] = ()
        self._asking: dict[tuple[str, int | None], asyncio.Task[None]] = {}  # for one partition's routes, or all
        self._closed = False
        self._loaded_at: dict[str, float] = {}  # when the routes of a whole table were asked for anew
        self._sweep: asyncio.TimerHandle | None = None
        self._looking: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._resting = Resting(self._clock)

    async def close(self) -> None:
        """Stops looking after attempts."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        looking = [*self._looking.values(), *self._asking.values()]
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def call(self, request: Request) -> m.Success:
        """Sends a request until it is answered.

        Raises:
            FenceKVError: the answer, or what is known when there is none in time.
        """
        deadline = self._clock() + self._settings.timeout_seconds
        uncertain, followed, pauses = False, 0, 0
        while True:
            outcome = await self._attempt(request, deadline)
            if not isinstance(outcome, _Failed):
                return outcome
            failure, detail, partition = outcome
            verdict = judge(failure, write=request.write, keyed=_keyed(request), uncertain=uncertain)
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
            await self._resting.rest(request.table, partition, pause, deadline, write=request.write)

    async def route(self, table: str) -> TableRoutes:
        """The routes of a table, asked for if they are not known; of some partitions they may be in doubt.

        Raises:
            FenceKVError: no shard gave them.
        """
        while (known := self.routes.tables.get(table)) is None:
            await self._asked(table, None, None)
        return known

    async def _settled(self, table: str, index: int, key: str | None) -> TableRoutes:
        """The routes of a table; asked for anew if those of a partition are in doubt, of which `key` is a key.

        Raises:
            FenceKVError: no shard gave them.
        """
        known = await self.route(table)
        if index in known.doubted:
            alone = key is not None and known.one_by_one
            await self._asked(table, index if alone else None, key)
        return await self.route(table)

    async def _asked(self, table: str, index: int | None, key: str | None) -> None:
        """Asks for the routes of a partition, or of the whole table; all who want them meanwhile share the answer.

        It may be in doubt again before the last of them sees it: each goes on with it all the same.
        """
        place = table, index
        asking = self._asking.get(place)
        if asking is None or asking.done():
            if self._closed:
                raise RuntimeError("the client is closed")
            work = self._ask_for_all(table) if index is None or key is None else self._ask_for_one(table, key)
            asking = asyncio.ensure_future(work)
            self._asking[place] = asking
            asking.add_done_callback(lambda done: self._have_asked(place, done))
        try:
            await asyncio.shield(asking)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if asking.cancelled() and task is not None and not task.cancelling():
                raise RuntimeError("the client is closed") from None
            raise

    async def _ask_for_one(self, table: str, key: str) -> None:
        doubts = self.routes.doubts
        try:
            answer = await self.locate(table, key=key)
        except (Invalid, TooLarge):
            # The key of one request; the others that wait are not to blame for it.
            await self._asked(table, None, None)
            return
        for index in self.routes.load_some(table, answer, doubts=doubts):
            self._wake(table, index)

    async def _ask_for_all(self, table: str) -> None:
        # Of a large table they are much to ask for: while many of its partitions are in doubt, now and then.
        await asyncio.sleep(self._loaded_at.get(table, -math.inf) + ROUTES_GAP_SECONDS - self._clock())
        doubts, answer = self.routes.doubts, await self.locate(table)
        self._loaded_at[table] = self._clock()
        for index in self.routes.load(table, answer, doubts=doubts):
            self._wake(table, index)

    def _have_asked(self, place: tuple[str, int | None], done: asyncio.Task[None]) -> None:
        if self._asking.get(place) is done:
            del self._asking[place]
        if not done.cancelled():
            done.exception()  # for those who still wait for it

    def _wake(self, table: str, index: int) -> None:
        """A partition has a newer owner."""
        self._resting.served(table, index, write=True)
        self._resting.served(table, index, write=False)

    async def locate(self, table: str, *, key: str | None = None) -> m.Routes:
        """What some shard says of a table's partitions, or of the one of `key`.

        Raises:
            Invalid, TooLarge: there is no such table or namespace, or it is no key.
            Unavailable: no shard answered.
        """
        last: FenceKVError | None = None
        whole = self.routes.tables.get(table) if key is None else None
        seconds = ROUTE_SECONDS + (len(whole.owners) * ROUTE_SECONDS_PER_PARTITION if whole else 0.0)
        for fresh in (False, True):
            for address in await self._addresses(fresh=fresh):
                try:
                    answer = await self._ask(address, table, key, seconds=seconds)
                except (Refused, Broken) as error:
                    self.routes.avoid(address, now=self._clock())
                    last = Unavailable(str(error))
                    continue
                except (Unavailable, Unknown) as error:
                    last = Unavailable(error.detail)
                    continue
                if isinstance(answer, m.Routes):
                    return answer
                last = _error(answer)
                if isinstance(last, Invalid | TooLarge):
                    raise last
        raise last or Unavailable(f"no shard of {self._namespace} is known")

    # -- one attempt

    async def _attempt(self, request: Request, deadline: float) -> m.Success | _Failed:
        """One attempt: its answer, or why there is none and a sentence about it."""
        began = self._clock()
        target = self._known_target(request, began) or await self._found_target(request, deadline - began)
        if isinstance(target, _Failed):
            return target
        index, address = target
        settings, repeatable = self._settings, not request.write or _keyed(request)
        seconds = settings.attempt_seconds if repeatable and not request.slow else settings.timeout_seconds
        attempt: Attempt | None = None
        try:
            attempt = await self._send(request, index, address, began=began, seconds=seconds, deadline=deadline)
            sent = self._clock()
            if index is not None and repeatable and not request.slow:
                attempt.watch_at = sent + WATCH_SECONDS
                attempt.place = (request.table, index)
                attempt.key = request.key
                attempt.epoch = self.routes.epoch_of(request.table, index)
            answer = await attempt.future
        except asyncio.CancelledError:
            if attempt is not None:
                attempt.give_up(Broken("nobody waits for it"))
            raise
        except Superseded as lack:
            return _Failed(Failure.BROKEN, str(lack), index)
        except (Refused, Broken) as lack:
            self._missed(request, index, address, lack)
            return _Failed(Failure.REFUSED if isinstance(lack, Refused) else Failure.BROKEN, str(lack), index)
        except (Unavailable, Exhausted) as lack:
            return _Failed(lack, lack.detail, index)
        if index is not None:
            self.routes.saw(request.table, index, token=answer.token, epoch=answer.epoch)
        if isinstance(answer, m.Refusal):
            answered = self._refusal(request, index, address, answer)
            return _Failed(answered, answered.detail, index)
        late = self._clock() - sent > settings.standard_success_seconds
        if late and isinstance(answer, _WRITES) and answer.durability == m.STANDARD:
            return _Failed(Failure.LATE, f"{request.table}: a success under standard that came too late", index)
        if self._resting and index is not None:
            self._resting.served(request.table, index, write=request.write)
        return answer

    async def _send(
        self, request: Request, index: int | None, address: str, *, began: float, seconds: float, deadline: float
    ) -> Attempt:
        """Sends, over a connection that is opened if there is none, and has the attempt looked after.

        It waits for its turn until `deadline`; its `seconds` are counted from when it leaves.
        """
        options = self._options(request, index)
        attempt = self._transport.send(address, request.operation, request.build, options)
        while attempt is None:
            await self._transport.ready(address, seconds=deadline - self._clock())
            attempt = self._transport.send(address, request.operation, request.build, options)
            began = self._clock()
        attempt.give_up_at = max(min(began + seconds, deadline), began + SWEEP_SECONDS)
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._swept)
        return attempt

    def _missed(self, request: Request, index: int | None, address: str, lack: Exception) -> None:
        # A shard that took the request and is no owner may have waited for the one that it forwarded to.
        if isinstance(lack, Refused) or index is None or self.routes.owner_http(request.table, index) == address:
            self.routes.avoid(address, now=self._clock())
        if index is not None:
            self.routes.doubt(request.table, index)

    def _known_target(self, request: Request, now: float) -> tuple[int, str] | None:
        """The owner, if it is known and no reason to doubt it."""
        routes = self.routes.tables.get(request.table)
        if routes is None or request.place is None:
            return None
        try:
            index = _index(routes, request.place)
        except Invalid:
            return None  # the long way tells it
        owner = routes.owners.get(index)
        if owner is None or index in routes.doubted or not self.routes.usable(owner.http, now=now):
            return None
        return index, owner.http

    async def _found_target(self, request: Request, seconds: float) -> tuple[int | None, str] | _Failed:
        try:
            async with asyncio.timeout(max(seconds, 0)):
                return await self._target(request)
        except TimeoutError:
            error = Unavailable(f"no route to {request.table} in time")
            return _Failed(error, error.detail)
        except FenceKVError as refusal:
            return _Failed(refusal, refusal.detail)

    async def _target(self, request: Request) -> tuple[int | None, str]:
        index: int | None = None
        if request.place is not None:
            index = _index(await self.route(request.table), request.place)
            routes = await self._settled(request.table, index, request.key)
            index = _index(routes, request.place)  # it may be another table of this name now
            owner = routes.owners.get(index)
            if owner is not None and self.routes.usable(owner.http, now=self._clock()):
                return index, owner.http
        # Any shard forwards to the owner, and may know better who that is.
        return index, (await self._addresses())[0]

    def _options(self, request: Request, index: int | None) -> m.Options:
        options = request.options
        if index is None:
            return options
        seen = self.routes.of(request.table, index)
        least = options.min_token
        if not request.write and seen.token is not None:
            least = max(seen.token, least) if least else seen.token
        consistency, durability, _, _, key, _ = options
        return m.Options(consistency, durability, least, seen.epoch or None, key)

    def _refusal(self, request: Request, index: int | None, address: str, answer: m.Refusal) -> FenceKVError:
        error = _error(answer)
        if index is None:
            return error
        if isinstance(error, Lost):
            self.routes.lost(request.table, index)
        elif isinstance(error, Conflict | Invalid | TooLarge):  # of an owner that serves
            self._resting.served(request.table, index, write=request.write)
        http, epoch = error.extra.get("http"), error.extra.get("epoch")
        known = self.routes.epoch_of(request.table, index)
        if (
            http
            and isinstance(epoch, int)
            and self.routes.follow(request.table, index, http=str(http), epoch=epoch)
        ):
            if epoch > known:
                self._wake(request.table, index)
            return error
        error.extra.pop("http", None)
        if isinstance(error, NotOwner):
            # A shard that is cut off goes on naming itself: others are asked for the owner, and for the routes.
            self.routes.avoid(address, now=self._clock())
        if judge(error, write=request.write, keyed=_keyed(request)).step is not Step.RAISE:
            self.routes.doubt(request.table, index)
        return error

    async def _addresses(self, *, fresh: bool = False) -> Sequence[str]:
        """The known addresses in random order, those that could not be reached at the end."""
        if fresh or not self._endpoints:
            self._endpoints = await self._source()
        if not self._endpoints:
            raise Unavailable(f"no shard of {self._namespace} is known")
        now = self._clock()
        # One address may stand for a connection to one shard: owners named earlier are further ways in.
        known = sorted({*self._endpoints, *self.routes.addresses()})
        ranked = [(not self.routes.usable(http, now=now), self._chance.random(), http) for http in known]
        return [http for _, _, http in sorted(ranked)]

    async def _ask(self, address: str, table: str, key: str | None, *, seconds: float) -> m.Answer:
        """Asks one shard for routes, once."""
        request = Request(
            table=table,
            operation=m.ROUTE,
            build=lambda number, options: m.Route(number, table, None, key),
            place=None,
            options=m.Options(),
        )
        now = self._clock()
        attempt = await self._send(request, None, address, began=now, seconds=seconds, deadline=now + seconds)
        try:
            return await attempt.future
        except asyncio.CancelledError:
            attempt.give_up(Broken("nobody waits for it"))
            raise

    # -- looking after the attempts that take long

    def _swept(self) -> None:
        now = self._clock()
        under_way = list(self._transport.under_way())
        for attempt in under_way:
            if now >= attempt.give_up_at:
                attempt.give_up(Broken(f"{attempt.address}: no answer in time"))
            elif now >= attempt.watch_at:
                attempt.watch_at = now + WATCH_SECONDS
                self._doubt(attempt)
        self._sweep = self._loop.call_later(SWEEP_SECONDS, self._swept) if under_way else None

    def _doubt(self, attempt: Attempt) -> None:
        """Has the routes looked at: a frozen owner keeps its connections, and costs each attempt all its time."""
        assert attempt.place is not None, attempt.address
        table, index = attempt.place
        if self.routes.owner_http(table, index) == attempt.address:
            # Another shard is not to blame: it may wait for the owner that it forwarded to.
            self.routes.avoid(attempt.address, now=self._clock())
        self.routes.doubt(table, index)
        if attempt.place not in self._looking:
            self._looking[attempt.place] = asyncio.ensure_future(self._look(attempt.place, attempt.key))

    async def _look(self, place: tuple[str, int], key: str | None) -> None:
        """Gives up the attempts whose partition has a new owner."""
        table, index = place
        try:
            owner = (await self._settled(table, index, key)).owners.get(index)
        except FenceKVError:
            return
        finally:
            del self._looking[place]
        if owner is None or not owner.http:
            return
        for attempt in list(self._transport.under_way()):
            # The new owner may be at the same address, which still waits for the one before it.
            if attempt.place == place and owner.epoch > attempt.epoch:
                detail = f"{attempt.address} does not answer, and {owner.http} owns the partition now"
                attempt.give_up(Superseded(detail))


_WRITES: Final = m.Written | m.Deleted | m.Committed


def _keyed(request: Request) -> bool:
    return request.options.idempotency_key is not None


def _index(routes: TableRoutes, place: str | int) -> int:
    if isinstance(place, int):
        return place
    try:
        return routes.partitioning.partition_of(place)
    except UnicodeEncodeError as error:
        raise Invalid("key: not UTF-8", field="key") from error


def _error(answer: m.Answer) -> FenceKVError:
    """The error that an answer is; one that is no error does not belong to its request."""
    if not isinstance(answer, m.Refusal):
        return Unavailable(f"{type(answer).__name__}: an answer to another request")
    return from_problem({**answer.extra, "title": answer.name, "detail": answer.detail}, answer.status)
