"""Lives of a standby: it follows owners, is cut back, seeds anew, trims; and the life that follows a crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from memory_kube import HandClock
from storage import UID, ids, owner, txn
from trimming import checkpoint

from crash.keeping import Keeping
from crash.told import Later, Told, seeding, shim
from fencekv_shard import journal
from fencekv_shard.base import Base, Digest, Fold, folded
from fencekv_shard.journal import Checkpoint, Entry, in_sync_entry
from fencekv_shard.memory import PodMemory
from fencekv_shard.replica import Replica
from fencekv_shard.state import State, appended
from fencekv_shard.transaction import Delete, Put

KEYS: Final = 12
PAGE_ROWS: Final = 3  # of a base, in one message

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


async def seeded_life(rng: random.Random, folder: Path, started: Callable[[], None], terms: int) -> None:
    """Follows owners of a table with a history window: trims behind checkpoints, is seeded with a base."""
    started()
    new_id = ids()
    replica: Replica = await Told.open(folder, UID, executor=Later(), new_id=new_id)
    keeping = Keeping(replica)
    epoch = 0
    entries: list[Entry] = []
    for _ in range(terms):
        epoch += rng.randint(1, 2)
        await keeping.rest()
        kept = rng.randint(replica.applied_seq + 1, len(entries))
        entries = _grown(rng, entries[:kept], epoch, checkpoints=True)
        await replica.promise(epoch)
        if replica.last.seq >= kept:
            await replica.truncate(kept - 1, epoch=epoch)
        while replica.last.seq + 1 < len(entries):
            first = replica.last.seq + 1
            raw = [journal.encode_entry(entry) for entry in entries[first : first + rng.randint(1, 6)]]
            await replica.append_copied(raw, epoch=epoch)
            if rng.random() < 0.7:
                replica.commit(rng.randint(max(replica.commit_seq, 0), replica.last.seq))
                await replica.apply_step()
                keeping.progressed()
        if rng.random() < 0.6:
            replica = await _seeded(rng, folder, replica, entries, new_id)
            keeping.replica = replica
    await keeping.end()
    await replica.close()


async def _seeded(
    rng: random.Random, folder: Path, replica: Replica, entries: list[Entry], new_id: Callable[[], str]
) -> Replica:
    """The replica that is made of an owner's base, page by page, perhaps at the second try."""
    below = entries[: rng.randint(1, len(entries))]
    base, rows = _base(below)
    digest = Digest()
    digest.add(rows)
    for pages in ([rng.randint(0, 2)] if rng.random() < 0.5 else []) + [len(rows)]:
        seed = await replica.begin_seed(base)
        for at in range(0, len(rows), PAGE_ROWS)[:pages]:
            await replica.add_to_seed(seed, rows[at : at + PAGE_ROWS])
    seed.check(digest.checkpoint(base.seq))
    promised = replica.promised
    await replica.close()
    seeding(below, promised=promised)
    return await Told.reseed(folder, UID, executor=Later(), new_id=new_id, promised=promised, seed=seed)


def _base(entries: list[Entry]) -> tuple[Base, list[tuple[bytes, bytes]]]:
    """The base that holds all of a journal, as its owner would send it."""
    pairs = [(entry, journal.encode_entry(entry)) for entry in entries]
    end, _ = appended(State(replica_id=""), pairs, commit_seq=-1)
    return folded(Base(), entries, chain=end.chain, peaks=end.peaks), list(Fold.of(entries).puts)


async def _remembering(rng: random.Random, memory: PodMemory, epoch: int) -> None:
    if rng.random() < 0.5:
        shim.mark("suspecting")
        memory.suspect()
        shim.mark("suspected")
    if memory.is_suspect(UID) and rng.random() < 0.5:
        shim.mark("granting")
        memory.granted(UID, epoch + 1)


def _grown(rng: random.Random, entries: list[Entry], epoch: int, *, checkpoints: bool = False) -> list[Entry]:
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
        if checkpoints and rng.random() < 0.2:
            point = max((one.operations.at for one in grown if isinstance(one.operations, Checkpoint)), default=-1)
            grown.append(checkpoint(grown, rng.randint(max(point, 0), seq - 1), epoch=epoch))
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
    keeping = Keeping(replica)
    started()
    keeping.progressed()
    for _ in range(terms):
        epoch = replica.known_epoch + 1
        await replica.promise(epoch)
        last = replica.last
        entries = [txn(last.seq + 1 + at, epoch=epoch, txid=last.txid + 1) for at in range(rng.randint(1, 3))]
        await replica.append_copied([journal.encode_entry(entry) for entry in entries], epoch=epoch)
        replica.commit(replica.last.seq)
        await replica.apply_step()
        keeping.progressed()
    await keeping.rest()
    await keeping.end()
    await replica.close()
