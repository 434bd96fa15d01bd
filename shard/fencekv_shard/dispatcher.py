"""Every call of every wire: find its partition, carry it out here or have the owner do it.

Two ways: `begin` serves what needs no waiting, without a task or a future for each call; `answer` serves
everything.

Invariants:
  * A call is forwarded over one hop at most: one that was forwarded is carried out here or refused.
  * A call is given to a second place only after the first one said `NotOwner`, that is, did nothing.
  * `answer` raises no FenceKVError: each becomes an answer that says what is known of the partition.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from fencekv import wire
from fencekv.errors import Conflict, FenceKVError, Invalid, NotFound, NotOwner, Unavailable
from fencekv.token import Token
from fencekv_shard import api
from fencekv_shard.calls import (
    Answer,
    Call,
    Failed,
    Found,
    Get,
    Histories,
    History,
    List,
    Listed,
    Peers,
    Relay,
    Relayed,
    Routes,
    Taker,
    WhereIs,
    Write,
    WriteKind,
    Written,
)
from fencekv_shard.listing import Merged, Part, candidates, merge
from fencekv_shard.transaction import GetResult, Put

PAGES_AT_ONCE: Final = 8  # of one listing: bounds the memory that it takes
_DURABILITIES: Final = list(api.Durability)  # from weak to strong


class Place:
    """A partition of a table. A plain class, because one is made for each request."""

    __slots__ = ("index", "name", "table")

    def __init__(self, table: api.Table, index: int) -> None:
        self.table, self.index = table, index
        self.name = table.partitions[index]


Serve = Callable[[api.Partition, api.Route], Awaitable[Answer]]


class Dispatcher:
    """Answers calls for one shard."""

    def __init__(self, node: api.Node, peers: Peers) -> None:
        self._node = node
        self._peers = peers

    async def answer(self, call: Call, relay: Relay) -> Answer:
        """Answers a call; `relay` sends it on as it came."""
        try:
            if call.namespace != self._node.kvns:
                detail = f"namespace: this shard serves {self._node.kvns!r}, not {call.namespace[:64]!r}"
                raise Invalid(detail, status=404, field="namespace")
            table = self._node.table(call.table)
            if isinstance(call, Get):
                return await self._get(_place(table, call.key), call, relay)
            if isinstance(call, Write):
                return await self._write(table, call, relay)
            if isinstance(call, List):
                return await self._list(table, call, relay)
            if isinstance(call, History):
                return await self._history(_place(table, call.key), call, relay)
            assert isinstance(call, WhereIs), call
            return await self._where_is(table, call)
        except FenceKVError as error:
            return Failed.nowhere(error)

    # -- the short way

    def begin(self, call: Get | Write, taker: Taker) -> None:
        """Serves a call of this namespace if the partition is here and nothing has to be waited for.

        Ends in one call of `taker`, now or later. A write that was taken is carried out, whatever becomes of the
        taker.
        """
        node = self._node
        assert call.namespace == node.kvns, call.namespace
        place: Place | None = None
        try:
            table = node.table(call.table)
            if isinstance(call, Write):
                place = _one_place(table, call)
                _check_limits(table, call)
            else:
                place = _place(table, call.key)
            partition = node.local(table.name, place.index)
            if partition is None or node.holding(table.name, place.index):
                taker.long_way()
            elif isinstance(call, Write):
                durability = _asked(partition, call)
                waiting = _Waiting(self, place, call.kind, durability, taker)
                partition.begin(call.transaction, call.options, waiting)
            else:
                found = partition.read_now(call.key, call.options)
                taker.answered(_found(place, call, found, found.token.epoch))
        except (NotOwner, api.MustWait):
            taker.long_way()
        except FenceKVError as error:
            if isinstance(error, Unavailable) and call.options.consistency is api.Consistency.CACHED:
                taker.long_way()  # the owner may be able to
            else:
                taker.answered(self.failed(place, error))

    def failed(self, place: Place | None, error: FenceKVError) -> Failed:
        """An error, with what this shard knows of the partition."""
        if place is None:
            return Failed.nowhere(error)
        route = self._node.route(place.table.name, place.index)
        if isinstance(error, NotOwner) and "http" not in error.extra and not route.local:
            error = _not_owner(place, route)
        return Failed(place.name, None, route.epoch, error)

    # -- where a call is carried out

    async def _placed(self, place: Place, call: Call, relay: Relay, serve: Serve) -> Answer:
        try:
            if not isinstance(call, Write) and call.options.consistency is api.Consistency.CACHED:
                return await self._at_any(place, call, relay, serve)
            return await self._at_owner(place, call, relay, serve)
        except FenceKVError as error:
            return self.failed(place, error)

    async def _at_any(self, place: Place, call: Call, relay: Relay, serve: Serve) -> Answer:
        local = self._node.local(place.table.name, place.index)
        if local is not None:
            try:
                return await serve(local, self._node.route(place.table.name, place.index))
            except (Unavailable, NotOwner):
                if call.forwarded:
                    raise
        return await self._at_owner(place, call, relay, serve)

    async def _at_owner(self, place: Place, call: Call, relay: Relay, serve: Serve) -> Answer:
        hint = ""
        for last in (False, True):
            local, route = await self._find(place)
            if local is not None:
                try:
                    return await serve(local, route)
                except NotOwner:
                    if last or call.forwarded:
                        raise
                    continue
            target = self._next_hop(place, route, call, hint)
            answer = await relay(target)
            hint = _hint(answer)
            if last or not hint or hint == target:
                return answer
        raise AssertionError(place)  # the loop's last pass returns or raises

    async def _find(self, place: Place) -> tuple[api.Partition | None, api.Route]:
        """The partition if this shard owns it, once a planned move that is under way has ended."""
        await self._node.hold(place.table.name, place.index)
        route = self._node.route(place.table.name, place.index)
        if not route.local:
            return None, route
        local = self._node.local(place.table.name, place.index)
        if local is None:
            raise Unavailable(f"{place.name}: its replica here is not open")
        return local, route

    def _next_hop(self, place: Place, route: api.Route, call: Call, hint: str) -> str:
        if call.forwarded:
            raise _not_owner(place, route)
        # Whoever refused us as not being the owner knows better than our own cache.
        target = hint or route.http
        if not target:
            raise Unavailable(f"{place.name}: no owner now", epoch=route.epoch)
        return target

    # -- one call each

    async def _get(self, place: Place, call: Get, relay: Relay) -> Answer:
        async def serve(partition: api.Partition, route: api.Route) -> Answer:
            found = await partition.read(call.key, call.options)
            return _found(place, call, found, _epoch(route, found.token))

        return await self._placed(place, call, relay, serve)

    async def _write(self, table: api.Table, call: Write, relay: Relay) -> Answer:
        place = _one_place(table, call)
        _check_limits(table, call)

        async def serve(partition: api.Partition, route: api.Route) -> Answer:
            durability = _asked(partition, call)
            done = await partition.submit(call.transaction, call.options)
            return _written(place, call.kind, done, durability, _epoch(route, done.token))

        return await self._placed(place, call, relay, serve)

    async def _history(self, place: Place, call: History, relay: Relay) -> Answer:
        history = wire.history_id(place.table.name, call.key)
        before = wire.decode_history_cursor(call.cursor, history) if call.cursor else None

        async def serve(partition: api.Partition, route: api.Route) -> Answer:
            page = await partition.history(call.key, before=before, limit=call.limit, options=call.options)
            cursor = ""
            if page.more and page.changes:
                cursor = wire.encode_history_cursor(page.changes[-1].version.number, history)
            return Histories(place.name, page.token, _epoch(route, page.token), page.changes, cursor)

        return await self._placed(place, call, relay, serve)

    async def _where_is(self, table: api.Table, call: WhereIs) -> Answer:
        partitioning = table.partitioning
        indexes = range(partitioning.count) if call.key is None else [partitioning.partition_of(call.key)]
        routes = [(self._node.route(table.name, n), self._local_token(table, n)) for n in indexes]
        return Routes("", None, 0, partitioning, routes)

    def _local_token(self, table: api.Table, index: int) -> Token | None:
        local = self._node.local(table.name, index)
        return None if local is None else local.committed_token()

    # -- listings

    async def _list(self, table: api.Table, call: List, relay: Relay) -> Answer:
        count = table.partitioning.count
        if call.partition is not None and call.partition >= count:
            detail = f"partition: {call.partition}, but {table.name} has {count}"
            raise Invalid(detail, field="partition", limit=count - 1)
        listing = wire.listing_id(table.name, call.start, call.end, call.partition)
        cursor = wire.decode_list_cursor(call.cursor, listing, partitions=count) if call.cursor else None
        if call.partition is not None or count == 1:
            place = Place(table, call.partition or 0)
            return await self._list_one(place, call, relay, cursor, listing)
        if call.options.min_token is not None:
            detail = f"{wire.MIN_TOKEN}: belongs to one partition; name it by the parameter partition"
            raise Invalid(detail, field=wire.MIN_TOKEN)
        return await self._list_all(table, call, cursor, listing)

    async def _list_one(
        self, place: Place, call: List, relay: Relay, cursor: wire.ListCursor | None, listing: bytes
    ) -> Answer:
        if cursor is not None and [position.index for position in cursor.positions] != [place.index]:
            raise Invalid("cursor: of another partition", field="cursor")
        position = cursor.positions[0] if cursor else wire.Position(place.index, None, None)
        span = _span(call, cursor, position)
        options = _not_before(call.options, position.token)

        async def serve(partition: api.Partition, route: api.Route) -> Answer:
            page = await partition.scan(span, options)
            following = ""
            if page.more and page.items:
                reached = wire.Position(place.index, page.token, page.seq)
                following = wire.encode_list_cursor(wire.ListCursor(page.items[-1].key, (reached,)), listing)
            epoch = _epoch(route, page.token)
            return Listed(place.name, page.token, epoch, page.items, following, None, page.seq)

        return await self._placed(place, call, relay, serve)

    async def _list_all(
        self, table: api.Table, call: List, cursor: wire.ListCursor | None, listing: bytes
    ) -> Answer:
        positions = {position.index: position for position in cursor.positions} if cursor else None
        start = max(call.start, cursor.after) if cursor else call.start
        merged = Merged()
        reached: dict[int, wire.Position] = {}
        untouched: list[wire.Position] = []
        for group in candidates(table.partitioning, start=start, end=call.end):
            asked = [_position(positions, index) for index in group if positions is None or index in positions]
            if merged.unfinished or len(merged.entries) >= call.limit:
                untouched += asked  # their keys come after the page's
                continue
            for at in range(0, len(asked), PAGES_AT_ONCE):
                chunk = asked[at : at + PAGES_AT_ONCE]
                pages = await _gather([self._page(Place(table, p.index), call, cursor, p) for p in chunk])
                parts = {p.index: Part(page.items, page.more) for p, page in zip(chunk, pages, strict=True)}
                merged = merge(merged, parts, limit=call.limit)
                for position, page in zip(chunk, pages, strict=True):
                    reached[position.index] = wire.Position(position.index, page.token, page.seq)
        left = [reached[index] for index in sorted(merged.unfinished)] + untouched
        items = merged.items
        after = items[-1].key if items else (cursor.after if cursor else "")
        following = wire.encode_list_cursor(wire.ListCursor(after, tuple(left)), listing) if left else ""
        tokens = {table.partitions[n]: p.token for n, p in sorted(reached.items()) if p.token is not None}
        return Listed("", None, 0, items, following, tokens, None)

    async def _page(
        self, place: Place, call: List, cursor: wire.ListCursor | None, position: wire.Position
    ) -> api.Page:
        span, options = _span(call, cursor, position), _not_before(call.options, position.token)
        if options.consistency is api.Consistency.CACHED:
            local = self._node.local(place.table.name, place.index)
            if local is not None:
                try:
                    return await local.scan(span, options)
                except (Unavailable, NotOwner):
                    pass  # the owner may be able to
        for last in (False, True):
            try:
                owned, route = await self._find(place)
                if owned is not None:
                    return await owned.scan(span, options)
                target = self._next_hop(place, route, call, "")
                return await self._peers.page(target, call, place.index, span, options)
            except NotOwner:
                if last:
                    raise
        raise AssertionError(place)


class _Waiting:
    """A write that a partition has taken, until its answer: an `api.Waiter`."""

    __slots__ = ("_dispatcher", "_durability", "_kind", "_place", "_taker")

    def __init__(
        self, dispatcher: Dispatcher, place: Place, kind: WriteKind, durability: api.Durability, taker: Taker
    ) -> None:
        self._dispatcher, self._place, self._kind = dispatcher, place, kind
        self._durability, self._taker = durability, taker

    def committed(self, answer: api.Committed) -> None:
        self._taker.answered(_written(self._place, self._kind, answer, self._durability, answer.token.epoch))

    def refused(self, error: FenceKVError) -> None:
        if isinstance(error, NotOwner):
            self._taker.long_way()
        else:
            self._taker.answered(self._dispatcher.failed(self._place, error))


async def _gather(pages: list[Any]) -> list[api.Page]:
    tasks = [asyncio.ensure_future(page) for page in pages]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _position(positions: Mapping[int, wire.Position] | None, index: int) -> wire.Position:
    return positions[index] if positions else wire.Position(index, None, None)


def _place(table: api.Table, key: str) -> Place:
    split = table.partitioning
    return Place(table, split.partition_of(key) if split.count > 1 else 0)


def _one_place(table: api.Table, call: Write) -> Place:
    if table.partitioning.count == 1:
        return Place(table, 0)
    if call.kind is not WriteKind.TXN:
        return _place(table, call.transaction.then[0].key)
    indexes = {table.partitioning.partition_of(key) for key in set(call.transaction.names())}
    if len(indexes) > 1:
        named = ", ".join(str(index) for index in sorted(indexes)[:4])
        detail = f"txn: its keys lie in partitions {named}; all must lie in one"
        raise Invalid(detail, field="txn")
    return Place(table, indexes.pop())


def _check_limits(table: api.Table, call: Write) -> None:
    """The table's own limits on what is written."""
    transaction = call.transaction
    for branch in (transaction.then, transaction.otherwise):
        for part in branch:
            if isinstance(part, Put):
                _check_put(table, part)


def _check_put(table: api.Table, put: Put) -> None:
    size, limit = len(put.value), table.value_bytes_max
    if size > limit:
        detail = f"value: {size} bytes, table {table.name} takes {limit}"
        raise Invalid(detail, status=422, field="value", limit=limit)
    if table.key_pattern and not _compiled(table.key_pattern).fullmatch(put.key):
        detail = f"key: does not match the key pattern of table {table.name}"
        raise Invalid(detail, status=422, field="key", limit=table.key_pattern)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise Invalid(f"key: the table's key pattern is malformed: {error}", status=422, field="key") from error


def _asked(partition: api.Partition, call: Write) -> api.Durability:
    """What a write is acknowledged under: the partition's own durability, or the one asked for if that is more."""
    own, asked = partition.durability, call.options.durability
    return own if asked is None else max(own, asked, key=_DURABILITIES.index)


def _found(place: Place, call: Get, found: api.ReadAnswer, epoch: int) -> Answer:
    if found.record is None:
        error = NotFound(f"key: {call.key!r} does not exist", field="key")
        return Failed(place.name, found.token, epoch, error)
    return Found(place.name, found.token, epoch, found.record)


def _written(place: Place, kind: WriteKind, done: api.Committed, durability: api.Durability, epoch: int) -> Answer:
    effect = done.effect
    if kind is not WriteKind.TXN and not effect.succeeded:
        stands = effect.results[0]
        assert isinstance(stands, GetResult), stands
        version = str(stands.version) if stands.version else None
        detail = f"key: the condition does not hold, it is at {version or 'no version: it does not exist'}"
        error = Conflict(detail, status=412, field="key", version=version)
        return Failed(place.name, done.token, epoch, error, durability)
    return Written(place.name, done.token, epoch, kind, effect, done.version, durability)


def _epoch(route: api.Route, token: Token) -> int:
    return max(route.epoch, token.epoch)


def _not_owner(place: Place, route: api.Route) -> NotOwner:
    return NotOwner(
        f"{place.name}: this shard does not own it",
        partition=place.name,
        owner=route.owner or None,
        http=route.http or None,
        epoch=route.epoch,
    )


def _hint(answer: Answer) -> str:
    """The owner's address in a relayed NotOwner; empty: it is another answer, or names none."""
    return answer.owner_http if isinstance(answer, Relayed) else ""


def _span(call: List, cursor: wire.ListCursor | None, position: wire.Position) -> api.Range:
    after = cursor.after if cursor else ""
    return api.Range(start=call.start, end=call.end, after=after, limit=call.limit, at=position.at)


def _not_before(options: api.Options, token: Token | None) -> api.Options:
    """A later page must not be older than an earlier one."""
    if token is None:
        return options
    return replace(options, min_token=max(options.min_token or token, token))
