"""`fencekv list`, `history`, `route`: what is shown in rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fencekv.cli.output import print_json, print_table, shown
from fencekv.cli.run import DONE, NO, client_options
from fencekv.errors import NotFound
from fencekv.wire import value_member

if TYPE_CHECKING:
    from fencekv.client import FenceKV
    from fencekv.results import Change, Entry

_PAGE_ITEMS_MAX = 1000


@click.command(name="list")
@click.argument("table")
@click.option("--prefix", default="", help="Keys that begin with it.")
@click.option("--start", default="", help="First key.")
@click.option("--end", default="", help="Key to stop before.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="Keys at most.")
@click.option("--all", "everything", is_flag=True, help="All keys, without a limit.")
@click.option("--cursor", default="", help="Go on where an earlier answer ended.")
@click.option("--consistency", type=click.Choice(["primary", "cached"]), default="primary", show_default=True)
@client_options
def list_keys(
    run: Any,
    output: str | None,
    table: str,
    prefix: str,
    start: str,
    end: str,
    limit: int,
    everything: bool,
    cursor: str,
    consistency: Any,
) -> None:
    """List the keys of TABLE in the order of their bytes."""

    async def act(client: FenceKV) -> int:
        entries: list[Entry] = []
        following: str | None = cursor
        while following is not None and (everything or len(entries) < limit):
            wanted = _PAGE_ITEMS_MAX if everything else min(limit - len(entries), _PAGE_ITEMS_MAX)
            page = await client.table(table).list_page(
                prefix=prefix, start=start, end=end, limit=wanted, cursor=following, consistency=consistency
            )
            entries += page.entries
            following = page.cursor
        if output == "json":
            items = [{"key": e.key, **value_member(e.value), "version": str(e.version)} for e in entries]
            print_json({"items": items, "cursor": following})
        else:
            print_table(["KEY", "VERSION", "VALUE"], [[e.key, e.version, shown(e.value)] for e in entries])
            _tell_of_more(following)
        return DONE

    run(act)


@click.command()
@click.argument("table")
@click.argument("key")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="Versions at most.")
@click.option("--all", "everything", is_flag=True, help="All versions, without a limit.")
@client_options
def history(run: Any, output: str | None, table: str, key: str, limit: int, everything: bool) -> None:
    """Show the versions of KEY in TABLE, newest first. Exit status 1: it never existed."""

    async def act(client: FenceKV) -> int:
        changes: list[Change] = []
        following: str | None = ""
        while following is not None and (everything or len(changes) < limit):
            wanted = _PAGE_ITEMS_MAX if everything else min(limit - len(changes), _PAGE_ITEMS_MAX)
            page = await client.table(table).history_page(key, limit=wanted, cursor=following)
            changes += page.changes
            following = page.cursor
        if not changes:
            raise NotFound(f"key {key!r} has no history in {table}", field="key")
        if output == "json":
            items = [
                {"version": str(c.version), **({"deleted": True} if c.value is None else value_member(c.value))}
                for c in changes
            ]
            print_json({"key": key, "items": items, "cursor": following})
        else:
            print_table(["VERSION", "VALUE"], [[c.version, shown(c.value)] for c in changes])
            _tell_of_more(following)
        return DONE

    run(act)


@click.command()
@click.argument("table")
@click.argument("key", required=False)
@client_options
def route(run: Any, output: str | None, table: str, key: str | None) -> None:
    """Show who owns the partitions of TABLE, or the one of KEY. Exit status 1: one has no owner."""

    async def act(client: FenceKV) -> int:
        document = await client.table(table).route(key=key)
        partitions = document["partitions"]
        if output == "json":
            print_json(document)
        else:
            names = ("partition", "epoch", "owner", "http", "token")
            print_table([n.upper() for n in names], [[entry[n] for n in names] for entry in partitions])
        return DONE if all(entry["owner"] for entry in partitions) else NO

    run(act)


def _tell_of_more(cursor: str | None) -> None:
    if cursor is not None:
        click.echo("there is more: --all, or a larger --limit", err=True)
