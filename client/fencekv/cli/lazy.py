"""A group of commands that are loaded when they are chosen, with plug-ins.

Invariants:
  * Nothing but click is imported before a command is chosen, so that help and completion answer at once.
  * A plug-in (an entry point) never hides a command of our own, and takes none down when it cannot be loaded.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any, cast

import click


class LazyGroup(click.Group):
    """`table` has by name: module, attribute, help. `plug_ins` gives entry points by name."""

    def __init__(
        self,
        *arguments: Any,
        table: Mapping[str, tuple[str, str, str]],
        plug_ins: Callable[[], Mapping[str, EntryPoint]],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._table, self._plug_ins = table, plug_ins

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names: ours first, as they are documented."""
        return [*self._table, *self.commands, *(name for name in self._plug_ins() if name not in self._table)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads a command when it is chosen."""
        if cmd_name in self._table:
            module, attribute, _ = self._table[cmd_name]
            return cast(click.Command, getattr(importlib.import_module(module), attribute))
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        plug_in = self._plug_ins().get(cmd_name)
        return None if plug_in is None else _load(plug_in, program=ctx.find_root().info_name or "")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without loading our own."""
        rows = [(name, text) for name, (_, _, text) in self._table.items()]
        for name in self.list_commands(ctx)[len(self._table) :]:
            command = self.get_command(ctx, name)
            rows.append((name, command.get_short_help_str(80) if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _load(plug_in: EntryPoint, *, program: str) -> click.Command:
    try:
        loaded = plug_in.load()
    except Exception as error:  # a plug-in is other people's code: it must not take our commands down
        reason = f"cannot be loaded: {error}"

        @click.command(name=plug_in.name, help=f"({reason})", context_settings={"ignore_unknown_options": True})
        @click.argument("arguments", nargs=-1)
        def broken(arguments: tuple[str, ...]) -> None:
            click.echo(f"{program}: {plug_in.name} {reason}", err=True)
            sys.exit(3)

        return broken
    return cast(click.Command, loaded)
