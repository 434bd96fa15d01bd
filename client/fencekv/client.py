"""The SDK: tables of a namespace, read and written through whichever shard is right.

    async with FenceKV.connect(namespace="sample") as db:
        orders = db.table("orders")
        await orders.put("order-17", b"new")
        entry = await orders.get("order-17")

Invariants:
  * A client reads its own writes, also from standbys: it carries each partition's token along.
  * A write is sent again only where that cannot carry it out twice.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import aiohttp

from fencekv import results, wire
from fencekv.attempts import Chance
from fencekv.caller import Caller, Request, Settings
from fencekv.codec import decode, decode_json, encode
from fencekv.discovery import Source, find
from fencekv.errors import Invalid, NotFound
from fencekv.operations import Compare, Operation, keys_named, txn_document
from fencekv.results import Change, Deleted, Entry, HistoryPage, Page, TxnAnswer, Written
from fencekv.token import Token, Version
from fencekv.transport import Reply, make_session

Consistency = Literal["primary", "cached"]
Durability = Literal["standard", "replicated"]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    namespace: str
    endpoints: Sequence[str]
    kubeconfig: str
    kube_namespace: str


class FenceKV:
    """A client of one KVNamespace. Made by `connect`, used within `async with`."""

    def __init__(self, where: _Where, *, settings: Settings, chance: Chance) -> None:
        self._where = where
        self._settings = settings
        self._chance = chance
        self._session: aiohttp.ClientSession | None = None
        self._caller: Caller | None = None

    @classmethod
    def connect(
        cls,
        *,
        namespace: str = "",
        endpoints: Sequence[str] = (),
        kubeconfig: str = "",
        kube_namespace: str = "",
        settings: Settings | None = None,
        chance: Chance | None = None,
    ) -> Self:
        """A client; nothing is sent before `async with`.

        Args:
            namespace: the KVNamespace; empty: FENCEKV_NAMESPACE, or the only one that the cluster has.
            endpoints: `host:port` of shards; empty: FENCEKV_ENDPOINT, or found through Kubernetes.
            kubeconfig: how to reach the cluster; empty: as `fencekv.access.find` looks for it.
            kube_namespace: the Kubernetes namespace; empty: the kubeconfig's.
            settings: timeouts and what is repeated.
            chance: where jitter comes from, a `random.Random` for one that can be replayed.
        """
        where = _Where(
            namespace=namespace, endpoints=endpoints, kubeconfig=kubeconfig, kube_namespace=kube_namespace
        )
        return cls(where, settings=settings or Settings(), chance=chance or secrets.SystemRandom())

    async def __aenter__(self) -> Self:
        where = self._where
        namespace, source = await find(
            os.environ,
            kvns=where.namespace,
            endpoints=where.endpoints,
            kubeconfig=where.kubeconfig,
            kube_namespace=where.kube_namespace,
        )
        self._open(namespace, source)
        return self

    def _open(self, namespace: str, source: Source) -> None:
        self._session = make_session()
        self._caller = Caller(
            self._session,
            namespace=namespace,
            source=source,
            settings=self._settings,
            chance=self._chance,
            clock=asyncio.get_running_loop().time,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
        self._session = self._caller = None

    def table(self, name: str) -> Table:
        """A table of the namespace; whether it exists the first request shows."""
        if self._caller is None:
            raise RuntimeError("use the client within `async with`")
        return Table(name, self._caller, self._settings)


class Table:
    """A table's keys. Made by `FenceKV.table`."""

    def __init__(self, name: str, caller: Caller, settings: Settings) -> None:
        self.name = name
        self._caller = caller
        self._settings = settings

    async def get(
        self, key: str, *, consistency: Consistency = "primary", min_token: Token | None = None
    ) -> Entry | None:
        """A key's value; None: it does not exist.

        Raises:
            Lost: what this client saw of the partition was lost in a failover; the next read starts anew.
        """
        headers: dict[str, str] = {wire.CONSISTENCY: consistency}
        if min_token is not None:
            headers[wire.MIN_TOKEN] = str(min_token)
        request = Request(method="GET", table=self.name, path=_key_path(key), place=key, headers=headers)
        try:
            reply = await self._caller.call(request)
        except NotFound:
            return None
        return _readable(reply, lambda given: _entry(key, given))

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        if_version: Version | None = None,
        if_absent: bool = False,
        durability: Durability | None = None,
        idempotency_key: str | None = None,
    ) -> Written:
        """Sets a key.

        Raises:
            Conflict: it is not at `if_version`, or exists in spite of `if_absent`.
            Unknown: it may have been set or not.
        """
        headers = _conditions(if_version, if_absent=if_absent)
        reply = await self._write("PUT", _key_path(key), key, headers, value, durability, idempotency_key)
        return _readable(reply, lambda given: results.written(_document(given)))

    async def delete(
        self,
        key: str,
        *,
        if_version: Version | None = None,
        durability: Durability | None = None,
        idempotency_key: str | None = None,
    ) -> Deleted:
        """Removes a key, and says whether it existed.

        Raises:
            Conflict: it is not at `if_version`.
            Unknown: it may have been removed or not.
        """
        headers = _conditions(if_version, if_absent=False)
        reply = await self._write("DELETE", _key_path(key), key, headers, b"", durability, idempotency_key)
        return _readable(reply, lambda given: results.deleted(_document(given)))

    async def txn(
        self,
        *,
        compare: Iterable[Compare] = (),
        then: Iterable[Operation] = (),
        otherwise: Iterable[Operation] = (),
        durability: Durability | None = None,
        idempotency_key: str | None = None,
    ) -> TxnAnswer:
        """If all of `compare` hold, does `then`, else `otherwise`; atomically, all keys in one partition.

        Raises:
            Unknown: it may have been carried out or not.
        """
        document = txn_document(compare, then, otherwise)
        return await self.txn_raw(document, durability=durability, idempotency_key=idempotency_key)

    async def txn_raw(
        self, document: object, *, durability: Durability | None = None, idempotency_key: str | None = None
    ) -> TxnAnswer:
        """The same from a document in the form of the wire; its values may be bytes."""
        keys = keys_named(document)
        try:
            body = encode(document)
        except (TypeError, ValueError, UnicodeEncodeError) as error:
            raise Invalid(f"txn: {error}", field="txn") from error
        headers = {"Content-Type": wire.CBOR}
        place = keys[0] if keys else None
        reply = await self._write("POST", "/txn", place, headers, body, durability, idempotency_key)
        return _readable(reply, lambda given: results.txn_answer(_cbor(given)))

    async def list(
        self,
        *,
        prefix: str = "",
        start: str = "",
        end: str = "",
        page_size: int = 100,
        consistency: Consistency = "primary",
    ) -> AsyncIterator[Entry]:
        """Keys in the order of their bytes; `async for entry in table.list(prefix="order-")`."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self.list_page(
                prefix=prefix, start=start, end=end, limit=page_size, cursor=cursor, consistency=consistency
            )
            for entry in page.entries:
                yield entry
            cursor = page.cursor

    async def list_page(
        self,
        *,
        prefix: str = "",
        start: str = "",
        end: str = "",
        limit: int = 100,
        cursor: str = "",
        consistency: Consistency = "primary",
    ) -> Page:
        """One page of keys; the next one is asked for with its cursor."""
        routes = await self._caller.route(self.name)
        several = routes.partitioning.count > 1
        if several and consistency == "cached" and not cursor:
            cursor = self._own_writes_cursor(routes.partitioning.count, *wire.bounds(prefix, start, end))
        query = {"prefix": prefix, "start": start, "end": end, "limit": str(limit), "cursor": cursor}
        request = Request(
            method="GET",
            table=self.name,
            path=_with_query("/keys", query),
            place=None if several else 0,
            slow=True,
            headers={wire.CONSISTENCY: consistency},
        )
        reply = await self._caller.call(request)
        return _readable(reply, lambda given: results.page(_document(given)))

    async def history(self, key: str, *, page_size: int = 100) -> AsyncIterator[Change]:
        """Versions of a key, newest first."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self.history_page(key, limit=page_size, cursor=cursor)
            for change in page.changes:
                yield change
            cursor = page.cursor

    async def history_page(self, key: str, *, limit: int = 100, cursor: str = "") -> HistoryPage:
        """One page of a key's versions; the next one is asked for with its cursor."""
        path = _with_query(f"/history/{wire.segment(key)}", {"limit": str(limit), "cursor": cursor})
        request = Request(method="GET", table=self.name, path=path, place=key)
        reply = await self._caller.call(request)
        return _readable(reply, lambda given: results.history_page(_document(given)))

    async def route(self, *, key: str | None = None) -> Mapping[str, Any]:
        """What a shard says of the table's partitions and their owners."""
        return await self._caller.route_document(self.name, key=key)

    def _own_writes_cursor(self, partitions: int, start: str, end: str) -> str:
        """A cursor at the beginning that asks each partition for at least what this client saw of it."""
        seen = [self._caller.routes.of(self.name, index).token for index in range(partitions)]
        positions = tuple(wire.Position(index, token, None) for index, token in enumerate(seen))
        listing = wire.listing_id(self.name, start, end, None)
        return wire.encode_list_cursor(wire.ListCursor("", positions), listing)

    async def _write(
        self,
        method: str,
        path: str,
        place: str | None,
        headers: Mapping[str, str],
        body: bytes,
        durability: Durability | None,
        idempotency_key: str | None,
    ) -> Reply:
        key = idempotency_key or (secrets.token_hex(16) if self._settings.idempotency else "")
        extra = {wire.DURABILITY: durability, wire.IDEMPOTENCY_KEY: key}
        request = Request(
            method=method,
            table=self.name,
            path=path,
            place=place,
            write=True,
            keyed=bool(key),
            headers={**headers, **{name: value for name, value in extra.items() if value}},
            body=body,
        )
        return await self._caller.call(request)


def _key_path(key: str) -> str:
    try:
        return f"/keys/{wire.segment(key)}"
    except UnicodeEncodeError as error:
        raise Invalid("key: not UTF-8", field="key") from error


def _with_query(path: str, query: Mapping[str, str]) -> str:
    pairs = [f"{name}={wire.segment(value)}" for name, value in query.items() if value]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def _conditions(if_version: Version | None, *, if_absent: bool) -> dict[str, str]:
    if if_version is not None and if_absent:
        raise Invalid("if_version: does not go with if_absent", field="if_version")
    if if_absent:
        return {wire.IF_NONE_MATCH: "*"}
    return {} if if_version is None else {wire.IF_MATCH: f'"{if_version}"'}


def _readable(reply: Reply, read: Callable[[Reply], _Answer]) -> _Answer:
    try:
        return read(reply)
    except (Invalid, KeyError, TypeError, ValueError, AttributeError) as error:
        raise results.unreadable(error) from error


def _entry(key: str, reply: Reply) -> Entry:
    version = Version.parse(reply.headers[wire.VERSION], field=wire.VERSION)
    return Entry(
        key=key, value=reply.body, version=version, token=Token.parse(reply.headers[wire.TOKEN], field=wire.TOKEN)
    )


def _document(reply: Reply) -> Mapping[str, Any]:
    document: Mapping[str, Any] = decode_json(reply.body)
    return document


def _cbor(reply: Reply) -> Mapping[str, Any]:
    document: Mapping[str, Any] = decode(reply.body)
    return document
