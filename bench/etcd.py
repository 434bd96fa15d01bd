"""A single etcd with its own data folder: defaults, and fsync on.

Invariants:
  * Nothing is sent to an etcd that is not ours: it is known by a name that is made for this run.
  * It ends with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fencekv_sandbox.controlplane import HOST, ControlPlaneFailed, Process, find_assets, free_ports

READY_SECONDS_MAX: Final = 30.0
LOOK_SECONDS: Final = 0.1
REQUEST_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Etcd:
    """A running one."""

    port: int
    pid: int
    version: str


@contextlib.asynccontextmanager
async def etcd(folder: Path) -> AsyncIterator[Etcd]:
    """Runs etcd from `KUBEBUILDER_ASSETS`.

    Raises:
        AssetsMissing: with advice.
        ControlPlaneFailed: with the end of its log.
    """
    binary = find_assets(os.environ).etcd
    folder.mkdir(parents=True)
    name = f"bench-{secrets.token_hex(8)}"
    port, peer_port = free_ports(2)
    process = Process("etcd", _command(binary, folder, name, port, peer_port), folder)
    try:
        await process.start()
        version = await _until_ready(process, port, name)
        assert process.pid is not None
        yield Etcd(port=port, pid=process.pid, version=version)
    finally:
        await process.stop()


def _command(binary: Path, folder: Path, name: str, port: int, peer_port: int) -> list[str]:
    client, peer = f"http://{HOST}:{port}", f"http://{HOST}:{peer_port}"
    return [
        str(binary),
        "--name", name,
        "--data-dir", str(folder / "data"),
        "--listen-client-urls", client,
        "--advertise-client-urls", client,
        "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer,
        "--initial-cluster", f"{name}={peer}",
        "--log-level", "warn",
    ]  # fmt: skip


async def _until_ready(process: Process, port: int, name: str) -> str:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() - began < READY_SECONDS_MAX and not process.ended():
        with contextlib.suppress(OSError):
            members = await asyncio.to_thread(_asked, port, "/v3/cluster/member/list", b"{}")
            if [member.get("name") for member in members["members"]] != [name]:
                raise ControlPlaneFailed(f"what answers on port {port} is not the etcd of this run")
            return str((await asyncio.to_thread(_asked, port, "/version", None))["etcdserver"])
        await asyncio.sleep(LOOK_SECONDS)
    raise ControlPlaneFailed(f"etcd is not ready:\n{process.log_tail()}")


def _asked(port: int, path: str, body: bytes | None) -> dict[str, Any]:
    url = f"http://{HOST}:{port}{path}"
    with urllib.request.urlopen(url, data=body, timeout=REQUEST_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
