"""Runs inside the client's pod: puts new keys until its standard input ends, and says what was acknowledged.

One line of JSON for each put, written after its answer: {"key", "value", "version", "partition", "at"}; `at` in
seconds of this pod's monotonic clock. A put without an answer gives {"key", "error", "at"}. Nothing is put twice.

Invariants:
  * A line with a version stands for an acknowledged put, whatever happens to this process afterwards.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time  # noqa: TID251 - a program of its own: this is its composition root
from typing import Any

from fencekv.client import FenceKV, Table
from fencekv.errors import FenceKVError

WRITERS = 6
PAUSE_SECONDS = 0.02


def say(line: dict[str, Any]) -> None:
    """Writes one line, at once."""
    sys.stdout.write(json.dumps({**line, "at": time.monotonic()}) + "\n")
    sys.stdout.flush()


async def write(table: Table, prefix: str, stop: asyncio.Event) -> None:
    """Puts one key after the other."""
    number = 0
    while not stop.is_set():
        number += 1
        key, value = f"{prefix}{number:06}", f"value of {prefix}{number}"
        try:
            done = await table.put(key, value.encode())
            say({"key": key, "value": value, "version": str(done.version), "partition": done.partition})
        except FenceKVError as error:
            say({"key": key, "error": f"{error.name}: {error.detail}"})
        await asyncio.sleep(PAUSE_SECONDS)


async def run(table: str, prefix: str) -> None:
    """Writes until standard input ends."""
    stop = asyncio.Event()
    async with FenceKV.connect() as db, asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(write(db.table(table), f"{prefix}{writer}-", stop))
        await asyncio.to_thread(sys.stdin.read)
        stop.set()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2]))
