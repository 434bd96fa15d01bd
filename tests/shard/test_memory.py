"""What a pod remembers besides its replicas, and whose its data folder is."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from memory_kube import HandClock
from simulation.disk import Disks, simulated
from simulation.kube import ApiHost
from simulation.loop import Process, ProcessClock, SimulationLoop
from simulation.network import Network
from simulation.shards import KVNS, NAMESPACE, TABLE, Shard

from fencekv import leases
from fencekv.kube import CRDS, KV_NAMESPACES, KV_PARTITIONS, LEASES
from fencekv.leases import Session, SessionLease
from fencekv_shard.memory import FOLDER_RETRY_SECONDS, PodMemory
from fencekv_shard.serve import OPEN_FILES_MAX

ROOT = Path(__file__).resolve().parents[2]
POD = "sample-0"


async def opened(folder: Path, *, epochs: Callable[[], Mapping[str, int]] = dict) -> PodMemory:
    memory = PodMemory(folder, epochs=epochs)
    await memory.open(HandClock())
    return memory


async def test_a_full_disk_does_not_end_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = await opened(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "_write", full)
    memory.remember(7)
    assert memory.renewal == 7
    with pytest.raises(OSError, match="No space"):
        memory.suspect()
    memory.close()


async def test_suspicion_outlives_the_process_until_a_higher_epoch_is_granted(tmp_path: Path) -> None:
    memory = await opened(tmp_path, epochs=lambda: {"uid": 4})
    memory.remember(7)
    memory.suspect()
    memory.remember(8)
    memory.close()
    again = await opened(tmp_path)
    assert (again.renewal, again.is_suspect("uid")) == (8, True)
    again.granted("uid", 4)
    assert again.is_suspect("uid")
    again.granted("uid", 5)
    again.close()
    last = await opened(tmp_path)
    assert not last.is_suspect("uid")
    last.close()


# -- a folder that another process still holds


def test_a_held_folder_is_waited_for_and_then_shows_what_its_holder_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = SimulationLoop(1)
    clock = ProcessClock(loop=loop)

    async def story() -> None:
        old, new = PodMemory(tmp_path, epochs=dict), PodMemory(tmp_path, epochs=dict)
        await old.open(clock)
        waiting = asyncio.ensure_future(new.open(clock))
        await asyncio.sleep(25.0)
        old.remember(9)
        assert not waiting.done()
        old.close()
        freed = loop.time()
        await waiting
        assert loop.time() - freed <= FOLDER_RETRY_SECONDS
        assert new.renewal == 9
        new.close()

    with caplog.at_level(logging.INFO, logger="fencekv_shard.memory"):
        loop.run(story())

    said = [(record.levelno, record.getMessage().partition(" ")[2]) for record in caplog.records]
    in_use = "is in use by another process: waited"
    assert said == [
        (logging.WARNING, f"{in_use} 0 s"),
        (logging.WARNING, f"{in_use} 10 s"),
        (logging.WARNING, f"{in_use} 20 s"),
        (logging.INFO, "is free after 25.0 s"),
    ]


def test_a_wait_that_is_given_up_leaves_the_folder_to_others(tmp_path: Path) -> None:
    loop = SimulationLoop(1)
    clock = ProcessClock(loop=loop)

    async def story() -> None:
        holder, other = PodMemory(tmp_path, epochs=dict), PodMemory(tmp_path, epochs=dict)
        await holder.open(clock)
        waiting = asyncio.ensure_future(other.open(clock))
        await asyncio.sleep(1.0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        other.close()
        holder.close()
        began = loop.time()
        third = PodMemory(tmp_path, epochs=dict)
        await third.open(clock)
        assert loop.time() == began
        third.close()

    loop.run(story())


class World:
    """A pod's volume, an API server, and processes of that pod: of the one before and of its successor."""

    def __init__(self, folder: Path) -> None:
        self.loop, self.folder = SimulationLoop(1), folder
        self.network = Network(self.loop)
        self.api = ApiHost(self.loop, self.network)
        self.disks = Disks()
        for path in sorted((ROOT / "crds").glob("kv*.yaml")):
            self.api.ask("POST", CRDS.path(None), body=yaml.safe_load(path.read_text()))
        self._make(KV_NAMESPACES, KVNS, {"shards": {"replicas": 1, "storage": {"size": "1Gi"}}})
        labels = {leases.LABEL_NAMESPACE: KVNS, leases.LABEL_TABLE: TABLE}
        spec = {
            "namespace": KVNS,
            "table": TABLE,
            "tableUID": "t",
            "index": 0,
            "partitioning": {"strategy": "hash", "count": 1},
            "durability": "standard",
            "minInSync": 0,
            "maxUnshippedSeconds": 1,
            "replicas": [POD],
            "limits": {"valueBytesMax": 1 << 20},
        }
        self._make(KV_PARTITIONS, f"{TABLE}-0", spec, labels=labels)

    def _make(self, resource: Any, name: str, spec: Any, *, labels: Mapping[str, str] | None = None) -> None:
        meta = {"name": name, "namespace": NAMESPACE, "labels": dict(labels or {})}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta, "spec": spec}
        self.api.ask("POST", resource.path(NAMESPACE), body=body)

    def start(self, pod_uid: str) -> tuple[Shard, Process]:
        process = self.loop.process(f"{POD}.{pod_uid}", host=POD)
        shard = Shard(
            loop=self.loop,
            network=self.network,
            api=self.api,
            process=process,
            session=Session(POD, pod_uid, f"{len(self.loop.processes):016x}"),
            data=self.folder,
            clock=ProcessClock(loop=self.loop),
            disks=self.disks,
            stopping=asyncio.Event(),
            acknowledgements=[],
        )
        process.spawn(shard.main())
        return shard, process

    def holder(self) -> SessionLease:
        return SessionLease.parse(self.api.ask("GET", LEASES.path(NAMESPACE, leases.session_lease_name(POD))))

    async def ready(self, shard: Shard, *, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while shard.node is None or not shard.node.ready():
                await asyncio.sleep(0.01)

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            await story()

        with simulated(self.disks):
            self.loop.run(whole())
        assert self.loop.errors == []


def replicas(shard: Shard) -> list[Any]:
    assert shard.node is not None
    found = shard.node.report()["replicas"]
    assert isinstance(found, list)
    return found


def test_a_pod_whose_predecessor_still_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def story() -> None:
        old, _ = world.start("uid-1")
        await world.ready(old, seconds=5.0)
        assert len(replicas(old)) == 1
        new, process = world.start("uid-2")
        renewal = world.holder().renewal
        await asyncio.sleep(30.0)
        assert process.alive
        assert new.node is not None
        assert new.node.live()
        assert not new.node.ready()
        assert replicas(new) == []  # not opened: not reported
        assert world.holder().session == old.session
        assert world.holder().renewal > renewal + 20
        old.stopping.set()
        await world.ready(new, seconds=5.0)
        assert world.holder().session == new.session
        assert len(replicas(new)) == 1

    world.run(story)


def test_a_killed_predecessor_is_followed_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def story() -> None:
        old, process = world.start("uid-1")
        await world.ready(old, seconds=5.0)
        new, _ = world.start("uid-2")
        await asyncio.sleep(3.0)
        process.crash()
        await world.ready(new, seconds=2.0)
        assert world.holder().session == new.session

    world.run(story)


async def test_a_process_may_open_many_files_and_sigterm_ends_its_wait(tmp_path: Path) -> None:
    account, data = tmp_path / "account", tmp_path / "data"
    account.mkdir()
    (account / "namespace").write_text(NAMESPACE)
    (account / "token").write_text("t")
    holder = await opened(data)
    environment = {
        **os.environ,
        "FENCEKV_NAMESPACE": KVNS,
        "FENCEKV_SESSION": str(Session(POD, "uid-2", "0" * 16)),
        "FENCEKV_POD_IP": "127.0.0.1",
        "FENCEKV_HTTP_PORT": "0",
        "FENCEKV_PEER_PORT": "0",
        "FENCEKV_DATA": str(data),
        "FENCEKV_SERVICEACCOUNT": str(account),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": "1",  # nobody listens there: nor does it ask
    }
    # The soft limit that many container runtimes give.
    command = ("/bin/sh", "-c", 'ulimit -Sn 1024; exec "$0" -m fencekv_shard serve', sys.executable)
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    said = b""
    try:
        async with asyncio.timeout(20.0):
            while b"is in use by another process" not in said:
                said = await process.stderr.readline()
                assert said, "it ended without a wait"
            soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            process.send_signal(signal.SIGTERM)
            rest = await process.stderr.read()
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    holder.close()

    assert status == 0, rest
    assert b"Traceback" not in rest
    assert soft == (OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX))
