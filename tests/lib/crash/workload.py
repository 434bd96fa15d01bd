"""The recorded process: seeded lives of an owner and of a standby, told mark by mark while they are lived.

Run with the shim preloaded: it takes jobs from its standard input, a JSON document a line, lives each in a forked
child (the replica is opened after the fork), and answers each with the child's exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from engines import Bench, bench
from memory_kube import HandClock
from storage import UID, ids, owner, txn

from crash import planted
from crash.observe import digest_of
from crash.shim import Shim
from fencekv.errors import FenceKVError, NotOwner
from fencekv_shard import journal, limits
from fencekv_shard.__main__ import _commit_failed
from fencekv_shard.api import Durability, Options
from fencekv_shard.journal import Entry, in_sync_entry
from fencekv_shard.memory import PodMemory
from fencekv_shard.replica import Replica
from fencekv_shard.state import Growth
from fencekv_shard.store import CommitFailed
from fencekv_shard.transaction import Compare, Delete, Get, Put, Relation, Target, Transaction

STATUS_FAILED: Final = 3  # the life ended by an error that is no failed commit
KEYS: Final = 12
LARGE_BYTES: Final = 5000  # of a value: more than a page
REMOVABLE: Final = 12  # keys that a life on a full disk may remove
ANSWERED_SECONDS: Final = 3  # until a client has its answer
SECONDS_MAX: Final = 15  # of a life; one that hangs is ended
BURSTS: Final = 4

shim: Final = Shim()


class Later:
    """Runs work some turns after it was asked for, so that nothing can pass as done before it was."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        loop = asyncio.get_running_loop()

        def step(turns: int) -> None:
            if turns:
                loop.call_soon(step, turns - 1)
                return
            try:
                result = work()
            except BaseException as error:
                loop.call_soon(done, None, error)
            else:
                loop.call_soon(done, result, None)

        step(4)


class Told(Replica):
    """A replica that puts what it is asked for, and what it answered, into the log."""

    @classmethod
    async def open(cls, *arguments: Any, **options: Any) -> Self:
        replica = await super().open(*arguments, **options)
        _opened(replica)
        return replica

    @classmethod
    async def reseed(cls, *arguments: Any, promised: int, **options: Any) -> Self:
        shim.mark("seeding", promised=promised)
        replica = await super().reseed(*arguments, promised=promised, **options)
        _opened(replica)
        return replica

    async def promise(self, epoch: int) -> None:
        shim.mark("promising", epoch=epoch)
        await super().promise(epoch)
        shim.mark("promised", epoch=epoch)

    async def close_epoch(self, epoch: int) -> None:
        shim.mark("closing", epoch=epoch)
        await super().close_epoch(epoch)
        shim.mark("closed", epoch=epoch)

    async def append_copied(self, raw: Sequence[bytes], *, epoch: int, chain: bytes | None = None) -> int:
        _appending(raw)
        seq = await super().append_copied(raw, epoch=epoch, chain=chain)
        shim.mark("appended", seq=seq)
        return seq

    def append_staged(self, growth: Growth, *, epoch: int, done: Callable[[BaseException | None], None]) -> None:
        def told(error: BaseException | None) -> None:
            if error is None:
                shim.mark("appended", seq=seq)
            elif not isinstance(error, CommitFailed):
                shim.mark("refused")
            done(error)

        seq = growth.records[-1][0]
        _appending([journal.record_entry(record) for _, record in growth.records])
        super().append_staged(growth, epoch=epoch, done=told)

    async def apply_step(self) -> int:
        left = await super().apply_step()
        shim.mark("applied", seq=self.applied_seq)
        return left

    async def truncate(self, seq: int, *, epoch: int) -> Path | None:
        shim.mark("cutting", length=seq + 1)
        path = await super().truncate(seq, epoch=epoch)
        shim.mark("cut")
        return path


def _opened(replica: Replica) -> None:
    shim.mark(
        "opened",
        replica_id=replica.replica_id,
        length=replica.last.seq + 1,
        promised=replica.promised,
        closed_epoch=replica.closed_epoch,
        applied_seq=replica.applied_seq,
    )


def _appending(raw: Sequence[bytes]) -> None:
    entries = [(digest_of(data), _writes(journal.decode_entry(data).writes)) for data in raw]
    shim.mark("appending", entries=entries)


def _writes(writes: Sequence[Put | Delete]) -> list[tuple[str, str | None]]:
    return [(write.key, write.value.hex() if isinstance(write, Put) else None) for write in writes]


# -- the life of an owner -----------------------------------------------------------------------------------------


async def owner_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """Terms of an owner, with rounds of concurrent clients; `started` is called when the first one is open."""
    new_id = ids()
    replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    epoch = 0
    for term in range(terms):
        epoch += rng.randint(1, 2)
        own = await _opened_bench(folder, replica, epoch=epoch)
        if term == 0:
            started()
        for number in range(BURSTS):
            await _burst(own, rng, f"{epoch}.{number}")
            if rng.random() < 0.5:
                await replica.apply_step()
        own.engine.stop(NotOwner("the term is over", epoch=epoch))
        if rng.random() < 0.5:
            await replica.close_epoch(epoch)
        if rng.random() < 0.5:
            await replica.close()
            replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    await replica.close()


async def _opened_bench(folder: Path, replica: Replica, *, epoch: int) -> Bench:
    """An owner without standbys, whose epoch is open."""
    own = await bench(folder, epoch=epoch, replica=replica, durability=Durability.STANDARD, replicas=("sample-0",))
    async with _ending(own):
        await own.opened()
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
    shim.mark("acknowledged", seq=committed.version.number, writes=_writes(committed.effect.writes))
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


# -- the life of a standby ----------------------------------------------------------------------------------------


async def standby_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """Follows owners: takes entries, is cut back, seeds anew. Keeps the pod's memory beside it."""
    started()
    folder.mkdir(exist_ok=True)
    new_id = ids()
    replica: Replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    memory = PodMemory(folder, epochs=lambda: {UID: replica.known_epoch})
    await memory.open(HandClock())
    renewal = epoch = 0
    entries: list[Entry] = []
    for _ in range(terms):
        epoch += rng.randint(1, 2)
        kept = rng.randint(replica.applied_seq + 1, len(entries))
        entries = _grown(rng, entries[:kept], epoch)
        await replica.promise(epoch)
        if replica.last.seq >= kept:
            await replica.truncate(kept - 1, epoch=epoch)
        while replica.last.seq + 1 < len(entries):
            first = replica.last.seq + 1
            raw = [journal.encode_entry(entry) for entry in entries[first : first + rng.randint(1, 6)]]
            await replica.append_copied(raw, epoch=epoch)
            if rng.random() < 0.5:
                replica.commit(rng.randint(max(replica.commit_seq, 0), replica.last.seq))
                await replica.apply_step()
            renewal += 1
            shim.mark("renewed", number=renewal)
            memory.remember(renewal)
        await _remembering(rng, memory, epoch)
        if rng.random() < 0.3:
            await replica.close_epoch(epoch)
        await replica.close()
        if rng.random() < 0.4:
            epoch += 1
            entries = []
            replica = await Told.reseed(folder, UID, executor=Later(), new_id=new_id, promised=epoch)
        else:
            replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    await replica.close()
    memory.close()


async def _remembering(rng: random.Random, memory: PodMemory, epoch: int) -> None:
    if rng.random() < 0.5:
        shim.mark("suspecting")
        memory.suspect()
        shim.mark("suspected")
    if memory.is_suspect(UID) and rng.random() < 0.5:
        shim.mark("granting")
        memory.granted(UID, epoch + 1)


def _grown(rng: random.Random, entries: list[Entry], epoch: int) -> list[Entry]:
    """A journal with a new owner's entries behind the given ones."""
    last = entries[-1] if entries else None
    previous = (0, -1, 0) if last is None else (last.epoch, last.seq, last.txid)
    grown = [*entries, owner(len(entries), epoch=epoch, previous=previous)]
    for _ in range(rng.randint(6, 14)):
        seq = len(grown)
        if rng.random() < 0.15:
            members = [f"pod-{number}/{epoch}" for number in range(rng.randint(1, 3))]
            grown.append(in_sync_entry(seq=seq, txid=seq, epoch=epoch, unix_ns=seq, version=seq, members=members))
            continue
        keys = rng.sample([f"k{number:02d}" for number in range(KEYS)], rng.randint(1, 3))
        writes = [Put(key, rng.randbytes(rng.choice((4, 300, 5000)))) for key in keys[1:]]
        key = b"%d.%d" % (epoch, seq) if rng.random() < 0.3 else None
        grown.append(txn(seq, Delete(keys[0]), *writes, epoch=epoch, key=key))
    return grown


# -- the life after a crash ---------------------------------------------------------------------------------------


async def recovery(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """Opens what a crash left, and works on under the next epochs."""
    replica = await Told.open(folder, UID, executor=Later(), new_id=lambda: f"recovered-{rng.getrandbits(32):x}")
    started()
    for _ in range(terms):
        epoch = replica.known_epoch + 1
        await replica.promise(epoch)
        last = replica.last
        entries = [txn(last.seq + 1 + at, epoch=epoch, txid=last.txid + 1) for at in range(rng.randint(1, 3))]
        await replica.append_copied([journal.encode_entry(entry) for entry in entries], epoch=epoch)
        replica.commit(replica.last.seq)
        await replica.apply_step()
    await replica.close()


LIVES: Final = {
    "owner": owner_life,
    "standby": standby_life,
    "full disk": full_disk_life,
    "full map": full_map_life,
    "recovery": recovery,
}


# -- jobs ---------------------------------------------------------------------------------------------------------


def live(job: dict[str, Any]) -> int:
    """One life, in this process; gives the exit status."""
    signal.alarm(SECONDS_MAX)
    folder = Path(job["folder"])
    shim.begin(folder, Path(job["log"]))
    if job["planted"]:
        {**planted.PLANTED, **planted.PLANTED_ON_FAILURES}[job["planted"]]()

    def started() -> None:
        shim.mark("started")
        if job["fail"]:
            shim.fail(**job["fail"])

    life = LIVES[job["life"]]
    try:
        asyncio.run(life(random.Random(job["seed"]), folder, started, job["terms"]))
    except CommitFailed as error:
        _commit_failed(error)
    except Exception:
        traceback.print_exc()
        return STATUS_FAILED
    return 0


def main() -> None:
    """Jobs in, statuses out."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            with open(job["log"] + ".err", "w") as said:
                os.dup2(said.fileno(), 2)
            status = STATUS_FAILED
            try:
                status = live(job)
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(waited)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
