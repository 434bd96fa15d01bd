"""Redis with its own folder, an fsync before each acknowledgement (`appendfsync always`), and no snapshots.

Invariants:
  * What answers on the port is the process of this run: its own word for its process id is compared.
  * It ends with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fencekv_sandbox.controlplane import HOST, ControlPlaneFailed, Process, free_ports

READY_SECONDS_MAX: Final = 15.0
LOOK_SECONDS: Final = 0.05
INFO_BYTES_MAX: Final = 1 << 16
PROGRAM: Final = "redis-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """A running one."""

    address: str
    pids: list[int]
    version: str


def program() -> str | None:
    """Where it is; None: it is not installed."""
    return shutil.which(PROGRAM)


@contextlib.asynccontextmanager
async def redis(binary: str, folder: Path) -> AsyncIterator[Redis]:
    """Runs it. Raises ControlPlaneFailed."""
    folder.mkdir(parents=True)
    [port] = free_ports(1)
    process = Process("redis", _command(binary, folder, port), folder)
    try:
        await process.start()
        version = await _until_ready(process, port)
        assert process.pid is not None
        yield Redis(address=f"{HOST}:{port}", pids=[process.pid], version=version)
    finally:
        await process.stop()


def _command(binary: str, folder: Path, port: int) -> list[str]:
    return [
        binary,
        "--bind", HOST,
        "--port", str(port),
        "--dir", str(folder),
        "--save", "",
        "--appendonly", "yes",
        "--appendfsync", "always",
        "--daemonize", "no",
    ]  # fmt: skip


async def _until_ready(process: Process, port: int) -> str:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() - began < READY_SECONDS_MAX and not process.ended():
        with contextlib.suppress(OSError):
            told = await _info(port)
            if f"process_id:{process.pid}\r" not in told:
                raise ControlPlaneFailed(f"what answers on port {port} is not the Redis of this run")
            found = re.search(r"redis_version:(\S+)", told)
            return found.group(1) if found else ""
        await asyncio.sleep(LOOK_SECONDS)
    raise ControlPlaneFailed(f"Redis is not ready:\n{process.log_tail()}")


async def _info(port: int) -> str:
    reader, writer = await asyncio.open_connection(HOST, port, limit=INFO_BYTES_MAX)
    try:
        writer.write(b"INFO server\r\n")
        size = int((await reader.readline())[1:])
        return (await reader.readexactly(size)).decode()
    except (ValueError, asyncio.IncompleteReadError) as error:
        raise OSError("no answer to INFO") from error
    finally:
        writer.close()
