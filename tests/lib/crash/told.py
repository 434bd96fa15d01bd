"""What the lives of the recorded process share: a replica that tells of itself, and the shim that is told.

Invariants:
  * What may be found after a crash is told before the call that writes it, and what must be, behind its return.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from crash.observe import digest_of
from crash.shim import Shim
from fencekv_shard import journal
from fencekv_shard.folder import Seed
from fencekv_shard.journal import Checkpoint, Entry
from fencekv_shard.replica import Replica
from fencekv_shard.state import Growth
from fencekv_shard.store import CommitFailed
from fencekv_shard.transaction import Delete, Put

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
    async def reseed(cls, *arguments: Any, promised: int, seed: Seed | None = None, **options: Any) -> Self:
        """With a seed, `seeding` was called before."""
        if seed is None:
            seeding([], promised=promised)
        replica = await super().reseed(*arguments, promised=promised, seed=seed, **options)
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

    async def fold_step(self, limit: int, *, old: Callable[[Entry], bool]) -> int:
        count = await super().fold_step(limit, old=old)
        shim.mark("folded", seq=self.base.seq)
        return count

    async def trim_step(self, limit: int) -> bool:
        more = await super().trim_step(limit)
        shim.mark("trimmed", first=self.first_seq)
        return more

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
        base_seq=replica.base.seq,
        first_seq=replica.first_seq,
    )


def seeding(entries: Sequence[Entry], *, promised: int) -> None:
    """A replica that holds these entries, in its base alone, is to take the place of the one that is there."""
    shim.mark("seeding", entries=[_told(journal.encode_entry(entry)) for entry in entries], promised=promised)


def _appending(raw: Sequence[bytes]) -> None:
    shim.mark("appending", entries=[_told(data) for data in raw])


def _told(data: bytes) -> tuple[str, list[tuple[str, str | None]], int | None]:
    entry = journal.decode_entry(data)
    at = entry.operations.at if isinstance(entry.operations, Checkpoint) else None
    return digest_of(data), writes_of(entry.writes), at


def writes_of(writes: Sequence[Put | Delete]) -> list[tuple[str, str | None]]:
    """Keys and values in hex (None: deleted), as the log has them."""
    return [(write.key, write.value.hex() if isinstance(write, Put) else None) for write in writes]
