"""`fencekv`: the group of commands.

Invariants:
  * Nothing but click is imported before a command is chosen, so that help and completion answer at once.
  * A plug-in (entry point `fencekv.commands`) never hides a command of our own.
"""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points, version
from typing import Final, cast

import click

# name: module, attribute, help
COMMANDS: Final = {
    "get": ("fencekv.cli.data", "get", "Print a key's value."),
    "put": ("fencekv.cli.data", "put", "Set a key."),
    "delete": ("fencekv.cli.data", "delete", "Remove a key."),
    "list": ("fencekv.cli.pages", "list_keys", "List keys with their values."),
    "txn": ("fencekv.cli.txn", "txn", "Compare, then do one thing or the other, atomically."),
    "history": ("fencekv.cli.pages", "history", "Show the versions of a key, newest first."),
    "route": ("fencekv.cli.pages", "route", "Show who owns the partitions of a table."),
    "bench": ("fencekv.cli.bench", "bench", "Measure puts through this SDK."),
    "completion": ("fencekv.cli.completion", "completion", "Print the completion script of a shell."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names: ours first, as they are documented."""
        return [*COMMANDS, "version", *(name for name in _plug_ins() if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads a command when it is chosen."""
        if cmd_name in COMMANDS:
            module, attribute, _ = COMMANDS[cmd_name]
            return cast(click.Command, getattr(importlib.import_module(module), attribute))
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        plug_in = _plug_ins().get(cmd_name)
        return None if plug_in is None else _load(plug_in)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without loading our own."""
        rows = [(name, text) for name, (_, _, text) in COMMANDS.items()]
        for name in self.list_commands(ctx)[len(COMMANDS) :]:
            command = self.get_command(ctx, name)
            rows.append((name, command.get_short_help_str(80) if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@lru_cache(maxsize=1)
def _plug_ins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="fencekv.commands")}


def _load(plug_in: EntryPoint) -> click.Command:
    try:
        loaded = plug_in.load()
    except Exception as error:  # a plug-in is other people's code: it must not take our commands down
        reason = f"cannot be loaded: {error}"

        @click.command(name=plug_in.name, help=f"({reason})", context_settings={"ignore_unknown_options": True})
        @click.argument("arguments", nargs=-1)
        def broken(arguments: tuple[str, ...]) -> None:
            click.echo(f"fencekv: {plug_in.name} {reason}", err=True)
            sys.exit(3)

        return broken
    return cast(click.Command, loaded)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fencekv", prog_name="fencekv")
def main() -> None:
    """FenceKV: small records that must never be wrong.

    The cluster is found by --kubeconfig, KUBECONFIG, ./.fencekv/kubeconfig, or not needed at all with --endpoint.

    Exit status: 0 done, 1 the answer is no (no such key, condition not held), 2 wrong usage, 3 unavailable.
    """


@main.command(name="version")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the answer.")
def show_version(output: str) -> None:
    """Print the version."""
    number = version("fencekv")
    click.echo(f'{{"version": "{number}"}}' if output == "json" else number)
