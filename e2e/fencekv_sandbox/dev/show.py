"""What `fencekv dev` does, step by step, and how it tells of it.

Invariants:
  * With JSON, standard output carries one document and nothing else; progress goes to standard error.
  * The exit status is 0 only if the failover happened and nothing acknowledged was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.status import Status

from fencekv.errors import FenceKVError
from fencekv.kube import KubeError, Unclear
from fencekv_sandbox import assets
from fencekv_sandbox.pods import FolderInUse, NotRunning
from fencekv_sandbox.sandbox import NotReady, Sandbox

from .drill import NoFailover, Outcome, drill

GOOD: Final = 0
NOT_GOOD: Final = 1
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130
READY_SECONDS_MAX: Final = 60.0
CLOSE_SECONDS: Final = 3.0
TABLE: Final = "orders"
KVNS: Final = "sample"
KEY: Final = "greeting"
TROUBLES: Final = (FenceKVError, KubeError, Unclear, NotReady, NoFailover, NotRunning, FolderInUse, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    data: Path
    shards: int
    port: int
    ends: bool
    as_json: bool


class Teller:
    """Progress for people, one line a step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = asyncio.get_running_loop().time
        self._start = self._clock()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._start

    @contextlib.contextmanager
    def step(self, doing: str) -> Iterator[list[str]]:
        """A step; what is put into the list stands behind it when it is done."""
        details: list[str] = []
        began = self._clock()
        with Status(f"{doing} …", console=self._console):
            yield details
        took = f"[dim]{self._clock() - began:5.2f} s[/dim]"
        self._console.print(f"[green]✓[/green] {took}  {doing}{'  ' if details else ''}{' '.join(details)}")

    def say(self, text: str = "") -> None:
        """A line."""
        self._console.print(text, highlight=False, soft_wrap=True)


def show(wish: Wish) -> int:
    """Runs the command; returns its exit status."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(name)s: %(message)s")
    try:
        return asyncio.run(_until_signal(wish))
    except KeyboardInterrupt:
        return INTERRUPTED


async def _until_signal(wish: Wish) -> int:
    """The whole run, ended in order by SIGINT and SIGTERM."""
    loop, console = asyncio.get_running_loop(), Console(stderr=wish.as_json)
    work = asyncio.create_task(_run(wish, Teller(console)))
    asked: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        asked.append(number)
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not asked:
            raise
        return INTERRUPTED
    except TROUBLES as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return UNAVAILABLE


async def _run(wish: Wish, teller: Teller) -> int:
    sandbox = Sandbox(data=wish.data, port=wish.port, close_seconds=CLOSE_SECONDS)
    async with _opened(sandbox, teller):
        outcome = await _present(sandbox, wish, teller)
        if wish.as_json:
            sys.stdout.write(json.dumps(outcome.document()) + "\n")
            sys.stdout.flush()
        if not outcome.is_good or wish.ends:
            return GOOD if outcome.is_good else NOT_GOOD
        _invite(sandbox, teller)
        # From here on a signal is the regular end.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        teller.say("\nstopping …")
    return GOOD


@contextlib.asynccontextmanager
async def _opened(sandbox: Sandbox, teller: Teller) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        with teller.step("API server, operator and pod runner started") as details:
            await stack.enter_async_context(sandbox)
            assert sandbox.server is not None
            details.append(sandbox.server.url)
        yield


async def _present(sandbox: Sandbox, wish: Wish, teller: Teller) -> Outcome:
    """The sample, a put, a get, and the failover."""
    with teller.step(f"{wish.shards} shard{'s run' if wish.shards > 1 else ' runs'}, table {TABLE} is Ready"):
        await sandbox.apply(list(_samples(wish.shards)))
        await sandbox.wait_ready(TABLE, seconds=READY_SECONDS_MAX)
    ready_seconds = teller.seconds
    async with sandbox.client(KVNS) as client:
        table = client.table(TABLE)
        with teller.step(f"put {KEY}") as details:
            written = await table.put(KEY, b"hello")
            details.append(f"version {written.version} in {written.partition}")
        with teller.step(f"get {KEY}") as details:
            entry = await table.get(KEY)
            details.append(repr(entry.value.decode()) if entry else "not found")
        with teller.step("the owner was killed with -9 while clients wrote"):
            outcome = await drill(sandbox, table, run=secrets.token_hex(4), ready_seconds=ready_seconds)
    teller.say(
        f"  owner  {outcome.owner_before} (epoch {outcome.epoch_before}) → "
        f"{outcome.owner_after} (epoch {outcome.epoch_after})\n"
        f"  writes again after [bold]{outcome.failover_seconds:.2f} s[/bold]; "
        f"{outcome.acknowledged} writes acknowledged, "
        f"{'[green]none' if not outcome.lost else f'[red]{outcome.lost}'} lost[/]"
    )
    return outcome


def _samples(shards: int) -> Iterator[dict[str, Any]]:
    """The samples, for so many shards; with fewer than three a table keeps fewer standbys."""
    for obj in assets.samples():
        spec = obj["spec"]
        if obj["kind"] == "KVNamespace":
            spec["shards"]["replicas"] = shards
        elif obj["kind"] == "KVTable":
            spec["replicas"] = min(int(spec["replicas"]), shards - 1)
            if not spec["replicas"]:
                spec["durability"] = "standard"
                spec.pop("minInSync", None)
        yield obj


def _invite(sandbox: Sandbox, teller: Teller) -> None:
    kubeconfig = _short(sandbox.kubeconfig)
    folder = Path(sys.argv[0]).parent
    program, plugin = _short(folder / "fencekv"), _short(folder / "kubectl-fencekv")
    teller.say(f"\nkubeconfig  [bold]{kubeconfig}[/bold]    logs  {_short(sandbox.data / 'logs')}\n")
    teller.say("Try, in another terminal:")
    for command in (
        f"{program} get {TABLE} {KEY} --kubeconfig {kubeconfig}",
        f"{plugin} status --kubeconfig {kubeconfig}",
        f"kubectl --kubeconfig {kubeconfig} get kvpartitions,leases,pods",
    ):
        teller.say(f"  [cyan]{command}[/cyan]")
    teller.say("\nCtrl-C stops everything; a later start goes on with the same data.")


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)
