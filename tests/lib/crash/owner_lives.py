"""Lives of an owner: rounds of clients, with writer threads or without, trimming behind them; and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from engines import Bench, bench
from memory_kube import HandClock
from storage import UID, ids

from crash import planted
from crash.keeping import Keeping
from crash.told import Later, Told, shim, writes_of
from fencekv.clock import SystemClock
from fencekv.errors import FenceKVError, NotOwner
from fencekv_shard import limits
from fencekv_shard.__main__ import _commit_failed
from fencekv_shard.api import Durability, Options
from fencekv_shard.executor import Executor, WriterThreads
from fencekv_shard.replica import Replica
from fencekv_shard.transaction import Compare, Delete, Get, Put, Relation, Target, Transaction

KEYS: Final = 12
LARGE_BYTES: Final = 5000  # of a value: more than a page
REMOVABLE: Final = 12  # keys that a life on a full disk may remove
ANSWERED_SECONDS: Final = 3  # until a client has its answer
BURSTS: Final = 4

# -- the life of an owner -----------------------------------------------------------------------------------------


async def owner_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """Terms of an owner, with rounds of concurrent clients; `started` is called when the first one is open."""
    await _terms(rng, folder, started, terms, executor=Later())


async def threads_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """The same, with commits in the writer threads of a shard."""
    threads = WriterThreads(clock=SystemClock().now, threads=2)
    await _terms(rng, folder, started, terms, executor=threads)
    threads.close()


async def trimming_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """An owner whose table has a history window, some of them with writer threads."""
    executor = WriterThreads(clock=SystemClock().now, threads=2) if rng.random() < 0.5 else Later()
    await _terms(rng, folder, started, terms, executor=executor, trims=True)
    if isinstance(executor, WriterThreads):
        executor.close()


async def _terms(
    rng: random.Random,
    folder: Path,
    started: Callable[[], None],
    terms: int,
    *,
    executor: Executor,
    trims: bool = False,
) -> None:
    new_id = ids()
    replica = await Told.open(folder, UID, executor=executor, new_id=new_id)
    keeping = Keeping(replica) if trims else None
    epoch = 0
    for term in range(terms):
        epoch += rng.randint(1, 2)
        own = await _opened_bench(folder, replica, epoch=epoch, clock=keeping and keeping.clock)
        if term == 0:
            started()
        if keeping is not None:
            keeping.engine = own.engine
        for number in range(BURSTS):
            await _busy(own, rng, f"{epoch}.{number}", keeping)
        own.engine.stop(NotOwner("the term is over", epoch=epoch))
        if keeping is not None:
            keeping.engine = None
        if rng.random() < 0.5:
            await replica.close_epoch(epoch)
        if rng.random() < 0.5:
            await replica.close()
            replica = await Told.open(folder, UID, executor=executor, new_id=new_id)
            if keeping is not None:
                keeping.replica = replica
    if keeping is not None:
        await keeping.end()
    await replica.close()


async def _busy(own: Bench, rng: random.Random, name: str, keeping: Keeping | None) -> None:
    """A burst of clients; before or beside it, now and then, what is done in the background."""
    applying = asyncio.ensure_future(own.replica.apply_step()) if rng.random() < 0.5 else None
    if applying is not None and rng.random() < 0.5:
        await applying
    if keeping is not None:
        keeping.pass_time(rng.choice((0.0, 4.0, 12.0)))
        own.session.deadline = own.clock.now() + 4.0
        if rng.random() < 0.3:
            await keeping.rest()
    await _burst(own, rng, name)
    if applying is not None:
        await applying


async def _opened_bench(folder: Path, replica: Replica, *, epoch: int, clock: HandClock | None = None) -> Bench:
    """An owner without standbys, whose epoch is open."""
    own = await bench(
        folder, epoch=epoch, replica=replica, clock=clock, durability=Durability.STANDARD, replicas=("sample-0",)
    )
    async with _ending(own):
        await own.engine.open(session="s", members=(own.engine.member,), set_version=1)
    return own


@contextlib.asynccontextmanager
async def _ending(own: Bench) -> AsyncIterator[None]:
    """Ends the process behind what runs inside, if that broke the engine: the log has what clients were told."""
    try:
        async with asyncio.timeout(ANSWERED_SECONDS):
            yield
    finally:
        if own.fatal:
            _commit_failed(own.fatal[0])


async def _burst(own: Bench, rng: random.Random, name: str) -> None:
    """Some clients at once; more of them come while the first round is under way."""
    clients: list[asyncio.Task[str]] = []
    async with _ending(own):
        for index in range(rng.randint(1, 7)):
            transaction = _transaction(rng, f"{name}.{index}")
            clients.append(asyncio.ensure_future(_client(own, transaction)))
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        await asyncio.gather(*clients)


async def _client(own: Bench, transaction: Transaction) -> str:
    """Sends a transaction, and notes what it was told: the error's name, or `committed`."""
    try:
        committed = await own.engine.submit(transaction, Options())
    except FenceKVError as error:
        shim.mark("answered", error=type(error).__name__)
        return type(error).__name__
    puts = [part for part in transaction.then if isinstance(part, Put)]
    if committed.version is None:
        return "committed"
    assert not committed.effect.succeeded or set(puts) <= set(committed.effect.writes), transaction
    shim.mark("acknowledged", seq=committed.version.number, writes=writes_of(committed.effect.writes))
    return "committed"


def _transaction(rng: random.Random, name: str) -> Transaction:
    keys = rng.sample([f"k{number:02d}" for number in range(KEYS)], 3)
    value = name.encode() + rng.randbytes(rng.choice((0, 20, 300, 300, 5000)))
    kind = rng.randrange(6)
    if kind == 0:
        return Transaction(then=(Delete(keys[0]),))
    if kind == 1:
        return Transaction(then=(Put(keys[0], value), Get(keys[1]), Put(keys[1], value), Delete(keys[2])))
    if kind == 2:
        absent = Compare(keys[0], Target.EXISTS, Relation.EQUAL, False)
        return Transaction(compare=(absent,), then=(Put(keys[0], value),), otherwise=(Delete(keys[0]),))
    key = name.encode() if rng.random() < 0.5 else b""
    return Transaction(then=(Put(keys[0], value),), idempotency_key=key)


# -- the life of an owner whose disk is full ----------------------------------------------------------------------


async def full_disk_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """The disk fills up to the reserve, then wholly, and then has room again."""
    replica = await Told.open(folder, UID, executor=Later(), new_id=ids())
    own = await _begun(folder, replica, epoch=1)
    started()
    for number in range(terms):
        await _asks(own, "room", rng)
        shim.free(limits.DISK_RESERVE_BYTES // 2)
        await own.engine.record_set(own.members, number + 2)  # an entry of our own may use the reserve
        await _asks(own, "reserve", rng)
        await replica.apply_step()
        shim.free(0)
        await _asks(own, "full", rng)
        shim.free(None)
    await _asks(own, "room", rng)
    if own.fatal:
        _commit_failed(own.fatal[0])
    await replica.close()


async def full_map_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """The environment's address space runs out; it is opened again with more."""
    new_id = ids()
    replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    await replica.close()
    undo = planted.open_with(map_size=256 << 10)
    replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    own = await _begun(folder, replica, epoch=1)
    started()
    for number in range(50 * terms):
        await _client(own, Transaction(then=(Put(f"k{number:02d}", rng.randbytes(LARGE_BYTES)),)))
    await _asks(own, "full", rng)
    own.engine.stop(NotOwner("the term is over", epoch=1))
    if own.fatal:
        _commit_failed(own.fatal[0])
    await replica.close()
    undo()
    replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    await _asks(await _begun(folder, replica, epoch=2), "room", rng)
    await replica.close()


async def _begun(folder: Path, replica: Replica, *, epoch: int) -> Bench:
    own = await _opened_bench(folder, replica, epoch=epoch)
    for key in ("kept", *(f"removable-{number}" for number in range(REMOVABLE))):
        await _client(own, Transaction(then=(Put(key, b"here"),)))
    return own


async def _asks(own: Bench, when: str, rng: random.Random) -> None:
    """Puts a key, removes one that is there, reads one: notes what it was told."""
    head = own.replica.last.seq
    key = next(f"removable-{n}" for n in range(REMOVABLE) if own.replica.read(f"removable-{n}", head) is not None)
    put = await _client(own, Transaction(then=(Put("new", rng.randbytes(LARGE_BYTES)),)))
    removed = await _client(own, Transaction(then=(Delete(key),)))
    kept = own.replica.read("kept", own.replica.last.seq) is not None
    shim.mark("told", when=when, put=put, removed=removed, kept=kept)
