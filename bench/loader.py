"""A load process: takes jobs as JSON lines, runs each, answers with a JSON line.

It is a process of its own so that the sandbox's API server, which shares the parent's loop, is not in the way.

Invariants:
  * A job ends: after its seconds nothing new is sent, and what is under way is given `DRAIN_SECONDS`.
  * What completed inside the window counts, and nothing else; failures count wherever they happen.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Final

from bench.connection import Connection
from bench.requests import Kind, build

DRAIN_SECONDS: Final = 15.0
CONNECT_SECONDS: Final = 10.0
LINE_BYTES_MAX: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A load to make."""

    kind: Kind
    host: str
    port: int
    clients: int
    warmup_seconds: float
    seconds: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a job."""

    seconds: float  # of the window
    latencies_us: list[int]  # of what completed in it
    errors: dict[str, int] = field(default_factory=dict)  # by status; "0": broken connections
    cpu_seconds: float  # of this process, in the window


class Recorder:
    """Counts answers; only those inside the window are kept."""

    def __init__(self, clock: Callable[[], float], *, opens: float, closes: float) -> None:
        self._clock, self.opens, self.closes = clock, opens, closes
        self.latencies = array("d")
        self.errors: Counter[str] = Counter()

    def answer(self, seconds: float, status: int) -> None:
        """An answer came now."""
        if status != 200:
            self.errors[str(status)] += 1
        elif self.opens <= self._clock() < self.closes:
            self.latencies.append(seconds)


async def run(job: Job, *, clock: Callable[[], float] = time.perf_counter) -> Load:
    """Runs a job. Raises OSError or TimeoutError if the connections cannot be made."""
    requests = itertools.cycle(build(job.kind, host=f"{job.host}:{job.port}", seed=job.seed))
    recorder = Recorder(clock, opens=math.inf, closes=math.inf)  # the clock starts when all are connected
    connections = await _connect(job, requests, recorder, clock)
    began = clock()
    recorder.opens = began + job.warmup_seconds
    recorder.closes = recorder.opens + job.seconds
    for connection in connections:
        connection.send()
    await asyncio.sleep(max(0.0, recorder.opens - clock()))
    cpu_before, opened = time.process_time(), clock()
    await asyncio.sleep(max(0.0, recorder.closes - clock()))
    cpu_share = (time.process_time() - cpu_before) / (clock() - opened)
    _, late = await asyncio.wait([connection.ended for connection in connections], timeout=DRAIN_SECONDS)
    if late:
        recorder.errors["no answer"] += len(late)
    return Load(
        seconds=job.seconds,
        latencies_us=[round(seconds * 1e6) for seconds in recorder.latencies],
        errors=dict(recorder.errors),
        cpu_seconds=cpu_share * job.seconds,
    )


async def _connect(
    job: Job, requests: Iterator[bytes], recorder: Recorder, clock: Callable[[], float]
) -> list[Connection]:
    loop = asyncio.get_running_loop()

    def following() -> bytes | None:
        return next(requests) if clock() < recorder.closes else None

    def make() -> Connection:
        ended = loop.create_future()
        return Connection(following=following, on_answer=recorder.answer, clock=clock, ended=ended)

    connections = []
    async with asyncio.timeout(CONNECT_SECONDS):
        for _ in range(job.clients):
            _, connection = await loop.create_connection(make, job.host, job.port)
            connections.append(connection)
    return connections


def main() -> None:
    """Serves jobs from standard input until it ends."""
    gc.disable()  # a pause of ours would be counted as one of theirs
    for line in sys.stdin:
        try:
            told = asdict(asyncio.run(run(Job(**json.loads(line)))))
        except (OSError, TimeoutError) as error:
            told = {"failed": repr(error)}
        sys.stdout.write(json.dumps(told, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        gc.collect()


if __name__ == "__main__":
    main()
