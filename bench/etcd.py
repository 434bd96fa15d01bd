"""etcd with its own data folder: defaults, and fsync on. One member, or three on this machine.

Invariants:
  * Nothing is sent to an etcd that is not ours: its members are known by names that are made for this run.
  * It ends with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fencekv_sandbox.controlplane import HOST, ControlPlaneFailed, Process, find_assets, free_ports

READY_SECONDS_MAX: Final = 30.0
LOOK_SECONDS: Final = 0.1
REQUEST_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Etcd:
    """A running one. Of several members clients speak to the leader: what is fastest for etcd."""

    address: str
    pids: list[int]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    name: str
    client_port: int
    peer: str


@contextlib.asynccontextmanager
async def etcd(folder: Path, *, members: int) -> AsyncIterator[Etcd]:
    """Runs etcd from `KUBEBUILDER_ASSETS`.

    Raises:
        AssetsMissing: with advice.
        ControlPlaneFailed: with the end of its log.
    """
    binary = find_assets(os.environ).etcd
    folder.mkdir(parents=True)
    token = secrets.token_hex(8)
    ports = free_ports(2 * members)
    every = [
        _Member(name=f"bench-{token}-{number}", client_port=client, peer=f"http://{HOST}:{peer}")
        for number, (client, peer) in enumerate(zip(ports[:members], ports[members:], strict=True))
    ]
    cluster = ",".join(f"{member.name}={member.peer}" for member in every)
    processes = [Process(one.name, _command(binary, folder, one, cluster), folder) for one in every]
    try:
        await asyncio.gather(*(process.start() for process in processes))
        leader, version = await _until_ready(processes, every)
        pids = [process.pid for process in processes if process.pid is not None]
        yield Etcd(address=f"{HOST}:{leader.client_port}", pids=pids, version=version)
    finally:
        await asyncio.gather(*(process.stop() for process in processes))


def _command(binary: Path, folder: Path, member: _Member, cluster: str) -> list[str]:
    client = f"http://{HOST}:{member.client_port}"
    return [
        str(binary),
        "--name", member.name,
        "--data-dir", str(folder / member.name),
        "--listen-client-urls", client,
        "--advertise-client-urls", client,
        "--listen-peer-urls", member.peer,
        "--initial-advertise-peer-urls", member.peer,
        "--initial-cluster", cluster,
        "--log-level", "warn",
    ]  # fmt: skip


async def _until_ready(processes: list[Process], members: list[_Member]) -> tuple[_Member, str]:
    """The leader and its version, once all members have names and answer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    names = {member.name for member in members}
    while loop.time() - began < READY_SECONDS_MAX and not any(process.ended() for process in processes):
        with contextlib.suppress(OSError):
            statuses = []
            for member in members:
                found = await _asked(member.client_port, "/v3/cluster/member/list")
                if {one.get("name", "") for one in found["members"]} - {""} - names:
                    raise ControlPlaneFailed(f"port {member.client_port} is not of the etcd of this run")
                statuses.append(await _asked(member.client_port, "/v3/maintenance/status"))
            leader = next((at for at, status in enumerate(statuses) if _leads(status)), None)
            if leader is not None:
                return members[leader], str(statuses[leader]["version"])
        await asyncio.sleep(LOOK_SECONDS)
    raise ControlPlaneFailed("etcd is not ready:\n" + "\n".join(process.log_tail() for process in processes))


def _leads(status: Mapping[str, Any]) -> bool:
    return "leader" in status and status["leader"] == status["header"]["member_id"]


async def _asked(port: int, path: str) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", data=b"{}", timeout=REQUEST_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    return await asyncio.to_thread(ask)
