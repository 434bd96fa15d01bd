"""An owner's engine over a real replica, with a clock and a deadline in the test's hands."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_kube import HandClock
from storage import UID, Inline, ids

from fencekv.partitioning import parse_partitioning
from fencekv_shard.api import Committed, Durability, Options
from fencekv_shard.engine import Engine
from fencekv_shard.executor import Executor
from fencekv_shard.meters import Meters
from fencekv_shard.replica import Replica
from fencekv_shard.spec import PartitionSpec
from fencekv_shard.transaction import Put, Transaction

B, C = "sample-1/b", "sample-2/c"


def spec(**changes: Any) -> PartitionSpec:
    values: dict[str, Any] = {
        "uid": UID,
        "name": "orders-0",
        "table": "orders",
        "index": 0,
        "partitioning": parse_partitioning({"strategy": "hash", "count": 1}),
        "durability": Durability.REPLICATED,
        "min_in_sync": 1,
        "unshipped_seconds_max": 1.0,
        "replicas": ("sample-0", "sample-1", "sample-2"),
        "value_bytes_max": 1 << 20,
        "key_pattern": "",
        "history_seconds": 0.0,
        "keep_data": True,
    }
    return PartitionSpec(**{**values, **changes})


def put(key: str, value: bytes = b"v", **options: Any) -> Transaction:
    return Transaction(then=(Put(key, value),), **options)


@dataclass
class Term:
    """The session, as the engine sees it."""

    deadline: float


@dataclass
class Bench:
    """One engine and what it told its surroundings."""

    replica: Replica
    clock: HandClock
    session: Term
    engine: Engine
    deposed: list[int] = field(default_factory=list)
    fatal: list[BaseException] = field(default_factory=list)
    growths: list[int] = field(default_factory=list)
    meters: Meters = field(default_factory=Meters)

    @property
    def members(self) -> tuple[str, ...]:
        return (self.engine.member, *sorted(self.engine.counted))

    def submit(self, transaction: Transaction, **options: Any) -> asyncio.Task[Committed]:
        return asyncio.ensure_future(self.engine.submit(transaction, Options(**options)))

    def confirm(self, *members: str) -> bool:
        """These standbys have everything that is fsynced here. Gives False, for use in a condition."""
        for member in members:
            self.engine.confirm(member, self.replica.last.seq)
        return False

    async def opened(self, *standbys: str) -> None:
        """Opens the epoch with an in-sync set of this replica and `standbys`, who confirm at once."""
        opening = asyncio.ensure_future(
            self.engine.open(session="s", members=(self.engine.member, *standbys), set_version=1)
        )
        await settle(lambda: opening.done() or self.replica.set_version == 1)
        self.confirm(*standbys)
        await opening


async def settle(condition: Any, turns: int = 2000) -> None:
    """Lets others run until a condition holds."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def turns(count: int = 50) -> None:
    """Lets everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def bench(
    folder: Path,
    *,
    epoch: int = 1,
    executor: Executor | None = None,
    replica: Replica | None = None,
    clock: HandClock | None = None,
    **changes: Any,
) -> Bench:
    """An engine of `epoch`, which the replica has promised; `changes` are the spec's."""
    replica = replica or await Replica.open(folder, UID, executor=executor or Inline(), new_id=ids())
    await replica.promise(epoch)
    clock, session = clock or HandClock(), Term(0.0)
    session.deadline = clock.now() + 4.0
    deposed: list[int] = []
    fatal: list[BaseException] = []
    growths: list[int] = []
    meters = Meters()
    engine = Engine(
        replica=replica,
        epoch=epoch,
        member=f"sample-0/{replica.replica_id}",
        session=session,
        clock=clock,
        spec=spec(**changes),
        on_growth=lambda: growths.append(replica.commit_seq),
        on_deposed=lambda: deposed.append(epoch),
        on_fatal=fatal.append,
        meters=meters,
    )
    return Bench(replica, clock, session, engine, deposed, fatal, growths, meters)
