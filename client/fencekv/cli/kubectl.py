"""`kubectl-fencekv`: FenceKV in a cluster; kubectl finds it as `kubectl fencekv`."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points, version
from typing import Final

import click
from click.shell_completion import ShellComplete

from fencekv.cli.lazy import LazyGroup

PROGRAM: Final = "kubectl-fencekv"
NO_FILES: Final = ":4"  # what kubectl is told beside completions: complete no names of files

# name: module, attribute, help
COMMANDS: Final = {
    "status": ("fencekv.cli.overview", "status", "Show namespaces, tables and partitions, once or all the time."),
    "why": ("fencekv.cli.why_command", "why", "Say what blocks a partition, since when, and what to do."),
    "promote": ("fencekv.cli.operate", "promote", "Move a partition to another shard, or accept a loss."),
    "drill": ("fencekv.cli.operate", "drill", "Prove a failover by doing one, and check every write of it."),
    "report": ("fencekv.cli.bundle_command", "report", "Gather what an expert would ask for, secrets left out."),
    "completion": ("fencekv.cli.completion", "kubectl_completion", "Print the completion script of a shell."),
}


@lru_cache(maxsize=1)
def _plug_ins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="fencekv.kubectl_commands")}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    plug_ins=lambda: _plug_ins(),  # noqa: PLW0108 (looked up anew: tests put others in its place)
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="fencekv", prog_name=PROGRAM)
def main() -> None:
    """Look at FenceKV in a cluster, and operate it.

    The cluster is found by --kubeconfig, KUBECONFIG, ./.fencekv/kubeconfig, ~/.kube/config.

    Exit status: 0 done, 1 the answer is no (nothing of that name, it is blocked, the drill failed), 2 wrong usage,
    3 unavailable.
    """


@main.command(name="version")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Form of the answer.")
def show_version(output: str) -> None:
    """Print the version."""
    number = version("fencekv")
    click.echo(f'{{"version": "{number}"}}' if output == "json" else number)


def complete() -> None:
    """Entry point of `kubectl_complete-fencekv`, which kubectl asks for completions of `kubectl fencekv`."""
    *words, incomplete = sys.argv[1:] or [""]
    found = ShellComplete(main, {}, PROGRAM, "").get_completions(words, incomplete)
    for each in found:
        click.echo(f"{each.value}\t{each.help}" if each.help else each.value)
    click.echo(NO_FILES)
