"""`python -m fencekv_sandbox.apiserver`: the API server alone."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from .http import DEFAULT_TOKEN, serve


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fencekv_sandbox.apiserver", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that keeps the objects; nothing is kept without")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--kubeconfig", type=Path, help="write a kubeconfig here")
    parser.add_argument("--sync", action="store_true", help="flush each commit to the disk before its answer")
    parser.add_argument(
        "--token",
        action="append",
        default=[],
        metavar="TOKEN=USER",
        help="accept this bearer token for this user, and no unknown ones",
    )
    return parser.parse_args()


async def _run(arguments: argparse.Namespace) -> None:
    tokens = dict(pair.split("=", 1) for pair in arguments.token)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serve(data=arguments.data, port=arguments.port, tokens=tokens, sync=arguments.sync) as server:
        if arguments.kubeconfig is not None:
            server.kubeconfig(arguments.kubeconfig, token=next(iter(tokens), DEFAULT_TOKEN))
        print(f"listening on {server.url}", flush=True)
        await stopped.wait()


def main() -> None:
    """Run until interrupted."""
    asyncio.run(_run(_arguments()))


if __name__ == "__main__":
    main()
