"""`fencekv get`, `put`, `delete`: one key each."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fencekv.cli.output import print_json, print_table, shown, text_or_none
from fencekv.cli.run import DONE, NO, client_options
from fencekv.errors import NotFound
from fencekv.token import Token, Version
from fencekv.wire import value_member

if TYPE_CHECKING:
    from fencekv.client import FenceKV

_DURABILITY: Final = click.option(
    "--durability", type=click.Choice(["standard", "replicated"]), default=None, help="More than the table's own."
)
_IF_VERSION: Final = click.option("--if-version", metavar="VERSION", default=None, help="Only if it stands there.")
_IDEMPOTENCY: Final = click.option(
    "--idempotency-key", default=None, help="Repeating with the same key answers with the first outcome."
)


@click.command()
@click.argument("table")
@click.argument("key")
@click.option("--consistency", type=click.Choice(["primary", "cached"]), default="primary", show_default=True)
@click.option("--min-token", metavar="TOKEN", default=None, help="Not older than this token.")
@client_options
def get(run: Any, output: str | None, table: str, key: str, consistency: Any, min_token: str | None) -> None:
    """Print the value of KEY in TABLE, as it is.

    With `-o table` or `-o json` its version is shown too.
    """

    async def act(client: FenceKV) -> int:
        least = Token.parse(min_token, field="--min-token") if min_token else None
        entry = await client.table(table).get(key, consistency=consistency, min_token=least)
        if entry is None:
            raise NotFound(f"key {key!r} does not exist in {table}", field="key")
        if output == "json":
            known = {"version": str(entry.version), "token": text_or_none(entry.token)}
            print_json({"key": key, **value_member(entry.value), **known})
        elif output == "table":
            print_table(["KEY", "VERSION", "VALUE"], [[key, entry.version, shown(entry.value)]])
        else:
            # Exactly the value, so that it can be piped; a terminal gets its line ended.
            click.echo(entry.value, nl=sys.stdout.isatty())
        return DONE

    run(act)


@click.command()
@click.argument("table")
@click.argument("key")
@click.argument("value", required=False)
@click.option(
    "-f", "--file", "path", type=click.Path(exists=True, dir_okay=False), help="Take the value from a file."
)
@_IF_VERSION
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@_DURABILITY
@_IDEMPOTENCY
@client_options
def put(
    run: Any,
    output: str | None,
    table: str,
    key: str,
    value: str | None,
    path: str | None,
    if_version: str | None,
    if_absent: bool,
    durability: Any,
    idempotency_key: str | None,
) -> None:
    """Set KEY in TABLE to VALUE; `-` reads the value from standard input."""
    if (value is None) == (path is None):
        raise click.UsageError("want one of VALUE and --file")
    if if_version and if_absent:
        raise click.UsageError("--if-version does not go with --if-absent")

    async def act(client: FenceKV) -> int:
        content = await asyncio.to_thread(_content, value, path)
        expected = Version.parse(if_version, field="--if-version") if if_version else None
        done = await client.table(table).put(
            key,
            content,
            if_version=expected,
            if_absent=if_absent,
            durability=durability,
            idempotency_key=idempotency_key,
        )
        if output == "json":
            known = {"version": str(done.version), "token": str(done.token), "partition": done.partition}
            print_json({"key": key, **known})
        else:
            print_table(
                ["KEY", "VERSION", "TOKEN", "PARTITION"], [[key, done.version, done.token, done.partition]]
            )
        return DONE

    run(act)


@click.command()
@click.argument("table")
@click.argument("key")
@_IF_VERSION
@_DURABILITY
@_IDEMPOTENCY
@client_options
def delete(
    run: Any,
    output: str | None,
    table: str,
    key: str,
    if_version: str | None,
    durability: Any,
    idempotency_key: str | None,
) -> None:
    """Remove KEY from TABLE. Exit status 1: it did not exist."""

    async def act(client: FenceKV) -> int:
        expected = Version.parse(if_version, field="--if-version") if if_version else None
        done = await client.table(table).delete(
            key, if_version=expected, durability=durability, idempotency_key=idempotency_key
        )
        if output == "json":
            known = {"version": text_or_none(done.version), "token": str(done.token), "partition": done.partition}
            print_json({"key": key, "existed": done.existed, **known})
        else:
            existed = "yes" if done.existed else "no"
            print_table(["KEY", "EXISTED", "VERSION", "TOKEN"], [[key, existed, done.version, done.token]])
        return DONE if done.existed else NO

    run(act)


def _content(value: str | None, path: str | None) -> bytes:
    if path is not None:
        return Path(path).read_bytes()
    if value == "-":
        return sys.stdin.buffer.read()
    # What the shell passed that is no UTF-8 comes back as the bytes that it was.
    return str(value).encode("utf-8", "surrogateescape")
