"""Rows that are no paired runs: replay after a kill at full load, and a shard with 1,000 partitions."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench import machine
from bench.fencekv import LOOK_SECONDS, Shards, namespace, process_of, shards, table, total
from bench.figures import Spread, spread
from bench.generator import NAMESPACE, Generator, Job
from bench.memory import measured
from bench.paired import Tell
from fencekv.kube import KubeNotFound
from fencekv_sandbox.pods import NotRunning
from fencekv_sandbox.sandbox import NotReady, Sandbox

LOAD_CLIENTS: Final = 256
LOAD_SECONDS: Final = 4.0
BACK_SECONDS_MAX: Final = 60.0
PARTITIONS: Final = 1000
PARTITIONS_SECONDS_MAX: Final = 300.0
REPORT_SECONDS: Final = 0.25
OPEN_SECONDS: Final = "fencekv_partition_open_seconds"
REPLAYED: Final = "fencekv_partition_replayed_entries"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of the kills."""

    open_seconds: Spread | None  # None: the shard does not tell
    replayed_entries: Spread | None
    serving_seconds: Spread  # from the kill until the next process serves the partition


async def replay(generator: Generator, folder: Path, *, kills: int, tell: Tell) -> Replay:
    """Kills the shard process at full load, several times, and asks the next one how long opening took."""
    opened: list[float] = []
    entries: list[float] = []
    serving: list[float] = []
    async with shards(folder) as peer:
        for number in range(kills):
            job = Job(
                loader="frames",
                address=(await peer.sandbox.session_lease(peer.pod)).http,
                op="put",
                clients=LOAD_CLIENTS,
                warmup_seconds=0.0,
                seconds=10 * LOAD_SECONDS,
            )
            async with generator.running(job):
                await asyncio.sleep(LOAD_SECONDS)
                seconds = await _killed(peer)
            metrics = await peer.metrics()
            took, replayed = total(metrics, OPEN_SECONDS), total(metrics, REPLAYED)
            serving.append(seconds)
            opened += [] if took is None else [took]
            entries += [] if replayed is None else [replayed]
            tell(
                f"  kill {number + 1}: opened in {_text(took)} s ({_text(replayed)} entries), "
                f"served after {seconds:.2f} s"
            )
    return Replay(
        open_seconds=spread(opened) if opened else None,
        replayed_entries=spread(entries) if entries else None,
        serving_seconds=spread(serving),
    )


async def _killed(peer: Shards) -> float:
    """Kills the owner's process; gives the seconds until the next one serves."""
    loop = asyncio.get_running_loop()
    before = await peer.sandbox.owner_of("bench-0")
    assert before is not None
    began = loop.time()
    peer.sandbox.pod(peer.pod).kill("child")
    await peer.sandbox.wait_owner("bench-0", epoch_min=before.epoch + 1, seconds=BACK_SECONDS_MAX)
    while await peer.sandbox.not_serving("bench"):
        if loop.time() - began > BACK_SECONDS_MAX:
            raise NotReady(f"{peer.pod} serves nothing {BACK_SECONDS_MAX:g} s after it was killed")
        await asyncio.sleep(LOOK_SECONDS)
    return loop.time() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitions:
    """A shard with many partitions, at its start and idle. None: the machine does not tell."""

    first_seconds: float  # from the table's creation until all are served
    start_seconds: float  # from the end of the process until the next one has opened all
    serving_seconds: float  # until it serves all, under new epochs
    idle_mb: float | None
    idle_percent: float | None


async def partitions(folder: Path, *, count: int, settle_seconds: float, tell: Tell) -> Partitions:
    """One shard process with many partitions: restarted, then left alone."""
    loop = asyncio.get_running_loop()
    pod = f"{NAMESPACE}-0"
    async with Sandbox(data=folder) as sandbox:
        await sandbox.apply(namespace(1))
        await sandbox.wait_namespace_ready(NAMESPACE)
        began = loop.time()
        await sandbox.apply(table("many", partitions=count))
        await _until(sandbox, pod, lambda replicas: sum(map(_serves, replicas)) == count)
        first = loop.time() - began
        tell(f"  {count} partitions are served {first:.1f} s after their table was made")
        old = process_of(sandbox, pod)
        began = loop.time()
        sandbox.pod(pod).kill("child")
        await _until(sandbox, pod, lambda replicas: len(replicas) == count, old=old)
        opened = loop.time() - began
        await _until(sandbox, pod, lambda replicas: sum(map(_serves, replicas)) == count, old=old)
        served = loop.time() - began
        tell(f"  restarted: all open after {opened:.1f} s, all served after {served:.1f} s")
        await asyncio.sleep(settle_seconds)
        pid = process_of(sandbox, pod)
        groups = {"shard": [pid], "rest": [os.getpid()]}
        before = machine.usage(groups)
        await asyncio.sleep(settle_seconds)
        cores = machine.cores(before, machine.usage(groups), "shard")
        memory = measured("shard", pid)
        return Partitions(
            first_seconds=first,
            start_seconds=opened,
            serving_seconds=served,
            idle_mb=None if memory is None else memory.rss_mb,
            idle_percent=None if cores is None else 100 * cores,
        )


async def _until(
    sandbox: Sandbox, pod: str, condition: Callable[[list[dict[str, Any]]], bool], *, old: int | None = None
) -> None:
    """Waits until the replicas that the pod's process reports are as wanted; not those of the process `old`.

    The shard is asked alone, and seldom: the API server runs in this process, and is not to be held up.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() - began < PARTITIONS_SECONDS_MAX:
        with contextlib.suppress(NotRunning, KubeNotFound, aiohttp.ClientError, OSError, TimeoutError):
            if old not in sandbox.pod(pod).children() and condition((await sandbox.report(pod))["replicas"]):
                return
        await asyncio.sleep(REPORT_SECONDS)
    raise NotReady(f"{pod}: its partitions are not as wanted after {PARTITIONS_SECONDS_MAX:g} s")


def _serves(replica: dict[str, Any]) -> bool:
    return replica["role"] == "owner" and bool(replica["serving"])


def _text(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"
