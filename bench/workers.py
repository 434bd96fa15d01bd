"""The load processes, from the side that gives them jobs.

Invariants:
  * They end with the block that opened them, and with this process: their standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from bench.loader import CONNECT_SECONDS, DRAIN_SECONDS, LINE_BYTES_MAX, Job, Load

SLACK_SECONDS: Final = 10.0
ROOT: Final = Path(__file__).resolve().parents[1]


class LoadFailed(Exception):
    """A load could not be made; the message says why."""


def shares(clients: int, processes: int) -> list[int]:
    """How many clients each process plays; those that would have none are left out."""
    sizes = [clients // processes + (1 if index < clients % processes else 0) for index in range(processes)]
    return [size for size in sizes if size]


def merged(loads: Sequence[Load]) -> Load:
    """The load that several processes made together."""
    errors: dict[str, int] = {}
    for load in loads:
        for status, count in load.errors.items():
            errors[status] = errors.get(status, 0) + count
    return Load(
        seconds=loads[0].seconds,
        latencies_us=[latency for load in loads for latency in load.latencies_us],
        errors=errors,
        cpu_seconds=sum(load.cpu_seconds for load in loads),
    )


class Workers:
    """Open load processes."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self._processes]

    async def run(self, job: Job) -> Load:
        """Runs a job, its clients divided among the processes."""
        parts = shares(job.clients, len(self._processes))
        jobs = [replace(job, clients=size, seed=job.seed + index) for index, size in enumerate(parts)]
        asked = zip(self._processes, jobs, strict=False)
        return merged(await asyncio.gather(*(_ask(process, part) for process, part in asked)))


async def _ask(process: asyncio.subprocess.Process, job: Job) -> Load:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
    limit = job.warmup_seconds + job.seconds + CONNECT_SECONDS + DRAIN_SECONDS + SLACK_SECONDS
    try:
        async with asyncio.timeout(limit):
            line = await process.stdout.readline()
    except TimeoutError as error:
        raise LoadFailed(f"the load process said nothing for {limit:g} s") from error
    if not line:
        raise LoadFailed("the load process ended")
    told: dict[str, Any] = json.loads(line)
    if "failed" in told:
        raise LoadFailed(f"{job.kind} at {job.host}:{job.port}: {told['failed']}")
    return Load(**told)


@contextlib.asynccontextmanager
async def workers(count: int) -> AsyncIterator[Workers]:
    """Starts load processes, and ends them."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.loader"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
                limit=LINE_BYTES_MAX,
                start_new_session=True,  # Ctrl-C is for the parent, which ends them
            )
            processes.append(process)
        yield Workers(processes)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
