"""What a shard shows Prometheus: which series there are, what they count, and that no client adds any."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engines import B as STANDBY
from engines import bench, settle, turns
from engines import put as transaction
from prometheus_client.parser import text_string_to_metric_families
from storage import Holding
from trio import OPTIONS, Trio, free_ports, put, until

from fencekv.errors import NotOwner, Unknown
from fencekv.exposition import Histogram, Kind
from fencekv_shard.api import Durability, Options
from fencekv_shard.fence import Fence, Role
from fencekv_shard.meters import Gate, Meters, refusing_gate
from fencekv_shard.metrics import FAMILIES, Metrics

CONVENTION = {
    Kind.COUNTER: r"fencekv_[a-z_]+_total",
    Kind.HISTOGRAM: r"fencekv_[a-z_]+_(seconds|entries)",
    Kind.GAUGE: r"fencekv_[a-z_]+(?<!_total)",
}


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By sample name and labels, as Prometheus would read it."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def report(partitions: int) -> dict[str, Any]:
    replicas = [
        {"partition": f"orders-{n}", "role": "owner", "epoch": 3, "lastSeq": 9, "commitSeq": 8, "serving": True,
         "members": ["a/1", "b/2"], "overlayEntries": 2, "overlayBytes": 9, "openSeconds": 0.5,
         "replayedEntries": 1}
        for n in range(partitions)
    ]  # fmt: skip
    lateness = Histogram([0.5]).report()
    return {
        "renewal": 4, "validSeconds": 2.5, "diskFreeBytes": 2, "diskReserveBytes": 1,
        "renewalLateness": lateness, "meters": Meters().report(), "replicas": replicas,
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_convention_of_their_kind(family: Any) -> None:
    assert re.fullmatch(CONVENTION[family.kind], family.name)
    assert family.text.endswith(".")


def test_every_family_is_shown_and_no_other(meters: Meters) -> None:
    shown = Metrics()
    shown.count("put", "ok", 0.25)
    text = shown.render({**report(2), "meters": meters.report()}, ready=True)
    assert re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE) == [(f.name, str(f.kind)) for f in FAMILIES]
    seen = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name, _ in series(text)}
    assert seen == {family.name for family in FAMILIES}


@pytest.fixture(name="meters")
def make_meters() -> Meters:
    meters = Meters()
    meters.depths["held"] = lambda: 3
    return meters


def test_a_thousand_partitions_have_five_series_each() -> None:
    few, many = (len(series(Metrics().render(report(count), ready=True))) for count in (1, 1000))
    assert (many - few) / 999 == 5


def test_sums_are_kept_by_role_and_in_sync_is_told_by_owners_alone() -> None:
    told = report(3)
    told["replicas"][2].update(role="standby", overlayEntries=50)
    found = series(Metrics().render(told, ready=True))
    assert found["fencekv_partition_overlay_entries", frozenset({("role", "owner")})] == 4
    assert found["fencekv_partition_overlay_entries", frozenset({("role", "standby")})] == 50
    in_sync = {labels for name, labels in found if name == "fencekv_partition_in_sync"}
    assert {dict(labels)["partition"] for labels in in_sync} == {"orders-0", "orders-1"}


@pytest.mark.parametrize(
    ("role", "now", "client_epoch", "gate"),
    [
        (Role.STANDBY, 1.0, None, Gate.ROLE),
        (Role.STANDBY, 9.0, 7, Gate.ROLE),
        (Role.OWNER, 2.0, 7, Gate.DEADLINE),
        (Role.OWNER, 1.0, 7, Gate.CLIENT),
    ],
)
def test_a_refusal_is_counted_for_the_check_that_refused(
    role: Role, now: float, client_epoch: int | None, gate: Gate
) -> None:
    """The fence itself says in words which check it was."""
    words = {Gate.ROLE: "not the owner", Gate.DEADLINE: "deadline has passed", Gate.CLIENT: "newer owner exists"}
    with pytest.raises(NotOwner, match=words[gate]):
        Fence(role=role, epoch=4).admit(now=now, deadline=2.0, client_epoch=client_epoch)
    assert refusing_gate(role=role, now=now, deadline=2.0) is gate


# -- counted by real shards


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    three = Trio(tmp_path)
    await three.namespace()
    for pod, port in zip(("sample-0", "sample-1", "sample-2"), free_ports(4), strict=False):
        await three.start(pod, port=port)
    yield three
    await three.close()


def counts(trio: Trio, pod: str) -> Any:
    return trio.shards[pod].node.report()["meters"]


async def test_ownership_rounds_and_refusals_are_counted(trio: Trio) -> None:
    uid = await trio.partition()
    await trio.grant("sample-0", uid)
    owner = await trio.in_sync("sample-0", uid, 3)
    before = counts(trio, "sample-0")["roundEntries"]
    last = owner.replica.last.seq
    for number in range(40):
        await owner.submit(put(f"k{number}", b"1"), OPTIONS)
    after = counts(trio, "sample-0")
    assert after["roundEntries"]["sum"] - before["sum"] == owner.replica.last.seq - last == 40
    with pytest.raises(NotOwner):
        await owner.submit(put("a", b"2"), Options(epoch=9))
    standby = trio.held("sample-1", uid)
    assert standby is not None
    with pytest.raises(NotOwner):
        await standby.submit(put("a", b"2"), OPTIONS)
    assert counts(trio, "sample-0")["refusals"]["client"] == 1
    assert counts(trio, "sample-1")["refusals"]["role"] == 1
    assert await owner.move("sample-1")
    assert counts(trio, "sample-0")["changes"] == {
        "granted": 1, "opened": 1, "deposed": 0, "moving": 1, "moved": 1
    }  # fmt: skip
    assert counts(trio, "sample-0")["moveSeconds"]["count"] == 1
    assert counts(trio, "sample-0")["takeoverSeconds"]["count"] == 1
    await trio.grant("sample-1", uid)
    await trio.owner("sample-1", uid)
    assert 0 < counts(trio, "sample-1")["roundEntries"]["sum"] < 10, "a copied entry is no round"


async def test_a_standby_counts_the_owners_that_it_refuses_for_its_promise(trio: Trio) -> None:
    uid = await trio.partition()
    await trio.grant("sample-0", uid)
    owner = await trio.in_sync("sample-0", uid, 3)
    standby = trio.held("sample-2", uid)
    assert standby is not None
    await standby.replica.promise(7)
    waiter = trio.shards["sample-0"].node._spawn(_submit(owner))
    await until(lambda: counts(trio, "sample-2")["refusals"]["standby"] > 0)
    waiter.cancel()


async def _submit(owner: Any) -> None:
    await owner.submit(put("a", b"1"), OPTIONS)


async def test_what_waits_for_a_round_and_for_standbys_is_shown_at_a_scrape(trio: Trio) -> None:
    uid = await trio.partition()
    await trio.grant("sample-0", uid)
    await trio.in_sync("sample-0", uid, 3)
    assert counts(trio, "sample-0")["depths"] == {"held": 0, "round": 0, "standbys": 0}
    owner = await trio.owner("sample-0", uid)
    owner.owned.engine.count(["sample-9/nobody"])  # counted, and never heard of
    waiting = [trio.shards["sample-0"].node._spawn(_submit(owner)) for _ in range(3)]
    await asyncio.sleep(0)
    assert counts(trio, "sample-0")["depths"]["round"] == 3
    await until(lambda: counts(trio, "sample-0")["depths"]["standbys"] == 3)
    assert counts(trio, "sample-0")["depths"]["round"] == 0
    for task in waiting:
        task.cancel()


# -- counted by an engine, with the clock in the test's hands


async def test_a_rounds_time_goes_from_its_first_request_to_its_commit(tmp_path: Path) -> None:
    disk = Holding()
    world = await bench(tmp_path, executor=disk)
    await world.opened(STANDBY)
    before = world.meters.round_seconds.report()
    disk.hold()
    first = world.submit(transaction("a"))
    await disk.held.wait()
    world.clock.seconds += 1.0  # while it is fsynced
    second = world.submit(transaction("b"))  # the next round, which is confirmed together with the first
    disk.release()
    await settle(lambda: world.engine.waiting_for_standbys == 2)
    world.clock.seconds += 0.5  # while both wait for the standby
    assert world.meters.round_seconds.report() == before
    world.confirm(STANDBY)
    await asyncio.gather(first, second)
    after = world.meters.round_seconds.report()
    assert after["count"] - before["count"] == 2
    assert after["sum"] - before["sum"] == pytest.approx(1.5 + 0.5)


async def test_a_round_that_waits_for_clients_that_were_just_answered_says_for_how_long(tmp_path: Path) -> None:
    world = await bench(tmp_path, durability=Durability.STANDARD, replicas=("sample-0",))
    await world.opened()
    assert world.meters.gather_seconds.count == 0
    await asyncio.gather(world.submit(transaction("a")), world.submit(transaction("b")))
    await world.submit(transaction("c"))  # two were answered: one more might come
    assert world.meters.gather_seconds.count == 1


async def test_refusals_at_the_deadline_are_told_apart_by_what_was_written(tmp_path: Path) -> None:
    world = await bench(tmp_path)
    await world.opened(STANDBY)
    written = [world.submit(transaction("a")), world.submit(transaction("b"))]
    await turns()
    world.clock.seconds = world.session.deadline
    world.confirm(STANDBY)  # of use to nobody any more
    waiting = [world.submit(transaction("c"))]
    outcomes = await asyncio.gather(*written, *waiting, return_exceptions=True)
    assert [type(one) for one in outcomes] == [Unknown, Unknown, NotOwner]
    assert world.meters.refusals == {Gate.FSYNCED: 2, Gate.DEADLINE: 1}


async def test_what_a_passed_deadline_ends_counts_once(tmp_path: Path) -> None:
    world = await bench(tmp_path)
    await world.opened(STANDBY)
    written = world.submit(transaction("a"))
    await turns()
    world.clock.seconds = world.session.deadline
    for _ in range(3):
        world.engine.expire()
    with pytest.raises(Unknown):
        await written
    assert world.meters.refusals == {Gate.FSYNCED: 1, Gate.DEADLINE: 0}


async def test_a_deadline_that_passes_during_the_fsync_refuses_what_was_written(tmp_path: Path) -> None:
    disk = Holding()
    world = await bench(tmp_path, executor=disk, durability=Durability.STANDARD, replicas=("sample-0",))
    await world.opened()
    disk.hold()
    answer = world.submit(transaction("k"))
    await disk.held.wait()
    world.clock.seconds = world.session.deadline
    disk.release()
    with pytest.raises(Unknown):
        await answer
    assert world.meters.refusals == {Gate.FSYNCED: 1}
