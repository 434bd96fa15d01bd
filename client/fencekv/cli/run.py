"""What all commands that talk to shards share: options, running, exit statuses, errors.

Invariants:
  * Exit status: 0 done, 1 the answer is no, 2 wrong usage, 3 unavailable or unknown.
  * An error is one line on stderr; with `-o json` that line is the problem document.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import click

from fencekv.errors import Conflict, Denied, FenceKVError, Invalid, Lost, NotFound, TooLarge

if TYPE_CHECKING:
    from fencekv.client import FenceKV

DONE: Final = 0
NO: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3

Act = Callable[["FenceKV"], Awaitable[int]]


def exit_status(error: FenceKVError) -> int:
    """The exit status that an error becomes."""
    if isinstance(error, NotFound | Conflict | Denied | Lost):
        return NO
    return USAGE if isinstance(error, Invalid | TooLarge) else UNAVAILABLE


def report(error: FenceKVError, *, output: str, program: str = "fencekv") -> int:
    """Writes an error to stderr; returns the exit status."""
    if output == "json":
        click.echo(json.dumps(error.to_problem(), ensure_ascii=False), err=True)
    else:
        click.echo(f"{program}: {error.name}: {error.detail}", err=True)
    return exit_status(error)


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `-o`."""
    choice = click.Choice(["table", "json"])
    return click.option("-o", "--output", type=choice, default=None, help="Form of the answer.")(function)


def client_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of every command that needs shards; the command gets `run`, called with what to do."""

    @functools.wraps(function)
    def command(
        namespace: str,
        kube_namespace: str,
        kubeconfig: str,
        endpoint: tuple[str, ...],
        transport: Any,
        timeout: float,
        output: str | None,
        **arguments: Any,
    ) -> None:
        def connect() -> FenceKV:
            from fencekv.caller import Settings  # noqa: PLC0415 (after parsing: help must not wait for it)
            from fencekv.client import FenceKV  # noqa: PLC0415

            return FenceKV.connect(
                namespace=namespace,
                endpoints=endpoint,
                kubeconfig=kubeconfig,
                kube_namespace=kube_namespace,
                transport=transport or "",
                settings=Settings(timeout_seconds=timeout),
            )

        def run(act: Act) -> None:
            sys.exit(_run(connect, act, output or "table"))

        function(run=run, output=output, **arguments)

    options = [
        click.option(
            "-n", "--namespace", default="", help="KVNamespace [default: $FENCEKV_NAMESPACE, or the only one]."
        ),
        click.option("--kube-namespace", default="", help="Kubernetes namespace [default: the kubeconfig's]."),
        click.option("--kubeconfig", default="", type=click.Path(), help="How to reach the cluster."),
        click.option(
            "--endpoint", multiple=True, help="host:port of a shard, repeatable [default: $FENCEKV_ENDPOINT]."
        ),
        click.option(
            "--transport",
            type=click.Choice(["frames", "http"]),
            default=None,
            help="How shards are asked [default: $FENCEKV_TRANSPORT, or frames].",
        ),
        click.option(
            "--timeout",
            default=10.0,
            show_default=True,
            type=click.FloatRange(min=0.05, max=3600),
            help="Seconds, with all attempts.",
        ),
    ]
    wrapped = output_option(command)
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _run(connect: Callable[[], FenceKV], act: Act, output: str) -> int:
    from fencekv.access import NoAccess  # noqa: PLC0415

    async def session() -> int:
        async with connect() as client:
            return await act(client)

    try:
        return asyncio.run(session())
    except FenceKVError as error:
        return report(error, output=output)
    except NoAccess as error:
        return report(Invalid(str(error), field="kubeconfig"), output=output)
    except KeyboardInterrupt:
        return 130
