"""The embedded API server itself: memory, log, watches, garbage, faults, and its HTTP front."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from apiservers import Api, embedded_api
from conformance.samples import MERGE, config_map, create, lease, leases, maps, pod, pods

from fencekv_sandbox.apiserver import ApiServer, Request, Response, serve
from fencekv_sandbox.apiserver.errors import ApiError
from fencekv_sandbox.apiserver.faults import BadFault, Faults, Rule, rule_from
from fencekv_sandbox.apiserver.log import FileLog

Object = dict[str, Any]
DEFAULT = "default"


class World:
    """An API server in memory under a clock that stands still."""

    def __init__(self, log: FileLog | None = None) -> None:
        self.moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        numbers = itertools.count(1)
        self.api = ApiServer(now=lambda: self.moment, new_uid=lambda: f"{next(numbers):032x}", log=log)

    def ask(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Response:
        headers = {} if body is None else {"Content-Type": content}
        return self.api.handle(Request.make(method, path, body=body, headers=headers))

    def make(self, path: str, body: Object) -> Object:
        response = self.ask("POST", path, body)
        assert response.status == 201, response.body
        document: Object = response.json()
        return document

    def there(self, path: str) -> bool:
        return self.ask("GET", path).status == 200


@pytest.fixture
def world() -> World:
    return World()


# The log


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Any]:
    opened: list[FileLog] = []

    def open_log() -> FileLog:
        for log in opened:
            log.close()
        opened[:] = [FileLog(tmp_path / "objects.jsonl")]
        return opened[0]

    yield open_log
    for log in opened:
        log.close()


def test_objects_and_versions_survive_a_restart(logs: Any) -> None:
    first = World(logs())
    kept = first.make(leases(DEFAULT), lease("a"))
    first.make(leases(DEFAULT), lease("b"))
    assert first.ask("DELETE", leases(DEFAULT, "b")).status == 200
    version = first.api.core.store.version

    second = World(logs())
    assert second.ask("GET", leases(DEFAULT, "a")).json() == kept
    assert not second.there(leases(DEFAULT, "b"))
    assert second.api.core.store.version == version
    assert int(second.make(leases(DEFAULT), lease("c"))["metadata"]["resourceVersion"]) == version + 1


def test_the_version_never_goes_back_even_if_the_last_object_is_deleted(logs: Any) -> None:
    first = World(logs())
    first.make(leases(DEFAULT), lease())
    first.ask("DELETE", leases(DEFAULT, "a"))
    version = first.api.core.store.version
    for _ in range(3):  # Each start compacts.
        assert World(logs()).api.core.store.version == version


def test_a_torn_last_line_is_dropped_and_the_rest_kept(logs: Any, tmp_path: Path) -> None:
    first = World(logs())
    first.make(leases(DEFAULT), lease())
    path = tmp_path / "objects.jsonl"
    with path.open("ab") as file:
        file.write(b'[99,"leases.coordination.k8s.io","default","to')

    second = World(logs())
    assert second.there(leases(DEFAULT, "a"))
    second.make(leases(DEFAULT), lease("b"))
    assert World(logs()).there(leases(DEFAULT, "b"))


def test_a_damaged_line_is_an_error_not_a_loss(logs: Any, tmp_path: Path) -> None:
    World(logs()).make(leases(DEFAULT), lease())
    path = tmp_path / "objects.jsonl"
    path.write_bytes(b"{nonsense\n" + path.read_bytes())
    with pytest.raises(OSError, match="line 1 is damaged"):
        World(logs())


def test_definitions_are_served_again_after_a_restart(logs: Any) -> None:
    from conformance.samples import WIDGETS, widget, widgets

    first = World(logs())
    first.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", WIDGETS)
    first.make(widgets(DEFAULT), widget())
    second = World(logs())
    assert second.there(widgets(DEFAULT, "a"))
    assert second.ask("POST", widgets(DEFAULT), widget("b", size=0)).status == 422


def test_a_watch_from_before_a_restart_is_expired(logs: Any) -> None:
    first = World(logs())
    version = first.make(leases(DEFAULT), lease())["metadata"]["resourceVersion"]
    first.make(leases(DEFAULT), lease("b"))
    request = Request.make("GET", f"{leases(DEFAULT)}?watch=1&resourceVersion={version}")
    watcher = World(logs()).api.watch(request)
    (event,) = watcher.poll()
    assert json.loads(event)["object"]["code"] == 410
    assert watcher.closed


def test_a_log_is_open_in_one_process_at_a_time(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "objects.jsonl")
    with pytest.raises(OSError, match="in use by another API server"):
        FileLog(tmp_path / "objects.jsonl")
    log.close()
    FileLog(tmp_path / "objects.jsonl").close()


class Dies(Exception):
    """The process ends here."""


class DyingLog(FileLog):
    """Takes a number of commits, then none."""

    left = 1_000_000

    def append(self, *arguments: Any) -> None:
        if self.left == 0:
            raise Dies
        self.left -= 1
        super().append(*arguments)


@pytest.mark.parametrize("commits", range(6))
def test_a_cascade_that_was_interrupted_is_finished_after_the_restart(tmp_path: Path, commits: int) -> None:
    log = DyingLog(tmp_path / "objects.jsonl")
    first = World(log)
    first.make("/api/v1/namespaces", {"metadata": {"name": "room"}})
    owner = first.make(maps(DEFAULT), config_map("owner"))
    for name in ("one", "two"):
        first.make(maps(DEFAULT), owned(name, owner))
        first.make(leases("room"), lease(name))
    log.left = commits
    for path in (maps(DEFAULT, "owner"), "/api/v1/namespaces/room"):
        with contextlib.suppress(Dies):
            first.ask("DELETE", path)
    log.close()

    log = DyingLog(tmp_path / "objects.jsonl")
    second = World(log)
    gone = not second.there(maps(DEFAULT, "owner"))
    assert gone is (commits > 0)
    assert [second.there(maps(DEFAULT, name)) for name in ("one", "two")] == [not gone, not gone]
    if second.there("/api/v1/namespaces/room"):
        assert all(second.there(leases("room", name)) for name in ("one", "two"))
    else:
        assert not any(second.there(leases("room", name)) for name in ("one", "two"))
    log.close()


# Watches without a front


def open_watch(world: World, query: str = "") -> Any:
    return world.api.watch(Request.make("GET", f"{maps(DEFAULT)}?watch=1{query}"))


def shown(watcher: Any) -> list[tuple[str, str]]:
    events = [json.loads(event) for event in watcher.poll()]
    return [(one["type"], one["object"]["metadata"].get("name", "")) for one in events]


def test_a_watcher_is_woken_and_polled(world: World) -> None:
    watcher = open_watch(world)
    woken: list[int] = []
    watcher.wake = lambda: woken.append(1)
    world.make(maps(DEFAULT), config_map("a"))
    assert woken
    assert shown(watcher) == [("ADDED", "a")]
    assert shown(watcher) == []
    watcher.close()
    world.make(maps(DEFAULT), config_map("b"))
    assert shown(watcher) == []


def test_a_bookmark_carries_the_version_alone(world: World) -> None:
    watcher = open_watch(world, "&allowWatchBookmarks=true")
    world.make(maps(DEFAULT), config_map("a"))
    watcher.poll()
    watcher.add_bookmark()
    (event,) = (json.loads(one) for one in watcher.poll())
    assert event["type"] == "BOOKMARK"
    assert event["object"]["metadata"]["resourceVersion"] == str(world.api.core.store.version)
    silent = open_watch(world)
    silent.poll()
    silent.add_bookmark()
    assert silent.poll() == []


def test_a_reader_that_stopped_reading_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fencekv_sandbox.apiserver.watch.EVENTS_WAITING_MAX", 5)
    watcher = open_watch(world)
    for number in range(7):
        world.make(maps(DEFAULT), config_map(f"m{number}"))
    assert watcher.closed
    assert watcher.poll() == []


def test_the_history_of_watches_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.api.core.store
    start = store.version
    monkeypatch.setattr(store, "_events_max", 3)
    for number in range(5):
        world.make(maps(DEFAULT), config_map(f"m{number}"))
    assert store.oldest_version == store.version - 3
    (expired,) = (json.loads(one) for one in open_watch(world, f"&resourceVersion={start}").poll())
    assert expired["object"]["reason"] == "Expired"
    recent = open_watch(world, f"&resourceVersion={store.oldest_version}")
    assert shown(recent) == [("ADDED", "m2"), ("ADDED", "m3"), ("ADDED", "m4")]


def test_a_watch_of_nothing_is_refused(world: World) -> None:
    with pytest.raises(ApiError) as refused:
        world.api.watch(Request.make("GET", "/apis/nothing/v1/things?watch=1"))
    assert refused.value.code == 404


def test_ages_follow_the_clock(world: World) -> None:
    world.make(maps(DEFAULT), config_map())
    world.moment += timedelta(minutes=3, seconds=10)
    request = Request.make(
        "GET", maps(DEFAULT), headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    )
    assert world.api.handle(request).json()["rows"][0]["cells"] == ["a", 0, "3m10s"]


# Garbage


def owned(name: str, *owners: Object, block: bool = False) -> Object:
    body = config_map(name)
    body["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for owner in owners
    ]
    return body


def test_dependents_follow_their_last_owner(world: World) -> None:
    first = world.make(maps(DEFAULT), config_map("first"))
    second = world.make(maps(DEFAULT), config_map("second"))
    child = world.make(maps(DEFAULT), owned("child", first, second))
    world.make(maps(DEFAULT), owned("grandchild", child))
    world.ask("DELETE", maps(DEFAULT, "first"))
    (left,) = world.ask("GET", maps(DEFAULT, "child")).json()["metadata"]["ownerReferences"]
    assert left["name"] == "second"
    world.ask("DELETE", maps(DEFAULT, "second"))
    assert not world.there(maps(DEFAULT, "child"))
    assert not world.there(maps(DEFAULT, "grandchild"))


def test_a_dependent_of_an_owner_that_is_gone_goes_too(world: World) -> None:
    owner = world.make(maps(DEFAULT), config_map("owner"))
    world.ask("DELETE", maps(DEFAULT, "owner"))
    world.make(maps(DEFAULT), owned("late", owner))
    assert not world.there(maps(DEFAULT, "late"))


def test_a_recreated_owner_is_another_owner(world: World) -> None:
    owner = world.make(maps(DEFAULT), config_map("owner"))
    world.make(maps(DEFAULT), owned("child", owner))
    world.ask("DELETE", maps(DEFAULT, "owner"))
    world.make(maps(DEFAULT), config_map("owner"))
    assert not world.there(maps(DEFAULT, "child"))


def test_foreground_deletion_waits_for_what_blocks(world: World) -> None:
    owner = world.make(maps(DEFAULT), config_map("owner"))
    child = owned("child", owner, block=True)
    child["metadata"]["finalizers"] = ["fencekv.io/test"]
    world.make(maps(DEFAULT), child)
    world.ask("DELETE", maps(DEFAULT, "owner"), {"propagationPolicy": "Foreground"})
    assert world.there(maps(DEFAULT, "owner"))
    world.ask("PATCH", maps(DEFAULT, "child"), {"metadata": {"finalizers": None}}, MERGE)
    assert not world.there(maps(DEFAULT, "child"))
    assert not world.there(maps(DEFAULT, "owner"))


def test_a_namespace_goes_when_its_last_object_has_gone(world: World) -> None:
    world.make("/api/v1/namespaces", {"metadata": {"name": "room"}})
    held = config_map("held")
    held["metadata"]["finalizers"] = ["fencekv.io/test"]
    world.make(maps("room"), held)
    world.make(leases("room"), lease())
    world.make(pods("room"), pod())
    world.ask("DELETE", "/api/v1/namespaces/room")
    assert not world.there(leases("room", "a"))
    assert not world.there(pods("room", "a"))
    assert world.there("/api/v1/namespaces/room")
    world.ask("PATCH", maps("room", "held"), {"metadata": {"finalizers": None}}, MERGE)
    assert not world.there("/api/v1/namespaces/room")


def test_events_end_after_an_hour(world: World) -> None:
    def event(number: int) -> Object:
        about = {"kind": "Pod", "name": "a", "namespace": DEFAULT}
        return {"metadata": {"name": f"e{number}"}, "involvedObject": about, "reason": "R"}

    path = f"/api/v1/namespaces/{DEFAULT}/events"
    world.make(path, event(0))
    world.moment += timedelta(minutes=61)
    for number in range(1, 65):
        world.make(path, event(number))
    names = {one["metadata"]["name"] for one in world.ask("GET", path).json()["items"]}
    assert names == {f"e{number}" for number in range(1, 65)}


# Protobuf bodies

PROTOBUF = "application/vnd.kubernetes.protobuf"
ENVELOPE = b"k8s\x00" + b"\x0a\x0f" + b"\x0a\x02v1" + b"\x12\x09ConfigMap"
MAP = b"\x0a\x03\x0a\x01m" + b"\x12\x06\x0a\x01a\x12\x01b"


def test_a_protobuf_body_is_read(world: World) -> None:
    response = world.ask("POST", maps(DEFAULT), ENVELOPE + b"\x12\x0d" + MAP, PROTOBUF)
    assert response.status == 201, response.body
    assert response.json()["data"] == {"a": "b"}
    assert response.json()["metadata"]["name"] == "m"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"k8s\x00\xff", 400),
        (ENVELOPE + b"\x12\x7f" + MAP, 400),
        (ENVELOPE + b"\x12\x02\x0d\x00", 400),
        (b"k8s\x00" + b"\x0a\x09" + b"\x0a\x02v1" + b"\x12\x03Pod", 415),
    ],
)
def test_a_protobuf_body_that_is_not_understood_is_refused(world: World, body: bytes, status: int) -> None:
    assert world.ask("POST", maps(DEFAULT), body, PROTOBUF).status == status


# Rules of faults


def test_a_fault_names_what_is_wrong_with_it() -> None:
    for document, word in (
        ({"kind": "explode"}, "kind"),
        ({"kind": "delay", "secs": 1}, "secs"),
        ({"kind": "delay", "seconds": -1}, "seconds"),
        ({"kind": "delay", "verbs": ["look"]}, "look"),
        ({"kind": "freeze", "percentage": 101}, "percentage"),
        ({"kind": "freeze", "name": 7}, "name"),
    ):
        with pytest.raises(BadFault, match=word):
            rule_from(document)


def test_faults_strike_by_chance_and_by_count() -> None:
    from fencekv_sandbox.apiserver.faults import Asked

    asked = Asked(verb="update", resource="leases", name="session-a-0")

    def struck(seed: int) -> list[bool]:
        faults = Faults(chance=random.Random(seed))
        faults.add(Rule(kind="unavailable", percentage=30))
        return [faults.decide(asked).error is not None for _ in range(200)]

    assert struck(1) == struck(1)
    assert 30 <= sum(struck(1)) <= 90
    faults = Faults(chance=random.Random(1))
    faults.add(Rule(kind="conflict", resource="leases", name="session-*", verbs=("update",), count=2))
    assert faults.decide(Asked(verb="get", resource="leases", name="session-a-0")).error is None
    assert faults.decide(Asked(verb="update", resource="leases", name="partition-x")).error is None
    assert [faults.decide(asked).error for _ in range(3)] == ["conflict", "conflict", None]
    assert faults.rules() == []


# Faults through the front


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with embedded_api(tmp_path) as api:
        yield api


async def add_fault(api: Api, **fault: Any) -> str:
    reply = await api.ask("POST", "/_sandbox/faults", fault)
    assert reply.status == 201, reply
    return str(reply.body["id"])


async def test_a_frozen_request_is_carried_out_after_the_thaw(api: Api) -> None:
    fault = await add_fault(api, kind="freeze", resource="leases", verbs=["create"])
    frozen = asyncio.create_task(api.ask("POST", leases(DEFAULT), lease()))
    assert (await api.ask("GET", leases(DEFAULT))).body["items"] == []
    assert (await api.ask("POST", maps(DEFAULT), config_map())).status == 201
    assert not frozen.done()
    assert (await api.ask("DELETE", f"/_sandbox/faults/{fault}")).status == 200
    assert (await frozen).status == 201


async def test_an_open_watch_is_silent_while_it_is_frozen(api: Api) -> None:
    async with api.session.get(leases(DEFAULT), params={"watch": "1"}) as stream:
        fault = await add_fault(api, kind="freeze", resource="leases", verbs=["watch"])
        await create(api, leases(DEFAULT), lease())
        reading = asyncio.create_task(stream.content.readline())
        await asyncio.wait([reading], timeout=0.2)
        assert not reading.done()
        await api.ask("DELETE", f"/_sandbox/faults/{fault}")
        assert b'"ADDED"' in await reading


async def test_a_delay_takes_its_time(api: Api) -> None:
    await add_fault(api, kind="delay", seconds=0.2, count=1)
    start = asyncio.get_running_loop().time()
    assert (await api.ask("GET", leases(DEFAULT))).status == 200
    assert asyncio.get_running_loop().time() - start >= 0.2


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ({"kind": "conflict"}, 409, "Conflict"),
        ({"kind": "too_many", "seconds": 3}, 429, "TooManyRequests"),
        ({"kind": "unavailable"}, 503, "ServiceUnavailable"),
        ({"kind": "gone"}, 410, "Expired"),
    ],
    ids=lambda one: one["kind"] if isinstance(one, dict) else str(one),
)
async def test_an_error_is_answered_instead(api: Api, fault: Object, status: int, reason: str) -> None:
    made = (await create(api, leases(DEFAULT), lease())).body
    await add_fault(api, **fault, verbs=["update"], resource="leases", count=1)
    made["spec"]["holderIdentity"] = "you"
    reply = await api.ask("PUT", leases(DEFAULT, "a"), made)
    assert (reply.status, reply.reason) == (status, reason)
    assert reply.body["code"] == status
    if status == 429:
        assert reply.headers["Retry-After"] == "3"
    assert (await api.ask("GET", leases(DEFAULT, "a"))).body["spec"]["holderIdentity"] == "me"
    assert (await api.ask("PUT", leases(DEFAULT, "a"), made)).status == 200


async def test_a_lost_reply_was_committed(api: Api) -> None:
    await add_fault(api, kind="lost_reply", verbs=["create"], count=1)
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await api.ask("POST", leases(DEFAULT), lease())
    assert (await api.ask("GET", leases(DEFAULT, "a"))).status == 200
    assert (await api.ask("POST", leases(DEFAULT), lease())).reason == "AlreadyExists"


async def test_a_stale_list_shows_the_past_and_a_quorum_read_does_not(api: Api) -> None:
    await create(api, leases(DEFAULT), lease("a"))
    await add_fault(api, kind="stale_list", resource="leases")
    await create(api, leases(DEFAULT), lease("b"))
    await api.ask("DELETE", leases(DEFAULT, "a"))
    stale = (await api.ask("GET", leases(DEFAULT))).body
    assert [one["metadata"]["name"] for one in stale["items"]] == ["a"]
    assert (await api.ask("GET", leases(DEFAULT, "a"), resourceVersion="0")).status == 200
    assert (await api.ask("GET", leases(DEFAULT, "b"), resourceVersion="0")).status == 404
    assert (await api.ask("GET", leases(DEFAULT, "a"))).status == 404
    assert (await api.ask("GET", leases(DEFAULT, "b"))).status == 200
    await api.ask("DELETE", "/_sandbox/faults")
    fresh = (await api.ask("GET", leases(DEFAULT))).body
    assert [one["metadata"]["name"] for one in fresh["items"]] == ["b"]


async def test_a_watch_is_cut_in_the_middle(api: Api) -> None:
    async with api.session.get(leases(DEFAULT), params={"watch": "1"}) as stream:
        await create(api, leases(DEFAULT), lease())
        assert b'"ADDED"' in await stream.content.readline()
        await add_fault(api, kind="cut_watch", resource="leases")
        with pytest.raises(aiohttp.ClientError):
            await stream.content.readline()
    assert (await api.ask("GET", "/_sandbox/faults")).body == {"faults": []}


async def test_a_watch_is_told_that_history_is_gone(api: Api) -> None:
    await add_fault(api, kind="gone", verbs=["watch"], count=1)
    async with api.session.get(leases(DEFAULT), params={"watch": "1"}) as stream:
        text = await stream.text()
    assert json.loads(text)["code"] == 410


async def test_a_fault_can_be_for_one_user_agent(api: Api) -> None:
    await add_fault(api, kind="unavailable", user_agent="fencekv-shard*")
    headers = {"User-Agent": "fencekv-shard/1"}
    async with api.session.get(leases(DEFAULT), headers=headers) as refused:
        assert refused.status == 503
    assert (await api.ask("GET", leases(DEFAULT))).status == 200


async def test_a_wrong_fault_is_explained(api: Api) -> None:
    reply = await api.ask("POST", "/_sandbox/faults", {"kind": "explode"})
    assert reply.status == 400
    assert "kind must be one of freeze" in reply.body["error"]
    assert (await api.ask("DELETE", "/_sandbox/faults/none")).status == 404


async def test_stopping_frees_frozen_requests_and_ends_watches() -> None:
    async with aiohttp.ClientSession() as session:
        async with serve() as server:
            server.faults.add(Rule(kind="freeze", verbs=("get",)))
            frozen = asyncio.create_task(session.get(f"{server.url}{leases(DEFAULT, 'a')}"))
            stream = await session.get(f"{server.url}{leases(DEFAULT)}?watch=1")
            await asyncio.sleep(0.05)
        assert await stream.content.read() == b""
        assert (await frozen).status == 404


# The rest of the front


async def test_a_server_with_tokens_refuses_unknown_ones(tmp_path: Path) -> None:
    async with serve(tokens={"secret": "alice"}) as server, aiohttp.ClientSession(server.url) as session:
        async with session.get(leases(DEFAULT)) as reply:
            assert (reply.status, (await reply.json())["reason"]) == (401, "Unauthorized")
        async with session.get("/readyz") as reply:
            assert reply.status == 200
        async with session.get(leases(DEFAULT), headers={"Authorization": "Bearer secret"}) as reply:
            assert reply.status == 200
        assert "secret" in server.kubeconfig(tmp_path / "kubeconfig").read_text()


async def test_the_log_of_a_pod_comes_from_the_pod_runner() -> None:
    asked: list[Object] = []

    async def logs(namespace: str, name: str, **options: Any) -> AsyncIterator[bytes]:
        asked.append({"namespace": namespace, "name": name, **options})
        yield b"first\n"
        yield b"second\n"

    async with serve(pod_logs=logs) as server, aiohttp.ClientSession(server.url) as session:
        async with session.post(pods(DEFAULT), json=pod()) as reply:
            assert reply.status == 201
        async with session.get(pods(DEFAULT, "a") + "/log", params={"tailLines": "2", "follow": "true"}) as reply:
            assert await reply.text() == "first\nsecond\n"
        async with session.get(pods(DEFAULT, "b") + "/log") as reply:
            assert reply.status == 404
    assert asked == [
        {
            "namespace": DEFAULT,
            "name": "a",
            "container": "main",
            "previous": False,
            "tail_lines": 2,
            "follow": True,
        }
    ]


async def test_objects_are_there_after_kill_9(tmp_path: Path) -> None:
    async def start() -> tuple[asyncio.subprocess.Process, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fencekv_sandbox.apiserver", "--data", str(tmp_path),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        return process, line.removeprefix("listening on ").strip()

    process, url = await start()
    versions = []
    async with aiohttp.ClientSession(url) as session:
        for number in range(20):
            async with session.post(leases(DEFAULT), json=lease(f"l{number}")) as reply:
                versions.append(int((await reply.json())["metadata"]["resourceVersion"]))
        process.kill()
        await process.wait()
    process, url = await start()
    async with aiohttp.ClientSession(url) as session, session.get(leases(DEFAULT)) as reply:
        listing = await reply.json()
    process.terminate()
    assert await process.wait() == 0
    assert len(listing["items"]) == 20
    assert int(listing["metadata"]["resourceVersion"]) >= max(versions)
