"""The controller of KVOperations on an API server in memory: who begins what, and what an operator leaves."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from memory_kube import HandClock, MemoryKube
from operator_world import facts_of, session, table_object

from fencekv import leases
from fencekv.errors import Unknown
from fencekv.faults import FAULT, Order
from fencekv.kube import CONFIG_MAPS, KV_OPERATIONS, KV_TABLES, LEASES, KubeConflict, Unclear
from fencekv.linearizable import Outcome
from fencekv.results import Change, Deleted, Entry, HistoryPage, Written
from fencekv.token import Token, Version
from fencekv_operator import drill as drill_module
from fencekv_operator import operate
from fencekv_operator.drill import Surroundings
from fencekv_operator.events import Notice
from fencekv_operator.facts import PartitionFacts
from fencekv_operator.operate import Cluster, Operations

Object = dict[str, Any]

PARTITION: Object = {
    "metadata": {"name": "orders-0", "namespace": "default", "uid": "u-0"},
    "spec": {
        "replicas": ["sample-0", "sample-1", "sample-2"],
        "table": "orders",
        "index": 0,
        "partitioning": {"strategy": "hash", "count": 1},
    },
}


class MemoryTable:
    """A table whose owner changes when its world says so; `lies` spoils what it tells."""

    def __init__(self, world: World) -> None:
        self.world, self.seq = world, 0
        self.changes: dict[str, list[Change]] = {}
        self.lies = ""

    async def put(self, key: str, value: bytes, *, durability: str, idempotency_key: str) -> Written:
        assert durability == "replicated"
        await asyncio.sleep(0)
        if self.world.down:
            await self.world.up.wait()
        version = Version(self.world.epoch, self.seq)
        self.seq += 1
        forgets = self.lies == "loses" and self.seq % 40 == 0
        if not forgets:
            self.changes.setdefault(key, []).insert(0, Change(version=version, value=value))
        if self.lies == "unsure" and self.seq % 40 == 0:
            raise Unknown("nobody knows")
        return Written(version=version, token=Token(*version), partition="orders-0")

    async def get(self, key: str) -> Entry | None:
        if key not in self.changes:
            return None
        last = self.changes[key][0]
        assert last.value is not None
        return Entry(key=key, value=last.value, version=last.version, token=None)

    async def delete(self, key: str) -> Deleted:
        return Deleted(existed=True, version=None, token=Token(1, 1), partition="orders-0")

    async def history_page(self, key: str, *, limit: int, cursor: str) -> HistoryPage:
        return HistoryPage(changes=tuple(self.changes.get(key, ())), cursor=None)


class World:
    """Everything around the controller, played by hand. Its clock is real where drills need one to go on."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.kube = MemoryKube(self.clock)
        self.notices: list[Notice] = []
        self.leading = True
        self.epoch, self.owner = 4, "sample-0"
        self.down = False
        self.up = asyncio.Event()
        self.standbys = ("sample-1", "sample-2")
        self.moves: list[tuple[str, str]] = []
        self.preferred: list[str] = []
        self.probes = 0
        self.probe_says: tuple[Outcome, tuple[int, int] | None] = (Outcome.REFUSED, None)
        self.table = MemoryTable(self)

    def facts(self, _namespace: str, name: str) -> PartitionFacts | None:
        if name != "orders-0":
            return None
        return facts_of(PARTITION, owner=self.owner, epoch=self.epoch, in_sync=(self.owner, *self.standbys))

    async def order(self, _namespace: str, name: str, target: str) -> str:
        self.moves.append((name, target))
        self.owner, self.epoch = target or "sample-1", self.epoch + 1
        return ""

    async def prefer(self, _partition: Object, pod: str) -> None:
        self.preferred.append(pod)

    async def probe(
        self, _http: str, _path: str, _value: bytes, *, epoch: int, key: str
    ) -> tuple[Outcome, tuple[int, int] | None]:
        self.probes += 1
        assert epoch == 4
        return self.probe_says

    @contextlib.asynccontextmanager
    async def connect(self, _namespace: str, kvns: str) -> AsyncIterator[Callable[[str], MemoryTable]]:
        assert kvns == "sample"
        yield lambda _name: self.table

    def operator(self, runner: str = "operator-0/a") -> Operations:
        tables = [self.kube_table] if hasattr(self, "kube_table") else []
        return Operations(
            kube=self.kube,
            shards=None,  # type: ignore[arg-type]  # asked by verify alone
            cluster=Cluster(
                facts=self.facts,
                partition=lambda _namespace, name: PARTITION if name == "orders-0" else None,
                partitions_of=lambda _namespace, _table: [PARTITION],
                tables=lambda: tables,
                order=self.order,
                prefer=self.prefer,
            ),
            around=Surroundings(
                kube=self.kube,
                clock=_Loop(self.clock),
                connect=self.connect,  # type: ignore[arg-type]
                probe=self.probe,
                facts=self.facts,
            ),
            chance=random.Random(1),
            runner=runner,
            namespace=None,
            leading=lambda: self.leading,
            post=self.notices.append,
        )

    async def make_table(self, **spec: Any) -> None:
        self.kube_table = await self.kube.create(KV_TABLES, "default", table_object("orders", count=1, **spec))

    async def make(self, name: str = "op-1", **spec: Any) -> Object:
        body = {
            "apiVersion": "fencekv.io/v1alpha1",
            "kind": "KVOperation",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"table": "orders", **spec},
        }
        return await self.kube.create(KV_OPERATIONS, "default", body)

    async def status(self, name: str = "op-1") -> Object:
        return dict((await self.kube.get(KV_OPERATIONS, "default", name)).get("status") or {})

    async def session_lease(self, order: Order | None = None) -> None:
        body = leases.new_session_lease(
            session=session("sample-0"),
            kvns="sample",
            namespace="default",
            valid_seconds=4,
            renewal=1,
            http="",
            peer="",
            unix_seconds=0,
        )
        if order is not None:
            body["metadata"]["annotations"][FAULT] = order.annotation()
        await self.kube.create(LEASES, "default", body)

    async def ordered(self) -> bool:
        lease = await self.kube.get(LEASES, "default", leases.session_lease_name("sample-0"))
        return FAULT in lease["metadata"]["annotations"]

    async def final(self, name: str = "op-1") -> Object:
        async with asyncio.timeout(20):
            while (await self.status(name)).get("phase") not in {"Succeeded", "Failed"}:
                await asyncio.sleep(0.005)
        return await self.status(name)


class _Loop:
    """Steady time of the event loop, and the wall clock that the test sets."""

    def __init__(self, hand: HandClock) -> None:
        self.hand = hand

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def unix(self) -> float:
        return self.hand.unix()

    def unix_ns(self) -> int:
        return self.hand.unix_ns()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("WARM_SECONDS", "AFTER_SECONDS", "PROBE_SECONDS"):
        monkeypatch.setattr(drill_module, name, 0.1)
    monkeypatch.setattr(drill_module, "PROBE_GAP_SECONDS", 0.02)
    for name in ("AGAIN_SECONDS", "LEAD_POLL_SECONDS", "SWITCH_AGAIN_SECONDS"):
        monkeypatch.setattr(operate, name, 0.01)
    return World()


@contextlib.asynccontextmanager
async def running(operations: Operations) -> AsyncIterator[Operations]:
    task = asyncio.ensure_future(operations.run())
    try:
        yield operations
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def fail_over(world: World) -> None:
    """Once the fault is ordered the owner is gone, and then there is another one."""
    async with asyncio.timeout(20):
        while not await world.ordered():
            await asyncio.sleep(0.005)
        world.down = True
        await asyncio.sleep(0.05)
        world.owner, world.epoch, world.down = "sample-1", 5, False
        world.up.set()


DRILL = {"type": "drill", "drill": {"fault": "freeze", "putsPerSecond": 500}}


@pytest.mark.parametrize(
    ("lies", "probe_says", "verdict", "lost", "stale"),
    [
        ("", (Outcome.REFUSED, None), "Passed", False, False),
        ("unsure", (Outcome.UNKNOWN, None), "Passed", False, False),
        ("loses", (Outcome.REFUSED, None), "Broken", True, False),
        ("", (Outcome.OK, (4, 100_000)), "Broken", True, True),
    ],
)
async def test_a_drill_tells_whether_the_promises_held_and_takes_its_order_back(
    world: World, lies: str, probe_says: Any, verdict: str, lost: bool, stale: bool
) -> None:
    await world.make_table()
    await world.session_lease()
    world.table.lies, world.probe_says = lies, probe_says
    async with running(world.operator()):
        made = await world.make(**DRILL)
        await fail_over(world)
        status = await world.final()
    result = status["result"]
    assert (result["verdict"], result["lost"] > 0, result["staleAcknowledged"] > 0) == (verdict, lost, stale), (
        status
    )
    assert status["phase"] == ("Succeeded" if verdict == "Passed" else "Failed")
    assert (result["epochBefore"], result["epochAfter"], result["owner"]) == (4, 5, "sample-1")
    assert 0.05 <= result["rtoSeconds"] < 5
    assert world.probes > 1
    assert not await world.ordered()
    kept = await world.kube.get(CONFIG_MAPS, "default", status["history"])
    assert kept["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    assert [one.warning for one in world.notices] == [False, verdict != "Passed"]


async def test_two_drills_of_a_namespace_do_not_run_at_once(world: World) -> None:
    await world.make_table()
    await world.session_lease()
    async with running(world.operator()):
        await world.make("op-1", **DRILL)
        await world.make("op-2", **DRILL)
        async with asyncio.timeout(20):
            while not await world.ordered():
                await asyncio.sleep(0.005)
        phases = {name: (await world.status(name)).get("phase") for name in ("op-1", "op-2")}
        assert sorted(phases.values()) == ["Pending", "Running"]
        [second] = [name for name, phase in phases.items() if phase == "Pending"]
        assert "is the drill that runs now" in (await world.status(second))["message"]


async def test_whoever_stops_leading_takes_the_order_back_and_the_next_one_ends_the_drill(world: World) -> None:
    await world.make_table()
    await world.session_lease()
    async with running(world.operator()):
        await world.make(**DRILL)
        async with asyncio.timeout(20):
            while not await world.ordered():
                await asyncio.sleep(0.005)
            world.leading = False
            while await world.ordered():
                await asyncio.sleep(0.005)
    assert (await world.status())["phase"] == "Running"
    world.leading = True
    async with running(world.operator("operator-1/b")):
        status = await world.final()
    assert (status["phase"], status["result"]["verdict"]) == ("Failed", "Aborted")


async def test_a_drill_that_an_operator_left_behind_is_aborted_and_its_order_taken_back(world: World) -> None:
    await world.make_table()
    left = Order(fault=drill_module.Fault.FREEZE, session=str(session("sample-0")), seconds=30)
    await world.session_lease(left)
    made = await world.make(**DRILL)
    status = {"phase": "Running", "step": "TakingOver", "runner": "operator-0/dead", "session": left.session}
    await world.kube.patch(
        KV_OPERATIONS, "default", made["metadata"]["name"], {"status": status}, subresource="status"
    )
    async with running(world.operator()):
        ended = await world.final()
    assert ended["result"]["verdict"] == "Aborted"
    assert "TakingOver" in ended["message"]
    assert not await world.ordered()


async def test_an_operation_that_another_operator_has_begun_is_not_begun_here(world: World) -> None:
    await world.make_table()
    await world.session_lease()
    await world.make(**DRILL)
    operator = world.operator()
    listing = await world.kube.list(KV_OPERATIONS, "default")
    operator._informer.seen(listing.items[0])
    other = {"status": {"phase": "Running", "runner": "operator-1/b"}}
    await world.kube.patch(KV_OPERATIONS, "default", "op-1", other, subresource="status")
    with pytest.raises(KubeConflict):
        await operator.process(("default", "op-1"))
    assert not operator._tasks


async def test_an_unhealthy_partition_is_waited_for_and_then_refused(world: World) -> None:
    await world.make_table()
    world.standbys = ("sample-1",)
    async with running(world.operator()):
        await world.make(**DRILL)
        async with asyncio.timeout(20):
            while (await world.status()).get("phase") != "Pending":
                await asyncio.sleep(0.005)
        world.clock.seconds += operate.HEALTHY_SECONDS_MAX + 1
        status = await world.final()
    assert (status["phase"], status["result"]["verdict"]) == ("Failed", "Refused")
    assert "1 standbys are in sync" in status["message"]
    assert not world.table.changes, "nothing was written"


async def test_a_switchover_moves_the_owner_once_and_makes_it_the_preferred_one(world: World) -> None:
    await world.make_table()
    async with running(world.operator()):
        await world.make(type="switchover", partition="orders-0", switchover={"to": "sample-2"})
        status = await world.final()
    assert status["result"] == {"epochBefore": 4, "epochAfter": 5, "owner": "sample-2", "verdict": "Moved"}
    assert (world.moves, world.preferred) == ([("orders-0", "sample-2")], ["sample-2"])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"type": "switchover", "partition": "orders-9"}, "NoSuchPartition"),
        ({"type": "verify", "table": "unknown"}, "NoSuchTable"),
        ({**DRILL, "table": "unknown"}, "NoSuchTable"),
    ],
)
async def test_what_does_not_exist_ends_the_operation_with_its_name(
    world: World, spec: Object, reason: str
) -> None:
    await world.make_table()
    async with running(world.operator()):
        await world.make(**spec)
        async with asyncio.timeout(20):
            while not (status := await world.status()).get("conditions"):
                world.clock.seconds += 5
                await asyncio.sleep(0.005)
    assert (status["phase"], status["conditions"][0]["reason"]) == ("Failed", reason)
    assert world.notices[-1].warning


async def test_what_has_ended_is_kept_for_its_time_and_then_deleted(world: World) -> None:
    await world.make_table()
    async with running(world.operator()) as operator:
        await world.make(type="switchover", partition="orders-0", ttlSecondsAfterFinished=60)
        await world.final()
        world.clock.seconds += 59
        await operator.process(("default", "op-1"))
        assert (await world.kube.list(KV_OPERATIONS, "default")).items
        world.clock.seconds += 2
        await operator.process(("default", "op-1"))
        assert not (await world.kube.list(KV_OPERATIONS, "default")).items


async def test_a_scheduled_drill_is_made_once_and_its_failure_is_kept_by_the_table(world: World) -> None:
    world.standbys = ()
    await world.make_table(
        drills=[{"schedule": "* * * * *", "fault": "kill"}, {"schedule": "9 9 9 99 *", "fault": "kill"}]
    )
    world.clock.seconds += 90
    async with running(world.operator()) as operator:
        async with asyncio.timeout(20):
            while not (items := (await world.kube.list(KV_OPERATIONS, "default")).items):
                await asyncio.sleep(0.005)
        await operator.schedule()
        [made] = items
        name = made["metadata"]["name"]
        world.clock.seconds += operate.HEALTHY_SECONDS_MAX + 1
        await world.final(name)
        async with asyncio.timeout(20):
            while not (results := await _results(world)):
                await asyncio.sleep(0.005)
    assert [(one["operation"], one["passed"], one["verdict"]) for one in results] == [(name, False, "Refused")]
    reasons = [one.reason for one in world.notices if one.about_kind == "KVTable" and one.warning]
    assert sorted(reasons) == ["BadSchedule", "DrillFailed"]


async def test_a_result_is_written_although_the_answer_of_the_first_attempt_was_lost(world: World) -> None:
    await world.make_table()
    await world.session_lease()
    lost: list[str] = []

    def after(method: str, path: str) -> None:
        if method == "PATCH" and path.endswith("/op-1/status") and world.epoch == 5 and len(lost) < 2:
            lost.append(path)
            raise Unclear("the connection broke")

    async with running(world.operator()):
        await world.make(**DRILL)
        await fail_over(world)
        world.kube.after = after
        status = await world.final()
    assert lost
    assert status["result"]["verdict"] == "Passed", status


async def _results(world: World) -> list[Object]:
    table = await world.kube.get(KV_TABLES, "default", "orders")
    return list((table.get("status") or {}).get("drills") or [])
