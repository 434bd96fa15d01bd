"""What tests of a replica share: executors, journal entries, and the model that a replica must equal."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fencekv.token import Version
from fencekv_shard.api import Change
from fencekv_shard.executor import Done, Work
from fencekv_shard.journal import ZERO_HASH, Entry, Ownership, ownership_entry, transaction_entry
from fencekv_shard.replica import Replica
from fencekv_shard.transaction import Delete, Put, Record, Write

UID = "6a1f3c52-0000-4000-8000-000000000001"


class Inline:
    """Runs work at once; its caller learns of it in the next turn."""

    def submit(self, work: Work, done: Done) -> None:
        asyncio.get_running_loop().call_soon(done, *outcome(work))


def outcome(work: Work) -> tuple[Any, BaseException | None]:
    """What a writer thread would tell of the work."""
    try:
        return work(), None
    except BaseException as error:
        return None, error


class Holding:
    """Runs work at once; while held, its caller learns of it only after `release`: the disk is ahead of memory."""

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.AbstractEventLoop, Done, tuple[Any, BaseException | None]]] = []
        self._released = asyncio.Event()
        self._released.set()
        self.held = asyncio.Event()

    def hold(self) -> None:
        self._released.clear()
        self.held.clear()

    def release(self) -> None:
        self._released.set()
        while self._waiting:
            loop, done, told = self._waiting.pop(0)
            loop.call_soon(done, *told)

    def submit(self, work: Work, done: Done) -> None:
        told = outcome(work)
        self.held.set()
        if self._released.is_set():
            asyncio.get_running_loop().call_soon(done, *told)
        else:
            self._waiting.append((asyncio.get_running_loop(), done, told))


def ids() -> Callable[[], str]:
    """Replica ids, counted up."""
    counter = itertools.count(1)
    return lambda: f"{next(counter):016x}"


async def open_replica(folder: Path, new_id: Callable[[], str] | None = None) -> Replica:
    return await Replica.open(folder, UID, executor=Inline(), new_id=new_id or ids())


def txn(seq: int, *writes: Write, epoch: int = 1, key: bytes | None = None, txid: int | None = None) -> Entry:
    """A transaction's entry; `key` is its idempotency key."""
    return transaction_entry(
        seq=seq,
        txid=seq if txid is None else txid,
        epoch=epoch,
        unix_ns=1_700_000_000_000_000_000 + seq,
        actor="tester",
        writes=writes or (Put(f"k{seq}", b"v%d" % seq),),
        idempotency=None if key is None else (key, seq.to_bytes(16, "big")),
    )


def owner(seq: int, *, epoch: int, previous: tuple[int, int, int] = (0, -1, 0), chain: bytes = ZERO_HASH) -> Entry:
    """An ownership entry; `previous` = (epoch, last seq, last txid)."""
    ownership = Ownership(
        previous_epoch=previous[0],
        previous_seq=previous[1],
        previous_txid=previous[2],
        previous_chain=chain,
        session=f"pod-0/uid/{epoch:016x}",
    )
    return ownership_entry(seq=seq, txid=seq, epoch=epoch, unix_ns=seq, ownership=ownership)


@dataclass
class Model:
    """A journal as a plain list; every answer is worked out from the beginning."""

    entries: list[Entry] = field(default_factory=list)

    def state(self, at: int) -> dict[str, Record]:
        state: dict[str, Record] = {}
        for entry in self.entries[: at + 1]:
            for write in entry.writes:
                if isinstance(write, Put):
                    state[write.key] = Record(write.value, Version(entry.epoch, entry.seq))
                else:
                    state.pop(write.key, None)
        return state

    def names(self) -> list[str]:
        return sorted({write.key for entry in self.entries for write in entry.writes}, key=str.encode)

    def scan(self, *, start: str, end: str, at: int) -> list[tuple[str, Record]]:
        inside = [
            (key, record)
            for key, record in self.state(at).items()
            if key.encode() >= start.encode() and (not end or key.encode() < end.encode())
        ]
        return sorted(inside, key=lambda item: item[0].encode())

    def history(self, key: str, *, at: int) -> list[Change]:
        found = []
        for entry in self.entries[: at + 1]:
            for write in entry.writes:
                if write.key == key:
                    value = None if isinstance(write, Delete) else write.value
                    found.append(Change(Version(entry.epoch, entry.seq), value))
        return found[::-1]

    def idempotent(self, key: bytes) -> tuple[int, bytes] | None:
        found = [(e.seq, e.idempotency[1]) for e in self.entries if e.idempotency and e.idempotency[0] == key]
        return found[-1] if found else None


def pages(
    replica: Replica, *, start: str, end: str, at: int, limit: int, bytes_max: int = 1 << 20
) -> list[tuple[str, Record]]:
    """A listing, page by page; asserts that no page breaks its limits or its word."""
    items: list[tuple[str, Record]] = []
    after = ""
    while True:
        page, more = replica.scan(start=start, end=end, after=after, limit=limit, bytes_max=bytes_max, at=at)
        assert len(page) <= limit
        size = sum(len(key.encode()) + len(record.value) for key, record in page)
        assert size <= bytes_max or len(page) == 1
        items += page
        if not more:
            return items
        assert page
        after = page[-1][0]


def histories(replica: Replica, key: str, *, at: int, limit: int) -> list[Change]:
    """A key's history, page by page."""
    items: list[Change] = []
    before: int | None = None
    while True:
        page, more = replica.history(key, before=before, limit=limit, at=at)
        assert len(page) <= limit
        items += page
        if not more:
            return items
        before = page[-1].version.number


def assert_equals_model(replica: Replica, model: Model, seqs: Sequence[int]) -> None:
    """Every key, listing and history of the replica, at each of `seqs`."""
    for at in seqs:
        state = model.state(at)
        for key in [*model.names(), "absent"]:
            assert replica.read(key, at) == state.get(key), (key, at)
            assert histories(replica, key, at=at, limit=2) == model.history(key, at=at), (key, at)
        assert pages(replica, start="", end="", at=at, limit=2) == model.scan(start="", end="", at=at), at
