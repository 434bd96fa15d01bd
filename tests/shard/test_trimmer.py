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
from trimming import applied, checkpoint_of, damage_base, fold
from trio import until

from fencekv.codec import encode
from fencekv_shard import limits
from fencekv_shard.api import Durability
from fencekv_shard.base import Standing
from fencekv_shard.engine import Engine
from fencekv_shard.journal import Entry, checkpoint_entry, encode_entry
from fencekv_shard.replica import Replica
from fencekv_shard.store import DiskFull, Unreadable
from fencekv_shard.trimmer import Trimmer
from fencekv_shard.view import Closed

AT = 5


async def checkpointed(folder: Path, **wrong: Any) -> Replica:
    """A replica that has applied a checkpoint. `wrong`: what it says else than its entries do."""
    replica = await open_replica(folder)
    await replica.promise(1)
    entries: list[Entry] = [txn(seq) for seq in range(AT + 1)]
    point = replace(checkpoint_of(entries, AT), **wrong)
    entries.append(checkpoint_entry(seq=AT + 1, txid=AT + 1, epoch=1, unix_ns=1, checkpoint=point))
    await replica.append_copied([encode_entry(entry) for entry in entries], epoch=1)
    await applied(replica, AT + 1)
    return replica


def trimmer_of(
    replica: Replica,
    clock: HandClock,
    *,
    engine: Engine | None = None,
    on_standing: Callable[[], Awaitable[None]] | None = None,
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
        on_standing=on_standing or unexpected,
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
async def test_a_damaged_base_that_cannot_be_mended_now_is_tried_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FOLD_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(limits, "FOLD_AGAIN_SECONDS", 0.01)
    replica, tries = await checkpointed(tmp_path), 0
    await fold(replica, AT)
    await damage_base(replica)

    async def mend() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise error

    trimmer, tasks = trimmer_of(replica, HandClock(), on_standing=mend)
    trimmer.progressed()
    await until(lambda: tries >= 2 or any(task.done() and task.exception() for task in tasks))
    trimmer.stop()
    await asyncio.gather(*tasks)
    assert tries >= 2
    assert replica.standing is Standing.DAMAGED
    assert replica.first_seq == 0, "nothing is trimmed behind a checkpoint that is contradicted"
    await replica.close()


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(("wrong", "standing"), [({}, Standing.SOUND), ({"digest": bytes(32)}, Standing.DIFFERS)])
async def test_what_a_checkpoint_says_of_a_base_whose_total_is_known_or_not(
    wrong: dict[str, Any], standing: Standing, is_known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not known: a version that kept none has folded it. What agrees with a checkpoint is vouched for."""
    monkeypatch.setattr(limits, "FOLD_PAUSE_SECONDS", 0.0)
    replica, calls = await checkpointed(tmp_path, **wrong), 0
    await fold(replica, AT)
    total = replica.base.total
    if not is_known:
        with replica._store._env.begin(write=True) as txn_:
            txn_.put(b"base-total", encode([1, AT - 1, bytes(32)]), db=replica._store._db["meta"])
        await replica.close()
        replica = await open_replica(tmp_path)
        assert replica.base.total is None

    async def note() -> None:
        nonlocal calls
        calls += 1

    trimmer, tasks = trimmer_of(replica, HandClock(), on_standing=note)
    trimmer.progressed()
    await until(lambda: calls if wrong else replica.first_seq > AT)
    trimmer.progressed()  # the same checkpoint once more is nothing new
    await turns()
    trimmer.stop()
    await asyncio.gather(*tasks)
    assert (replica.standing, calls) == (standing, 1 if wrong else 0)
    await replica.close()
    replica = await open_replica(tmp_path)
    assert replica.base.total == (total if is_known or not wrong else None)
    assert replica.first_seq == (0 if wrong else AT + 1)
    await replica.close()
