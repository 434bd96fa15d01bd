"""`python -m bench.commits`: what a commit costs by who begins it and who fills it. For docs/decisions/0004.

The composition root: clocks are taken here.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import lmdb

from bench.generator import ROOT
from fencekv_shard.executor import WriterThreads, run

COMMITS: Final = 300
TURNS: Final = 5
ROWS: Final = 1000
RECORD: Final = b"x" * 400


def opened(folder: Path, *, lock: bool) -> tuple[Any, Any]:
    """An environment with one table."""
    env = lmdb.open(str(folder), map_size=1 << 30, max_dbs=1, lib_version=1, lock=lock)
    return env, env.open_db(b"journal")


async def hops(folder: Path) -> dict[str, float]:
    """Milliseconds of a commit of one record at the median, by where its parts run; taken in turns."""
    threads = WriterThreads(clock=time.monotonic, threads=1)
    locked, free = opened(folder / "locked", lock=True), opened(folder / "free", lock=False)
    seq = 0

    def fill(txn: Any, db: Any) -> None:
        txn.cursor(db=db).putmulti([(seq.to_bytes(8, "big"), RECORD)], append=True)

    async def twice() -> None:
        env, db = locked
        txn = await run(threads, lambda: env.begin(write=True))
        fill(txn, db)
        await run(threads, txn.commit)

    async def once() -> None:
        env, db = free
        txn = env.begin(write=True)
        fill(txn, db)
        await run(threads, txn.commit)

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "locks on: begin in the thread, puts on the loop, commit in the thread": twice,
        "locks off: begin and puts on the loop, commit in the thread": once,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            for _ in range(COMMITS):
                seq += 1
                before = time.perf_counter()
                await way()
                found[name].append(time.perf_counter() - before)
    threads.close()
    return {name: statistics.median(seconds) * 1e3 for name, seconds in found.items()}


def puts(folder: Path, *, beside: bool) -> float:
    """Milliseconds of `ROWS` puts in a thread at the median; `beside`: another thread computes meanwhile."""
    env, db = opened(folder / f"puts-{beside}", lock=False)
    rows = [(seq.to_bytes(8, "big"), b"x" * 40) for seq in range(ROWS)]
    found: list[float] = []

    def work() -> None:
        for _ in range(TURNS):
            txn = env.begin(write=True)
            before = time.perf_counter()
            txn.cursor(db=db).putmulti(rows)
            found.append(time.perf_counter() - before)
            txn.commit()

    thread = threading.Thread(target=work)
    thread.start()
    while beside and thread.is_alive():
        pass  # a loop that is busy with requests
    thread.join()
    return statistics.median(found) * 1e3


def main() -> None:
    """Measures on the disk of the checkout, and prints a table."""
    base = ROOT / ".cache"
    base.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="commits-", dir=base))
    try:
        for name, milliseconds in asyncio.run(hops(folder)).items():
            sys.stdout.write(f"{milliseconds:8.3f} ms  {name}\n")
        for beside in (False, True):
            name = "beside a busy thread" if beside else "alone"
            sys.stdout.write(f"{puts(folder, beside=beside):8.3f} ms  {ROWS} puts in a thread, {name}\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
