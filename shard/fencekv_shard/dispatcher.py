"""Every call of every wire: find its partition, carry it out here or have the owner do it, shape the answer.

Invariants:
  * A call is forwarded over one hop at most: one that was forwarded is carried out here or refused.
  * A call is given to a second place only after the first one said `NotOwner`, that is, did nothing.
  * `answer` raises no FenceKVError: each becomes an answer that says what is known of the partition.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from fencekv import wire
from fencekv.codec import decode_json
from fencekv.errors import Conflict, FenceKVError, Invalid, NotFound, NotOwner, Unavailable
from fencekv.partitioning import RangePartitioning
from fencekv.token import Token
from fencekv_shard import api
from fencekv_shard.calls import Answer, Call, Get, History, List, Peers, Relay, WhereIs, Write, WriteKind, problem
from fencekv_shard.listing import Merged, Part, candidates, merge
from fencekv_shard.transaction import DeleteResult, GetResult, Put
from fencekv_shard.txn_document import result_document

PAGES_AT_ONCE: Final = 8  # of one listing: bounds the memory that it takes
_DURABILITIES: Final = list(api.Durability)  # from weak to strong


@dataclass(frozen=True, slots=True)
class Place:
    """A partition of a table."""

    table: api.Table
    index: int

    @property
    def name(self) -> str:
        """The partition's name."""
        return self.table.partitions[self.index]


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
            return problem(error)

    # -- where a call is carried out

    async def _placed(self, place: Place, call: Call, relay: Relay, serve: Serve) -> Answer:
        try:
            if not isinstance(call, Write) and call.options.consistency is api.Consistency.CACHED:
                return await self._at_any(place, call, relay, serve)
            return await self._at_owner(place, call, relay, serve)
        except FenceKVError as error:
            return self._problem(place, error)

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

    def _problem(self, place: Place, error: FenceKVError) -> Answer:
        """An error, with what this shard knows of the partition."""
        route = self._node.route(place.table.name, place.index)
        if isinstance(error, NotOwner) and "http" not in error.extra and not route.local:
            error = _not_owner(place, route)
        headers = {wire.PARTITION: place.name, wire.EPOCH: str(route.epoch)}
        token = error.extra.get("token")
        return problem(error, {**headers, wire.TOKEN: str(token)} if token else headers)

    # -- one call each

    async def _get(self, place: Place, call: Get, relay: Relay) -> Answer:
        async def serve(partition: api.Partition, route: api.Route) -> Answer:
            found = await partition.read(call.key, call.options)
            headers = _headers(place, route, found.token)
            if found.record is None:
                return problem(NotFound(f"key: {call.key!r} does not exist", field="key"), headers)
            headers[wire.VERSION] = str(found.record.version)
            return Answer(status=200, body=found.record.value, content_type=wire.OCTETS, headers=headers)

        return await self._placed(place, call, relay, serve)

    async def _write(self, table: api.Table, call: Write, relay: Relay) -> Answer:
        place = _one_place(table, call)
        _check_limits(table, call)
        durability = _raised(table.durability, call.options.durability)
        asked = None if durability is table.durability else durability
        options = call.options if asked is call.options.durability else replace(call.options, durability=asked)

        async def serve(partition: api.Partition, route: api.Route) -> Answer:
            done = await partition.submit(call.transaction, options)
            headers = _headers(place, route, done.token)
            headers[wire.DURABILITY] = durability
            return _written(place, call, done, headers)

        return await self._placed(place, call, relay, serve)

    async def _history(self, place: Place, call: History, relay: Relay) -> Answer:
        history = wire.history_id(place.table.name, call.key)
        before = wire.decode_history_cursor(call.cursor, history) if call.cursor else None

        async def serve(partition: api.Partition, route: api.Route) -> Answer:
            page = await partition.history(call.key, before=before, limit=call.limit, options=call.options)
            items: list[dict[str, Any]] = [
                {"version": str(change.version)}
                | ({"deleted": True} if change.value is None else {"value": change.value})
                for change in page.changes
            ]
            cursor = None
            if page.more and page.changes:
                cursor = wire.encode_history_cursor(page.changes[-1].version.number, history)
            body = {"items": items, "cursor": cursor, "token": str(page.token), "partition": place.name}
            return Answer(status=200, body=body, headers=_headers(place, route, page.token))

        return await self._placed(place, call, relay, serve)

    async def _where_is(self, table: api.Table, call: WhereIs) -> Answer:
        partitioning = table.partitioning
        indexes = range(partitioning.count) if call.key is None else [partitioning.partition_of(call.key)]
        partitions = [await self._described(table, index) for index in indexes]
        how: dict[str, Any] = {"strategy": "hash", "count": partitioning.count}
        if isinstance(partitioning, RangePartitioning):
            how = {"strategy": "range", "splitPoints": list(partitioning.split_points)}
        return Answer(status=200, body={"partitions": partitions, "partitioning": how})

    async def _described(self, table: api.Table, index: int) -> dict[str, Any]:
        route, token = self._node.route(table.name, index), None
        local = self._node.local(table.name, index)
        if local is not None:
            try:
                # Which key is read does not matter: each answer names the state that it was read at.
                read = await local.read("0", api.Options(consistency=api.Consistency.CACHED))
                token = str(read.token)
            except FenceKVError:
                token = None
        return {
            "partition": route.partition,
            "index": route.index,
            "epoch": route.epoch,
            "owner": route.owner or None,
            "http": route.http or None,
            "token": token,
        }

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
            following = None
            if page.more and page.items:
                reached = wire.Position(place.index, page.token, page.seq)
                following = wire.encode_list_cursor(wire.ListCursor(page.items[-1].key, (reached,)), listing)
            body = {
                "items": _items(page.items),
                "cursor": following,
                "token": str(page.token),
                "partition": place.name,
            }
            headers = {**_headers(place, route, page.token), wire.SEQ: str(page.seq)}
            return Answer(status=200, body=body, headers=headers)

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
        body = {
            "items": _items(items),
            "cursor": wire.encode_list_cursor(wire.ListCursor(after, tuple(left)), listing) if left else None,
            "tokens": {table.partitions[index]: str(p.token) for index, p in sorted(reached.items())},
        }
        return Answer(status=200, body=body)

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
    return Place(table, table.partitioning.partition_of(key))


def _one_place(table: api.Table, call: Write) -> Place:
    indexes = {table.partitioning.partition_of(key) for key in set(call.transaction.names())}
    if len(indexes) > 1:
        named = ", ".join(str(index) for index in sorted(indexes)[:4])
        detail = f"txn: its keys lie in partitions {named}; all must lie in one"
        raise Invalid(detail, field="txn")
    return Place(table, indexes.pop())


def _check_limits(table: api.Table, call: Write) -> None:
    """The table's own limits on what is written."""
    for part in (*call.transaction.then, *call.transaction.otherwise):
        if not isinstance(part, Put):
            continue
        limit = table.value_bytes_max
        if len(part.value) > limit:
            detail = f"value: {len(part.value)} bytes, table {table.name} takes {limit}"
            raise Invalid(detail, status=422, field="value", limit=limit)
        if table.key_pattern and not _compiled(table.key_pattern).fullmatch(part.key):
            detail = f"key: does not match the key pattern of table {table.name}"
            raise Invalid(detail, status=422, field="key", limit=table.key_pattern)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise Invalid(f"key: the table's key pattern is malformed: {error}", status=422, field="key") from error


def _raised(own: api.Durability, asked: api.Durability | None) -> api.Durability:
    return own if asked is None else max(own, asked, key=_DURABILITIES.index)


def _written(place: Place, call: Write, done: api.Committed, headers: dict[str, str]) -> Answer:
    effect = done.effect
    if call.kind is not WriteKind.TXN and not effect.succeeded:
        stands = effect.results[0]
        assert isinstance(stands, GetResult), stands
        version = str(stands.version) if stands.version else None
        detail = f"key: the condition does not hold, it is at {version or 'no version: it does not exist'}"
        return problem(Conflict(detail, status=412, field="key", version=version), headers)
    body: dict[str, Any] = {
        "version": str(done.version) if done.version else None,
        "token": str(done.token),
        "partition": place.name,
    }
    if done.version is not None:
        headers[wire.VERSION] = str(done.version)
    if call.kind is WriteKind.DELETE:
        result = effect.results[0]
        assert isinstance(result, DeleteResult), result
        body = {"existed": result.existed, **body}
    elif call.kind is WriteKind.TXN:
        results = [result_document(result, done.version) for result in effect.results]
        body = {"succeeded": effect.succeeded, "results": results, **body}
    return Answer(status=200, body=body, headers=headers)


def _headers(place: Place, route: api.Route, token: Token) -> dict[str, str]:
    epoch = max(route.epoch, token.epoch)
    return {wire.PARTITION: place.name, wire.TOKEN: str(token), wire.EPOCH: str(epoch)}


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
    if answer.status != NotOwner.default_status or not isinstance(answer.body, bytes):
        return ""
    try:
        document = decode_json(answer.body)
    except Invalid:
        return ""
    return str(document.get("http") or "") if isinstance(document, dict) else ""


def _span(call: List, cursor: wire.ListCursor | None, position: wire.Position) -> api.Range:
    after = cursor.after if cursor else ""
    return api.Range(start=call.start, end=call.end, after=after, limit=call.limit, at=position.at)


def _not_before(options: api.Options, token: Token | None) -> api.Options:
    """A later page must not be older than an earlier one."""
    if token is None:
        return options
    return replace(options, min_token=max(options.min_token or token, token))


def _items(items: Any) -> list[dict[str, Any]]:
    return [{"key": item.key, "value": item.record.value, "version": str(item.record.version)} for item in items]
