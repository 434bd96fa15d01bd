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
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, cast, get_args

from fencekv import messages as m
from fencekv import results, wire
from fencekv.attempts import Chance
from fencekv.caller import Caller, Request, Settings
from fencekv.discovery import Source, find
from fencekv.errors import Invalid, NotFound, Unknown
from fencekv.frame_transport import FrameTransport
from fencekv.http_transport import HttpTransport
from fencekv.operations import Compare, Operation, Transaction, parse_txn
from fencekv.results import Change, Deleted, Entry, HistoryPage, Page, TxnAnswer, Written
from fencekv.sending import Build, Transport
from fencekv.token import Token, Version

Consistency = Literal["primary", "cached"]
Durability = Literal["standard", "replicated"]
Wire = Literal["frames", "http"]
CLIENT_NAME: Final = "fencekv-python"
_NO_OPTIONS: Final = m.Options()
_Answer = TypeVar("_Answer", bound=m.Success)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    namespace: str
    endpoints: Sequence[str]
    kubeconfig: str
    kube_namespace: str
    transport: Wire | Literal[""]


class FenceKV:
    """A client of one KVNamespace. Made by `connect`, used within `async with`."""

    def __init__(self, where: _Where, *, settings: Settings, chance: Chance) -> None:
        self._where = where
        self._settings = settings
        self._chance = chance
        # One random part for all keys of this client: the number behind it makes each its own.
        self._keys = _Keys(secrets.token_hex(12)) if settings.idempotency else None
        self._transport: Transport | None = None
        self._caller: Caller | None = None

    @classmethod
    def connect(
        cls,
        *,
        namespace: str = "",
        endpoints: Sequence[str] = (),
        kubeconfig: str = "",
        kube_namespace: str = "",
        transport: Wire | Literal[""] = "",
        settings: Settings | None = None,
        chance: Chance | None = None,
    ) -> Self:
        """A client; nothing is sent before `async with`.

        Args:
            namespace: the KVNamespace; empty: FENCEKV_NAMESPACE, or the only one that the cluster has.
            endpoints: `host:port` of shards; empty: FENCEKV_ENDPOINT, or found through Kubernetes.
            kubeconfig: how to reach the cluster; empty: as `fencekv.access.find` looks for it.
            kube_namespace: the Kubernetes namespace; empty: the kubeconfig's.
            transport: "frames" or "http"; empty: FENCEKV_TRANSPORT, or frames.
            settings: timeouts and what is repeated.
            chance: where jitter comes from, a `random.Random` for one that can be replayed.
        """
        where = _Where(
            namespace=namespace,
            endpoints=endpoints,
            kubeconfig=kubeconfig,
            kube_namespace=kube_namespace,
            transport=transport,
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
        self._open(namespace, source, _wire(where.transport or os.environ.get("FENCEKV_TRANSPORT", "")))
        return self

    def _open(self, namespace: str, source: Source, wire: Wire) -> None:
        if wire == "http":
            self._transport = HttpTransport(namespace=namespace)
        else:
            self._transport = FrameTransport(namespace=namespace, name=CLIENT_NAME)
        self._caller = Caller(
            self._transport,
            namespace=namespace,
            source=source,
            settings=self._settings,
            chance=self._chance,
            loop=asyncio.get_running_loop(),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        caller, self._caller = self._caller, None
        transport, self._transport = self._transport, None
        if caller is not None:
            await caller.close()
        if transport is not None:
            await transport.close()

    def table(self, name: str) -> Table:
        """A table of the namespace; whether it exists the first request shows."""
        if self._caller is None:
            raise RuntimeError("use the client within `async with`")
        return Table(name, self._caller, self._keys)


class Table:
    """A table's keys. Made by `FenceKV.table`."""

    def __init__(self, name: str, caller: Caller, keys: _Keys | None) -> None:
        self.name = name
        self._caller = caller
        self._keys = keys

    async def get(
        self, key: str, *, consistency: Consistency = "primary", min_token: Token | None = None
    ) -> Entry | None:
        """A key's value; None: it does not exist.

        Raises:
            Lost: what this client saw of the partition was lost in a failover; the next read starts anew.
        """

        def build(number: int, options: m.Options | None) -> m.Get:
            return m.Get(number, self.name, options, key)

        asked = m.Options(_place(consistency, m.CONSISTENCIES, "consistency"), None, min_token)
        try:
            answer = await self._caller.call(Request(self.name, m.GET, build, key, asked))
        except NotFound:
            return None
        return results.entry(key, _of(m.Got, answer))

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
        if if_version is not None and if_absent:
            raise Invalid("if_version: does not go with if_absent", field="if_version")
        condition: m.Condition = True if if_absent else if_version

        def build(number: int, options: m.Options | None) -> m.Put:
            return m.Put(number, self.name, options, key, value, condition)

        answer = await self._write(m.PUT, build, key, durability, idempotency_key)
        return results.written(_of(m.Written, answer))

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

        def build(number: int, options: m.Options | None) -> m.Delete:
            return m.Delete(number, self.name, options, key, if_version)

        answer = await self._write(m.DELETE, build, key, durability, idempotency_key)
        return results.deleted(_of(m.Deleted, answer))

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
        asked = Transaction(list(compare), list(then), list(otherwise))
        return await self._txn(asked, durability, idempotency_key)

    async def txn_raw(
        self, document: object, *, durability: Durability | None = None, idempotency_key: str | None = None
    ) -> TxnAnswer:
        """The same from a document in HTTP's form; its values may be bytes."""
        return await self._txn(parse_txn(document), durability, idempotency_key)

    async def _txn(
        self, asked: Transaction, durability: Durability | None, idempotency_key: str | None
    ) -> TxnAnswer:
        def build(number: int, options: m.Options | None) -> m.Txn:
            return m.Txn(number, self.name, options, asked.compare, asked.then, asked.otherwise)

        answer = await self._write(m.TXN, build, asked.key(), durability, idempotency_key)
        return results.txn_answer(asked, _of(m.Committed, answer))

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
        first, bound = wire.bounds(prefix, start, end)
        several = routes.partitioning.count > 1
        if several and consistency == "cached" and not cursor:
            cursor = self._own_writes_cursor(routes.partitioning.count, first, bound)

        def build(number: int, options: m.Options | None) -> m.List:
            return m.List(number, self.name, options, first, bound, limit, cursor, None)

        asked = m.Options(_place(consistency, m.CONSISTENCIES, "consistency"))
        place = None if several else 0
        answer = await self._caller.call(Request(self.name, m.LIST, build, place, asked, slow=True))
        return results.page(_of(m.Listed, answer))

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

        def build(number: int, options: m.Options | None) -> m.History:
            return m.History(number, self.name, options, key, limit, cursor)

        answer = await self._caller.call(Request(self.name, m.HISTORY, build, key, _NO_OPTIONS))
        return results.history_page(_of(m.Changes, answer))

    async def route(self, *, key: str | None = None) -> Mapping[str, Any]:
        """What a shard says of the table's partitions and their owners."""
        return results.route_document(await self._caller.locate(self.name, key=key))

    def _own_writes_cursor(self, partitions: int, start: str, end: str) -> str:
        """A cursor at the beginning that asks each partition for at least what this client saw of it."""
        seen = [self._caller.routes.of(self.name, index).token for index in range(partitions)]
        positions = tuple(wire.Position(index, token, None) for index, token in enumerate(seen))
        listing = wire.listing_id(self.name, start, end, None)
        return wire.encode_list_cursor(wire.ListCursor("", positions), listing)

    async def _write(
        self,
        operation: int,
        build: Build,
        place: str | None,
        durability: Durability | None,
        idempotency_key: str | None,
    ) -> m.Success:
        if idempotency_key is not None and not isinstance(idempotency_key, str):
            raise Invalid("idempotency_key: want a text", field="idempotency_key")
        key = idempotency_key or (None if self._keys is None else self._keys.next())
        under = None if durability is None else _place(durability, m.DURABILITIES, "durability")
        options = m.Options(None, under, None, None, key)
        return await self._caller.call(Request(self.name, operation, build, place, options, write=True))


class _Keys:
    """Idempotency keys, each used once."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._numbers = count()

    def next(self) -> str:
        """A key that nobody has used."""
        return f"{self._prefix}-{next(self._numbers):x}"


def _wire(given: str) -> Wire:
    if given and given not in get_args(Wire):
        raise Invalid(f"transport: want frames or http, got {given[:64]!r}", field="transport")
    return cast(Wire, given or "frames")


def _place(given: str, known: Sequence[str], field: str) -> int:
    if given not in known:
        raise Invalid(f"{field}: want one of {', '.join(known)}, got {given[:64]!r}", field=field)
    return known.index(given)


def _of(kind: type[_Answer], answer: m.Success) -> _Answer:
    if not isinstance(answer, kind):
        raise Unknown(f"an answer that cannot be read: {type(answer).__name__} instead of {kind.__name__}")
    return answer
