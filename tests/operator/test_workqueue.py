"""The work queue, the cache and the Events' recorder."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from memory_kube import HandClock, MemoryKube

from fencekv.kube import EVENTS, KV_PARTITIONS, PODS, KubeBusy
from fencekv_operator.cache import Cache
from fencekv_operator.events import BACKLOG_PAUSE_SECONDS, QUEUE_MAX, Recorder, notice
from fencekv_operator.probes import Health, application, recent
from fencekv_operator.workqueue import BACKOFF_SECONDS_MAX, WorkQueue

Object = dict[str, Any]


@pytest.fixture
async def queue() -> WorkQueue[str]:
    return WorkQueue(chance=random.Random(1))


async def test_a_key_waits_once_however_often_it_is_added(queue: WorkQueue[str]) -> None:
    for _ in range(3):
        queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_a_change_during_the_work_is_not_missed(queue: WorkQueue[str]) -> None:
    queue.add("a")
    await queue.get()
    queue.add("a")
    assert len(queue) == 0, "nobody else gets it meanwhile"
    queue.done("a")
    assert await queue.get() == "a"


async def test_the_earlier_of_two_delays_holds(queue: WorkQueue[str]) -> None:
    queue.add("a", delay_seconds=60)
    queue.add("a", delay_seconds=0.01)
    queue.add("a", delay_seconds=60)
    async with asyncio.timeout(5):
        assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_a_failed_key_comes_back_and_a_change_brings_it_back_at_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    for count in range(2000):
        key = await queue.get()
        queue.failed(key)
        assert queue.failures("a") == count + 1
        delay = queue._timers["a"].when() - asyncio.get_running_loop().time()
        assert delay <= BACKOFF_SECONDS_MAX
        queue.add("a")
    assert delay > BACKOFF_SECONDS_MAX / 2 - 1
    await queue.get()
    queue.done("a")
    assert queue.failures("a") == 0
    queue.close()


def obj(name: str, version: int, *, uid: str = "u", kvns: str = "sample", **more: Any) -> Object:
    meta = {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(version), **more}
    return {"metadata": {**meta, "labels": {"fencekv.io/namespace": kvns}}}


def test_the_same_version_is_no_news() -> None:
    cache = Cache()
    assert cache.put(KV_PARTITIONS, obj("a", 1))
    assert not cache.put(KV_PARTITIONS, obj("a", 1))
    assert cache.put(KV_PARTITIONS, obj("a", 2))


def test_a_list_does_not_undo_what_came_after_it_began() -> None:
    cache = Cache()
    cache.put(KV_PARTITIONS, obj("old", 1))
    cache.put(KV_PARTITIONS, obj("deleted", 2))
    began = cache.tick
    cache.put(KV_PARTITIONS, obj("changed", 9))
    cache.drop(KV_PARTITIONS, "default", "deleted")
    listed = [obj("changed", 3), obj("deleted", 2)]
    news = cache.relisted(KV_PARTITIONS, listed, since=began, namespace=None)
    assert [each["metadata"]["name"] for each in news] == ["old"]
    assert [each["metadata"]["resourceVersion"] for each in cache.all(KV_PARTITIONS)] == ["9"]
    later = cache.relisted(KV_PARTITIONS, [], since=cache.tick, namespace=None)
    assert [each["metadata"]["name"] for each in later] == ["changed"]


def test_a_list_of_one_namespace_says_nothing_of_others() -> None:
    cache = Cache()
    cache.put(KV_PARTITIONS, obj("a", 1))
    assert cache.relisted(KV_PARTITIONS, [], since=cache.tick, namespace="elsewhere") == []
    assert len(cache.all(KV_PARTITIONS)) == 1


def test_a_late_deletion_of_an_earlier_incarnation_removes_nothing() -> None:
    cache = Cache()
    cache.put(KV_PARTITIONS, obj("a", 5, uid="new"))
    assert cache.drop(KV_PARTITIONS, "default", "a", uid="old") is None
    assert cache.get(KV_PARTITIONS, "default", "a") is not None


def test_objects_are_found_by_their_kvnamespace_also_after_a_change() -> None:
    cache = Cache()
    cache.put(KV_PARTITIONS, obj("b", 1))
    cache.put(KV_PARTITIONS, obj("a", 2))
    assert [each["metadata"]["name"] for each in cache.of_kvns(KV_PARTITIONS, "default", "sample")] == ["a", "b"]
    cache.put(KV_PARTITIONS, obj("a", 3, kvns="other"))
    assert [each["metadata"]["name"] for each in cache.of_kvns(KV_PARTITIONS, "default", "sample")] == ["b"]
    cache.drop(KV_PARTITIONS, "default", "b")
    assert cache.of_kvns(KV_PARTITIONS, "default", "sample") == []


def test_of_a_pod_only_what_is_read_is_kept() -> None:
    cache = Cache()
    pod = obj("sample-0", 1, managedFields=[{"manager": "x"}])
    cache.put(PODS, {**pod, "spec": {"nodeName": "n", "containers": [{}]}, "status": {"phase": "Running"}})
    kept = cache.get(PODS, "default", "sample-0")
    assert kept is not None
    assert kept["spec"] == {"nodeName": "n"}
    assert "managedFields" not in kept["metadata"]


ABOUT = {
    "apiVersion": "fencekv.io/v1alpha1",
    "kind": "KVTable",
    "metadata": {"name": "orders", "namespace": "default", "uid": "u"},
}


async def posted(kube: MemoryKube, recorder: Recorder, *, count: int, want: int) -> list[Object]:
    for _ in range(count):
        recorder.post(notice(ABOUT, warning=True, reason="Stalled", message="no room"))
    running = asyncio.create_task(recorder.run())
    try:
        async with asyncio.timeout(5):
            while True:
                events = (await kube.list(EVENTS, "default")).items
                if events and events[0]["count"] >= want:
                    return events
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_repeated_events_count_up_also_over_a_restart() -> None:
    kube = MemoryKube()
    (event,) = await posted(kube, Recorder(kube=kube, clock=HandClock(), reporter="one"), count=3, want=3)
    assert (event["reason"], event["count"]) == ("Stalled", 3)
    (event,) = await posted(kube, Recorder(kube=kube, clock=HandClock(), reporter="two"), count=2, want=4)
    assert event["count"] >= 4


async def test_events_of_a_backlog_leave_the_api_server_to_what_they_tell_of() -> None:
    kube = MemoryKube()
    recorder = Recorder(kube=kube, clock=HandClock(), reporter="one")
    for number in range(3):
        recorder.post(notice(ABOUT, warning=False, reason="Ready", message=str(number)))
    loop, times = asyncio.get_running_loop(), list[float]()
    kube.before = lambda _method, _path: times.append(loop.time())
    running = asyncio.create_task(recorder.run())
    try:
        async with asyncio.timeout(5):
            while len(times) < 3:
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert times[2] - times[0] >= 2 * BACKLOG_PAUSE_SECONDS * 0.9


async def test_too_many_events_are_dropped_and_counted_and_an_api_server_away_stops_nothing() -> None:
    kube = MemoryKube()
    recorder = Recorder(kube=kube, clock=HandClock(), reporter="one")
    for number in range(QUEUE_MAX + 5):
        recorder.post(notice(ABOUT, warning=True, reason="Stalled", message=str(number)))
    assert recorder.dropped == 5

    def away(method: str, path: str) -> None:
        raise KubeBusy(429, "TooManyRequests", "later")

    kube.before = away
    running = asyncio.create_task(recorder.run())
    try:
        async with asyncio.timeout(5):
            while recorder.dropped < QUEUE_MAX + 5:
                await asyncio.sleep(0)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


def test_health_is_a_recent_turn_of_the_loop() -> None:
    clock = HandClock()
    assert recent(clock, 999.0, started_at=0.0)
    assert not recent(clock, 990.0, started_at=0.0)
    assert recent(clock, 0.0, started_at=998.0), "it has only just begun"


async def test_probes_tell_a_stuck_loop_from_an_api_server_that_is_away() -> None:
    from aiohttp.test_utils import TestClient, TestServer

    clock = HandClock()
    ticked = read = clock.now()
    health = Health(ticked_at=lambda: ticked, quorum_read_at=lambda: read, metrics=lambda: b"")
    async with TestClient(TestServer(application(health, clock))) as client:
        assert [(await client.get(path)).status for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
        clock.seconds += 60
        ticked = clock.now()
        assert [(await client.get(path)).status for path in ("/livez", "/readyz")] == [200, 503]
        clock.seconds += 60
        assert (await client.get("/livez")).status == 500


async def test_events_wait_until_it_is_calm() -> None:
    kube, calm = MemoryKube(), asyncio.Event()

    async def wait() -> None:
        await calm.wait()

    recorder = Recorder(kube=kube, clock=HandClock(), reporter="one", calm=wait)
    recorder.post(notice(ABOUT, warning=True, reason="OwnerChanged", message="1"))
    running = asyncio.create_task(recorder.run())
    try:
        for _ in range(50):
            await asyncio.sleep(0)
        assert not kube.writes
        calm.set()
        async with asyncio.timeout(5):
            while not kube.writes:
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.wait([running])
