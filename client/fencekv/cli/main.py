"""`fencekv`: the group of commands."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points, version
from typing import Final

import click

from fencekv.cli.lazy import LazyGroup

# name: module, attribute, help
COMMANDS: Final = {
    "get": ("fencekv.cli.data", "get", "Print a key's value."),
    "put": ("fencekv.cli.data", "put", "Set a key."),
    "delete": ("fencekv.cli.data", "delete", "Remove a key."),
    "list": ("fencekv.cli.pages", "list_keys", "List keys with their values."),
    "txn": ("fencekv.cli.txn", "txn", "Compare, then do one thing or the other, atomically."),
    "history": ("fencekv.cli.pages", "history", "Show the versions of a key, newest first."),
    "route": ("fencekv.cli.pages", "route", "Show who owns the partitions of a table."),
    "check-history": ("fencekv.cli.check", "check_history", "Check the history of a drill, offline."),
    "bench": ("fencekv.cli.bench", "bench", "Measure puts through this SDK."),
    "completion": ("fencekv.cli.completion", "completion", "Print the completion script of a shell."),
}


@lru_cache(maxsize=1)
def _plug_ins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="fencekv.commands")}


def _built() -> str:
    """From which commit, as an image says it; empty outside of one."""
    commit = os.environ.get("FENCEKV_COMMIT", "")
    return f" (commit {commit})" if commit else ""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    plug_ins=lambda: _plug_ins(),  # noqa: PLW0108 (looked up anew: tests put others in its place)
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(
    package_name="fencekv", prog_name="fencekv", message=f"%(prog)s, version %(version)s{_built()}"
)
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
    click.echo(f'{{"version": "{number}"}}' if output == "json" else f"{number}{_built()}")
