"""Watches: order, bookmarks, selectors, history that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from apiservers import Api

from conformance import behaviour
from conformance.samples import MERGE, config_map, create, get, maps, pod, pods

Event = dict[str, Any]
SECONDS = 10


class Stream:
    """The events of one watch."""

    def __init__(self, response: Any) -> None:
        self.status = response.status
        self._response = response

    async def next(self) -> Event | None:
        """The next event; None: the watch has ended."""
        async with asyncio.timeout(SECONDS):
            line = await self._response.content.readline()
        return json.loads(line) if line else None

    async def take(self, count: int) -> list[tuple[str, str]]:
        """Type and name of the next events."""
        taken = []
        for _ in range(count):
            event = await self.next()
            assert event is not None, taken
            taken.append((event["type"], event["object"]["metadata"].get("name", "")))
        return taken


@contextlib.asynccontextmanager
async def watching(
    api: Api, path: str, *, accept: str = "application/json", **query: str
) -> AsyncIterator[Stream]:
    params = {"watch": "true", "timeoutSeconds": "20", **query}
    async with api.session.get(path, params=params, headers={"Accept": accept}) as response:
        yield Stream(response)


@behaviour
async def a_watch_shows_what_is_there_and_what_comes(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a"))
    async with watching(api, maps(ns)) as stream:
        assert await stream.take(1) == [("ADDED", "a")]
        await create(api, maps(ns), config_map("b"))
        await api.ask("PATCH", maps(ns, "a"), {"data": {"x": "1"}}, content=MERGE)
        await api.ask("DELETE", maps(ns, "b"))
        assert await stream.take(3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


@behaviour
async def a_watch_goes_on_from_a_version(api: Api, ns: str) -> None:
    version = (await create(api, maps(ns), config_map("a"))).version
    await create(api, maps(ns), config_map("b"))
    await api.ask("DELETE", maps(ns, "a"))
    async with watching(api, maps(ns), resourceVersion=version) as stream:
        first, second = await stream.next(), await stream.next()
    assert first is not None
    assert second is not None
    assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "b")
    assert second["type"] == "DELETED"
    assert int(second["object"]["metadata"]["resourceVersion"]) > int(
        first["object"]["metadata"]["resourceVersion"]
    )
    assert first["object"]["kind"] == "ConfigMap"


@behaviour
async def the_versions_of_a_watch_rise(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a", n="0"))
    async with watching(api, maps(ns)) as stream:
        for number in range(1, 6):
            await api.ask("PATCH", maps(ns, "a"), {"data": {"n": str(number)}}, content=MERGE)
        events = [await stream.next() for _ in range(6)]
    seen = [
        (int(one["object"]["metadata"]["resourceVersion"]), one["object"]["data"]["n"]) for one in events if one
    ]
    assert seen == sorted(seen)
    assert [number for _, number in seen] == ["0", "1", "2", "3", "4", "5"]


@behaviour
async def an_object_that_ceases_to_match_is_shown_as_deleted(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a", {"x": "1"}))
    async with watching(api, maps(ns), labelSelector="x=1") as stream:
        assert await stream.take(1) == [("ADDED", "a")]
        reply = await api.ask("PATCH", maps(ns, "a"), {"metadata": {"labels": {"x": "2"}}}, content=MERGE)
        event = await stream.next()
        assert event is not None
        assert event["type"] == "DELETED"
        assert event["object"]["metadata"]["labels"] == {"x": "1"}
        assert event["object"]["metadata"]["resourceVersion"] == reply.version
        await api.ask("PATCH", maps(ns, "a"), {"metadata": {"labels": {"x": "1"}}}, content=MERGE)
        assert await stream.take(1) == [("ADDED", "a")]


@behaviour
async def one_object_is_watched_by_its_name(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a"))
    await create(api, maps(ns), config_map("b"))
    async with watching(api, maps(ns), fieldSelector="metadata.name=b") as stream:
        assert await stream.take(1) == [("ADDED", "b")]
        await api.ask("DELETE", maps(ns, "a"))
        await api.ask("DELETE", maps(ns, "b"))
        assert await stream.take(1) == [("DELETED", "b")]


@behaviour
async def a_watch_ends_after_its_time(api: Api, ns: str) -> None:
    async with watching(api, maps(ns), timeoutSeconds="1") as stream:
        assert await stream.next() is None


@behaviour
async def initial_events_end_with_a_bookmark(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a"))
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    async with watching(api, maps(ns), **query) as stream:
        assert await stream.take(1) == [("ADDED", "a")]
        event = await stream.next()
        assert event is not None
        assert event["type"] == "BOOKMARK"
        assert event["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


@behaviour
async def initial_events_need_a_version_match(api: Api, ns: str) -> None:
    async with watching(api, maps(ns), sendInitialEvents="true") as stream:
        assert stream.status == 422


@behaviour
async def a_version_of_the_wrong_form_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("GET", maps(ns), resourceVersion="abc")
    assert reply.status in {400, 422}
    assert "resourceVersion" in reply.message, reply


@behaviour
async def a_version_of_the_future_times_out(api: Api, ns: str) -> None:
    version = int((await get(api, maps(ns)))["metadata"]["resourceVersion"])
    reply = await api.ask("GET", maps(ns), resourceVersion=str(version + 100_000))
    assert reply.status == 504
    assert reply.reason == "Timeout"
    assert "Too large resource version" in reply.message
    assert reply.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


@behaviour
async def a_watch_from_forgotten_history_is_expired(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a"))
    await api.forget_history()
    async with watching(api, maps(ns), resourceVersion="1") as stream:
        event = await stream.next()
    assert event is not None
    assert event["type"] == "ERROR", event
    assert event["object"]["code"] == 410
    assert event["object"]["reason"] == "Expired"
    assert event["object"]["message"].startswith("too old resource version: 1 (")


@behaviour
async def a_list_at_a_forgotten_version_is_expired(api: Api, ns: str) -> None:
    version = (await create(api, maps(ns), config_map("a"))).version
    await create(api, maps(ns), config_map("b"))
    await api.forget_history()
    reply = await api.ask("GET", maps(ns), resourceVersion=version, resourceVersionMatch="Exact")
    assert reply.status == 410
    assert reply.reason == "Expired"


@behaviour
async def a_watch_comes_as_tables_on_demand(api: Api, ns: str) -> None:
    await create(api, pods(ns), pod())
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    async with watching(api, pods(ns), accept=accept) as stream:
        first = await stream.next()
        assert first is not None
        assert first["object"]["kind"] == "Table"
        assert first["object"]["rows"][0]["cells"][0] == "a"
        await api.ask("PATCH", pods(ns, "a"), {"metadata": {"labels": {"x": "y"}}}, content=MERGE)
        second = await stream.next()
        assert second is not None
        assert second["object"]["rows"][0]["cells"][:3] == ["a", "0/1", "Pending"]


@behaviour
async def metadata_alone_is_shown_on_demand(api: Api, ns: str) -> None:
    await create(api, maps(ns), config_map("a", x="1"))
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listing = (await api.ask("GET", maps(ns), accept=accept)).body
    assert listing["kind"] == "PartialObjectMetadataList"
    assert listing["items"][0]["metadata"]["name"] == "a"
    assert "data" not in listing["items"][0]
