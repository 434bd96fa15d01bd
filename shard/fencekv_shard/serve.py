"""Puts a shard together from its environment, and runs it until it drains or its session is over."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fencekv.access import NoAccess, in_cluster
from fencekv.clock import SystemClock
from fencekv.kube import HttpKube
from fencekv.leases import MalformedLease, Session
from fencekv_shard import limits
from fencekv_shard.executor import WriterThreads
from fencekv_shard.faults import CutKube, Cuts, CutTransport
from fencekv_shard.meters import Meters
from fencekv_shard.node import Node, NodeConfig
from fencekv_shard.peer import TcpTransport
from fencekv_shard.server import start_server

logger = logging.getLogger(__name__)

# Few objects of a shard die in cycles; the default threshold stops the loop often for nothing.
GC_THRESHOLD: Final = 50_000
OPEN_FILES_MAX: Final = 1 << 20
# A thread that comes back from the disk must not wait for a busy loop as long as a commit takes.
SWITCH_SECONDS: Final = 0.0005


class BadConfiguration(Exception):
    """An environment variable is missing or wrong; the message names it."""


def config_of(environment: Mapping[str, str], *, namespace: str) -> NodeConfig:
    """Reads the environment that docs/formats.md describes."""
    try:
        host = environment["FENCEKV_POD_IP"]
        kvns = environment["FENCEKV_NAMESPACE"]
        session = Session.parse(environment["FENCEKV_SESSION"])
        ports = [
            int(environment.get(name, default))
            for name, default in (("FENCEKV_HTTP_PORT", "7070"), ("FENCEKV_PEER_PORT", "7071"))
        ]
    except (KeyError, ValueError, MalformedLease) as error:
        raise BadConfiguration(f"environment: {error}") from error
    address = f"[{host}]" if ":" in host else host
    return NodeConfig(
        kvns=kvns,
        namespace=namespace,
        session=session,
        data=Path(environment.get("FENCEKV_DATA", "/data")),
        http=f"{address}:{ports[0]}",
        peer=f"{address}:{ports[1]}",
    )


async def serve(environment: Mapping[str, str], *, on_fatal: Callable[[BaseException], None]) -> None:
    """Serves until SIGTERM, then drains; or until the session is over.

    Raises:
        BadConfiguration: it cannot begin.
        SessionOver: the session ended; another process must take over.
    """
    try:
        access = in_cluster(environment)
    except (NoAccess, OSError) as error:
        raise BadConfiguration(str(error)) from error
    config = config_of(environment, namespace=access.namespace)
    _allow_open_files()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    sys.setswitchinterval(SWITCH_SECONDS)
    clock = SystemClock()
    meters = Meters()
    threads = WriterThreads(clock=clock.now, meters=meters)
    watching = asyncio.ensure_future(_watch(threads))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    cuts = Cuts()
    if environment.get("FENCEKV_FAULTS"):
        cuts.listen(int(environment["FENCEKV_FAULTS"]))
    async with HttpKube(access, user_agent=f"fencekv-shard/{config.session.pod}") as kube:
        node = Node(
            config,
            kube=CutKube(kube, cuts),
            clock=clock,
            transport=CutTransport(TcpTransport(), cuts),
            executor=threads,
            new_id=lambda: secrets.token_hex(8),
            on_fatal=on_fatal,
            meters=meters,
        )
        host, _, port = config.http.rpartition(":")
        server = await start_server(node, host=host.strip("[]"), port=int(port), cuts=cuts)
        drained = False
        try:
            drained = await until_stopped(node, stopping)
        finally:
            server.goodbye("the shard stops")
            await node.stop(release=drained)
            await server.close()
            watching.cancel()
            threads.close()


def _allow_open_files() -> None:
    """Raises the limit of open files as far as it may be: each replica holds some, and 1,024 is a usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


async def _watch(threads: WriterThreads) -> None:
    while True:
        await asyncio.sleep(limits.TICK_SECONDS)
        threads.tick()


async def until_stopped(node: Node, stopping: asyncio.Event) -> bool:
    """Runs the node; True: it was told to stop, and has drained."""
    stop = asyncio.ensure_future(stopping.wait())
    start = asyncio.ensure_future(node.start())
    await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        return False
    start.result()
    logger.info("session %s taken", node.session.session)
    run = asyncio.ensure_future(node.run())
    await asyncio.wait([run, stop], return_when=asyncio.FIRST_COMPLETED)
    if not run.done():
        # A session that ends meanwhile has nothing left to give away.
        drain = asyncio.ensure_future(node.drain())
        await asyncio.wait([run, drain], return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            return True
        drain.cancel()
    stop.cancel()
    await run
    raise AssertionError("a shard runs until its session is over")
