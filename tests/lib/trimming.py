"""What tests of trimming share: the model with a floor, the checkpoint that a replica should make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from storage import Model, histories, pages

from fencekv.errors import Lost
from fencekv_shard import limits
from fencekv_shard.api import Change
from fencekv_shard.base import Digest, Fold
from fencekv_shard.journal import Checkpoint, Entry, checkpoint_entry
from fencekv_shard.replica import Replica


def quick_trimming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small steps and pages, and no long waiting."""
    monkeypatch.setattr(limits, "TRIM_SECONDS_MIN", 0.1)
    monkeypatch.setattr(limits, "FOLD_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(limits, "FOLD_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(limits, "FOLD_ENTRIES", 7)
    monkeypatch.setattr(limits, "BASE_PAGE_KEYS", 3)
    for seconds in ("APPLY_IDLE_SECONDS", "APPLY_FEW_SECONDS"):
        monkeypatch.setattr(limits, seconds, 0.05)
    # The pages' sizes are defaults of an argument: bound when the module was read.
    monkeypatch.setitem(cast("Any", Replica.base_page).__kwdefaults__, "count_max", 3)


async def damage_base(replica: Replica) -> bytes:
    """Writes another value into the first row of the base, as a disk or a bug would. Gives its key."""
    store = replica._store
    [(key, row)] = store.base_page(b"", count_max=1, bytes_max=1)

    async def step() -> None:
        with store._env.begin(write=True) as txn:
            txn.put(key, row + b"!", db=store._db["base"])

    await replica._exclusively(step)
    return key


def always(entry: Entry) -> bool:
    """Everything is old enough."""
    return True


def checkpoint_of(entries: Sequence[Entry], at: int) -> Checkpoint:
    """What a checkpoint at `at` must say, worked out from the whole journal."""
    digest = Digest()
    digest.add(Fold.of(entries[: at + 1]).puts)
    return digest.checkpoint(at)


def checkpoint(entries: Sequence[Entry], at: int, *, epoch: int = 1) -> Entry:
    """The entry of a checkpoint behind `entries`."""
    seq = len(entries)
    return checkpoint_entry(seq=seq, txid=seq, epoch=epoch, unix_ns=seq, checkpoint=checkpoint_of(entries, at))


async def fold(replica: Replica, limit: int) -> None:
    """Folds as far as whole rounds go."""
    while await replica.fold_step(limit, old=always):
        pass


async def trim(replica: Replica) -> None:
    """Trims up to the last checkpoint that was noted."""
    noted = replica.base.noted
    while noted and await replica.trim_step(noted.checkpoint.at):
        pass


async def applied(replica: Replica, seq: int) -> None:
    """Commits and applies up to `seq`."""
    replica.commit(seq)
    while await replica.apply_step():
        pass


def kept_history(model: Model, key: str, *, at: int, floor: int) -> list[Change]:
    """A key's history as a replica shall tell it whose base stands at `floor`."""
    above = [change for change in model.history(key, at=at) if change.version.number > floor]
    record = model.state(floor).get(key)
    return above if record is None else [*above, Change(record.version, record.value)]


def assert_equals_above(replica: Replica, model: Model, floor: int) -> None:
    """Every key, listing and history at each seq from `floor` on; and that what is below is refused."""
    for at in range(floor, len(model.entries)):
        state = model.state(at)
        for key in [*model.names(), "absent"]:
            assert replica.read(key, at) == state.get(key), (key, at)
            assert histories(replica, key, at=at, limit=2) == kept_history(model, key, at=at, floor=floor), (
                key,
                at,
            )
        assert pages(replica, start="", end="", at=at, limit=2) == model.scan(start="", end="", at=at), at
    if floor >= 0:
        for refused in (
            lambda: replica.read("absent", floor - 1),
            lambda: replica.scan(limit=1, at=floor - 1),
            lambda: replica.history("absent", limit=1, at=floor - 1),
        ):
            with pytest.raises(Lost, match="history is gone"):
                refused()
