"""The load generator from the side that starts it: the Go program under bench/load, and its stubs.

Invariants:
  * A load ends within its time, or is ended.
  * A run is a process of its own: the sandbox's API server, which shares this process's loop, is not in its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.table import KEYS, VALUE_BYTES

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = ROOT / "bench" / "load"
SLACK_SECONDS: Final = 40.0  # connecting, draining
FILL_SECONDS_MAX: Final = 1800.0
SEED: Final = 1
NAMESPACE: Final = "sample"


class LoadFailed(Exception):
    """A load could not be made; the message says why."""


class ToolMissing(Exception):
    """A program that is needed is not installed; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A load to make."""

    loader: str
    address: str
    op: str
    clients: int
    depth: int = 1
    warmup_seconds: float
    seconds: float
    keys: int = KEYS
    table: str = "bench"
    batch: int = 1  # puts of one transaction in a fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a job: of what completed in its window."""

    operations: int
    per_second: float
    seconds: float
    latency_ms: Mapping[str, float]
    errors: Mapping[str, int]
    cpu_seconds: float
    by_second: Sequence[int]


class Generator:
    """The built program."""

    def __init__(self, program: Path) -> None:
        self._program = program

    async def run(self, job: Job) -> Load:
        """Makes a load. Raises LoadFailed."""
        limit = FILL_SECONDS_MAX if job.op == "fill" else job.warmup_seconds + job.seconds
        command = {"sdk": sdk_command, "aiohttp": aiohttp_command}.get(job.loader, self._command)(job)
        return parsed(await _output(command, limit + SLACK_SECONDS))

    @contextlib.asynccontextmanager
    async def running(self, job: Job) -> AsyncIterator[asyncio.subprocess.Process]:
        """Makes a load beside what the block does, and ends it with the block."""
        process = await asyncio.create_subprocess_exec(
            *self._command(job), stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @contextlib.asynccontextmanager
    async def stub(self, loader: str) -> AsyncIterator[tuple[str, int]]:
        """A server that answers at once; gives its address and process id."""
        process = await asyncio.create_subprocess_exec(
            *(str(self._program), "stub", "-system", loader, "-value-bytes", str(VALUE_BYTES)),
            stdin=asyncio.subprocess.PIPE,  # it ends with it
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            yield (await process.stdout.readline()).decode().strip(), process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _command(self, job: Job) -> list[str]:
        options = {
            "system": job.loader,
            "address": job.address,
            "op": job.op,
            "clients": job.clients,
            "depth": job.depth,
            "seconds": job.seconds,
            "warmup": job.warmup_seconds,
            "keys": job.keys,
            "value-bytes": VALUE_BYTES,
            "seed": SEED,
            "batch": job.batch,
            "table": job.table,
            "namespace": NAMESPACE,
        }
        return [str(self._program), "run", *(f"-{name}={value}" for name, value in options.items())]


def sdk_command(job: Job) -> list[str]:
    """`fencekv bench`: the SDK's tasks in one process."""
    return [
        str(Path(sys.executable).with_name("fencekv")), "bench",
        "--endpoint", job.address,
        "--namespace", NAMESPACE,
        "--table", job.table,
        "--tasks", str(job.clients),
        "--seconds", str(job.seconds),
        "--warmup", str(job.warmup_seconds),
        "--keys", str(job.keys),
        "--value-bytes", str(VALUE_BYTES),
        "-o", "json",
    ]  # fmt: skip


def aiohttp_command(job: Job) -> list[str]:
    """The same by hand against etcd's gateway."""
    return [
        sys.executable, "-m", "bench.gateway",
        "--address", job.address,
        "--tasks", str(job.clients),
        "--seconds", str(job.seconds),
        "--warmup", str(job.warmup_seconds),
        "--keys", str(job.keys),
        "--value-bytes", str(VALUE_BYTES),
    ]  # fmt: skip


async def build(folder: Path) -> Generator:
    """Builds the program. Raises ToolMissing or LoadFailed."""
    go = shutil.which("go")
    if go is None:
        raise ToolMissing("go is not on PATH: the load generator (bench/load) needs Go 1.24 or newer")
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "load"
    process = await asyncio.create_subprocess_exec(
        *(go, "build", "-o", str(program), "."),
        cwd=SOURCE,
        env={**os.environ, "GOWORK": "off"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, told = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise LoadFailed(f"the load generator was not built:\n{told.decode(errors='replace')}")
    return Generator(program)


def parsed(text: str) -> Load:
    """What a load process printed. Raises LoadFailed. Pure."""
    try:
        told: dict[str, Any] = json.loads(text)
        return Load(
            operations=told["operations"],
            per_second=told["per_second"],
            seconds=told["seconds"],
            latency_ms=told["latency_ms"],
            errors=told["errors"],
            cpu_seconds=told["cpu_seconds"],
            by_second=told.get("by_second") or [],
        )
    except (ValueError, KeyError) as error:
        raise LoadFailed(f"the load process printed {text[:200]!r}") from error


async def _output(command: Sequence[str], seconds_max: float) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the parent, which ends it
    )
    try:
        async with asyncio.timeout(seconds_max):
            out, told = await process.communicate()
    except TimeoutError as error:
        raise LoadFailed(f"a load did not end within {seconds_max:g} s: {' '.join(command)}") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not out:  # with a document its errors are told there
        raise LoadFailed(f"{' '.join(command)}: {told.decode(errors='replace').strip()[-2000:]}")
    return out.decode()
