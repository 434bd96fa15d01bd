"""When the trimmer trims, and what it does about a base that contradicts the journal's checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines import bench, put, turns
from memory_kube import HandClock
from storage import open_replica, txn
from trimming import applied, checkpoint_of
from trio import until

from fencekv_shard import limits
from fencekv_shard.api import Durability
from fencekv_shard.engine import Engine
from fencekv_shard.journal import Entry, checkpoint_entry, encode_entry
from fencekv_shard.replica import Replica
from fencekv_shard.store import DiskFull, Unreadable
from fencekv_shard.trimmer import Trimmer
from fencekv_shard.view import Closed

AT = 5


async def contradicted(folder: Path) -> Replica:
    """A replica that has applied a checkpoint which says something else than its entries do."""
    replica = await open_replica(folder)
    await replica.promise(1)
    entries: list[Entry] = [txn(seq) for seq in range(AT + 1)]
    wrong = replace(checkpoint_of(entries, AT), digest=bytes(32))
    entries.append(checkpoint_entry(seq=AT + 1, txid=AT + 1, epoch=1, unix_ns=1, checkpoint=wrong))
    await replica.append_copied([encode_entry(entry) for entry in entries], epoch=1)
    await applied(replica, AT + 1)
    return replica


def trimmer_of(
    replica: Replica,
    clock: HandClock,
    *,
    engine: Engine | None = None,
    on_contradiction: Callable[[], Awaitable[None]] | None = None,
) -> tuple[Trimmer, list[asyncio.Task[None]]]:
    """A trimmer of a table that keeps ten seconds, and what it has begun."""
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.ensure_future(work))

    async def unexpected() -> None:
        raise AssertionError("contradicted")

    trimmer = Trimmer(
        name="orders-0",
        replica=lambda: replica,
        engine=lambda: engine,
        window_seconds=lambda: 10.0,
        clock=clock,
        spawn=spawn,
        on_fatal=lambda _error: None,
        on_contradiction=on_contradiction or unexpected,
    )
    return trimmer, tasks


@pytest.mark.parametrize("ahead", [0.0, 1e8])
async def test_an_owner_whose_clock_was_years_ahead_does_not_stop_trimming(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came later, and is older than the window by a clock that is right, shows how old it is at least."""
    monkeypatch.setattr(limits, "FOLD_PAUSE_SECONDS", 0.0)
    clock = HandClock()
    own = await bench(tmp_path, clock=clock, durability=Durability.STANDARD, replicas=("sample-0",))
    own.session.deadline = 1e12
    await own.opened()
    clock.seconds += ahead
    for number in range(7):
        await own.submit(put(f"k{number}"))
    clock.seconds -= ahead
    for number in range(5):
        await own.submit(put(f"k{number}"))
    last = own.replica.last.seq
    await applied(own.replica, last)
    trimmer, tasks = trimmer_of(own.replica, clock, engine=own.engine)
    clock.seconds += 5.0
    trimmer.changed()
    await turns()
    assert own.replica.base.seq < 2, "trimmed within the window"
    clock.seconds += 10.0
    trimmer.changed()
    await until(lambda: own.replica.base.seq == last)
    trimmer.stop()
    await asyncio.gather(*tasks)
    await own.replica.close()


@pytest.mark.parametrize("error", [DiskFull("no room"), Unreadable("too many open files"), Closed("closed")])
async def test_a_contradiction_that_cannot_be_mended_now_is_tried_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FOLD_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(limits, "FOLD_AGAIN_SECONDS", 0.01)
    replica, tries = await contradicted(tmp_path), 0

    async def mend() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise error

    trimmer, tasks = trimmer_of(replica, HandClock(), on_contradiction=mend)
    trimmer.progressed()
    await until(lambda: tries >= 2 or any(task.done() and task.exception() for task in tasks))
    trimmer.stop()
    await asyncio.gather(*tasks)
    assert tries >= 2
    assert replica.first_seq == 0, "nothing is trimmed behind a checkpoint that is contradicted"
    await replica.close()
