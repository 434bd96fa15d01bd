"""Runs inside the client's pod: a steady load on a table, every request recorded, and all read back at the end.

    python load.py '{"namespace": …, "table": …, "prefix": …, "per_second": …, "stubborn_each": …,
                     "shards": ["host:port", …]}'

Two kinds of writers. The steady one is a user of the SDK: it puts a new key every 1/per_second seconds, however
long the ones before take, and into each partition in turn. The stubborn ones ask one shard each over HTTP, always
the same: what a shard that lost its right is tempted with. SIGTERM ends the writing; what is under way ends, then
the keys are listed.

One line of JSON each, `sent` and `at` (answered) in seconds of this pod's monotonic clock:
  {"begin", "partitions"}                         the first line
  {"key", "sent", "at", "partition", "version"}   acknowledged; the value is `VALUE` of the key
  {"key", "sent", "at", "error", "detail"}        not acknowledged; with "partition" if the steady one sent it
  either with "shard" if a stubborn writer sent it
  {"read", "value", "version"}                    a key as it was read at the end
  {"end", "stopped", "read_error"}                the last line; when the writing was told to end

Invariants:
  * No key is put twice, but by the SDK itself with the same idempotency key.
  * A line with a version stands for an acknowledged put, whatever happens to this process afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time  # noqa: TID251 - a program of its own: this is its composition root
from collections.abc import Iterator, Mapping
from typing import Any, Final

import aiohttp

from fencekv.client import FenceKV, Table
from fencekv.errors import FenceKVError
from fencekv.partitioning import Partitioning, parse_partitioning

UNDER_WAY_MAX: Final = 8_000  # 40 s of a table that answers nothing
STUBBORN_PAUSE_SECONDS: Final = 0.1
# Longer than any fault lasts: what lies in a frozen shard's socket is to be there when it thaws.
STUBBORN_SECONDS: Final = 30.0
PAGE: Final = 1_000
READ_SECONDS_MAX: Final = 60.0
ROUTE_SECONDS_MAX: Final = 20.0
FINISH_SECONDS_MAX: Final = 15.0


def say(line: dict[str, Any]) -> None:
    """Writes one line, at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def value_of(key: str) -> str:
    """What is put under a key."""
    return f"value of {key}"


async def put(table: Table, key: str, partition: str) -> None:
    """Puts a key, and records it; `partition`: where it lies."""
    sent = time.monotonic()
    line: dict[str, Any] = {"key": key, "sent": sent, "partition": partition}
    try:
        done = await table.put(key, value_of(key).encode())
        line |= {"partition": done.partition, "version": str(done.version)}
    except FenceKVError as error:
        line |= {"error": error.name, "detail": error.detail}
    say({**line, "at": time.monotonic()})


def keys(prefix: str, how: Partitioning, names: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """New keys without end, one of each partition in turn: a pause is then the partition's, not chance.

    Each with its partition's name, which `names` has by index.

    What stands in braces decides where a key of a table cut by hash lies.
    """
    tags: dict[int, str] = {}
    for number in itertools.count():
        tags.setdefault(how.partition_of(f"{{{number}}}"), f"{{{number}}}")
        if len(tags) == how.count:
            break
    for number in itertools.count():
        index = number % how.count
        yield f"{prefix}s-{number:07}-{tags[index]}", names[index]


async def steadily(
    table: Table, wanted: Iterator[tuple[str, str]], *, per_second: float, stop: asyncio.Event
) -> float:
    """Puts at a fixed rate, and makes up for what a late start owes; gives when it was told to stop."""
    begin, number = time.monotonic(), 0
    under_way: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        due = begin + number / per_second
        if due > time.monotonic():
            await asyncio.sleep(due - time.monotonic())
        if len(under_way) < UNDER_WAY_MAX:
            task = asyncio.create_task(put(table, *next(wanted)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        number += 1
    stopped = time.monotonic()
    if under_way:
        await asyncio.wait(under_way, timeout=FINISH_SECONDS_MAX)
    return stopped


async def stubbornly(session: aiohttp.ClientSession, url: str, shard: str, *, prefix: str) -> None:
    """Puts through one shard, whatever it says, until cancelled."""
    number = 0
    while True:
        number += 1
        key = f"{prefix}{number:06}"
        line: dict[str, Any] = {"key": key, "sent": time.monotonic(), "shard": shard}
        try:
            async with session.put(f"http://{shard}{url}/{key}", data=value_of(key)) as answer:
                document = await answer.json(content_type=None)
            if answer.ok:
                line |= {"partition": document["partition"], "version": document["version"]}
            else:
                line |= {"error": str(document.get("title")), "detail": str(document.get("detail"))}
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            line |= {"error": "Broken", "detail": repr(error)}
        say({**line, "at": time.monotonic()})
        await asyncio.sleep(STUBBORN_PAUSE_SECONDS)


async def routes_of(table: Table) -> Mapping[str, Any]:
    """The table's partitions; asked for until a shard gives them."""
    deadline = time.monotonic() + ROUTE_SECONDS_MAX
    while True:
        try:
            return await table.route()
        except FenceKVError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def read_back(table: Table, prefix: str) -> str:
    """Lists what is there; gives why that failed, empty if it did not."""
    deadline, cursor = time.monotonic() + READ_SECONDS_MAX, ""
    while True:
        try:
            page = await table.list_page(prefix=prefix, limit=PAGE, cursor=cursor)
        except FenceKVError as error:
            if time.monotonic() > deadline:
                return f"{error.name}: {error.detail}"
            await asyncio.sleep(0.2)
            continue
        for entry in page.entries:
            say({"read": entry.key, "value": entry.value.decode(), "version": str(entry.version)})
        if page.cursor is None:
            return ""
        cursor = page.cursor


async def run(order: dict[str, Any]) -> None:
    """Writes until SIGTERM, then reads."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    table_name, prefix, namespace = order["table"], order["prefix"], order["namespace"]
    url = f"/v1/{namespace}/{table_name}/keys"
    timeout = aiohttp.ClientTimeout(total=STUBBORN_SECONDS)
    async with FenceKV.connect() as db, aiohttp.ClientSession(timeout=timeout) as session:
        table = db.table(table_name)
        routes = await routes_of(table)
        say({"begin": True, "partitions": [each["partition"] for each in routes["partitions"]]})
        names = {each["index"]: each["partition"] for each in routes["partitions"]}
        wanted = keys(prefix, parse_partitioning(routes["partitioning"]), names)
        stubborn = [
            asyncio.create_task(stubbornly(session, url, shard, prefix=f"{prefix}{index}-{each}-"))
            for index, shard in enumerate(order["shards"])
            for each in range(order["stubborn_each"])
        ]
        stopped = await steadily(table, wanted, per_second=order["per_second"], stop=stop)
        for task in stubborn:
            task.cancel()
        await asyncio.gather(*stubborn, return_exceptions=True)
        say({"end": True, "stopped": stopped, "read_error": await read_back(table, prefix)})


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
