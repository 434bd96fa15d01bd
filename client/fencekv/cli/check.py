"""`fencekv check-history`: judges the history of a drill, offline."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fencekv.cli.output import print_json, print_table
from fencekv.cli.run import DONE, NO, output_option, report
from fencekv.errors import FenceKVError, Invalid

FILE_BYTES_MAX = 16 * 1024 * 1024


@click.command(name="check-history")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_option
def check_history(file: Path, output: str | None) -> None:
    """Check the history of a drill in FILE: nothing lost, nothing stale acknowledged, an order that explains all.

    Asks no server. Exit status 1: something is wrong; it is named.
    """
    from fencekv import drill_history  # noqa: PLC0415 (help must not wait for it)

    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise Invalid(f"file: over {FILE_BYTES_MAX} bytes", field="file", limit=FILE_BYTES_MAX)
        drill = drill_history.from_bytes(file.read_bytes())
    except FenceKVError as error:
        sys.exit(report(error, output=output or "table"))
    verdict = drill_history.judge(drill)
    found = drill_history.summary(verdict)
    if output == "json":
        print_json({**drill.head, **found})
    else:
        shown = {**drill.head, **{name: value for name, value in found.items() if name != "problems"}}
        print_table(["WHAT", "FOUND"], [[name, value] for name, value in shown.items()])
        for problem in verdict.problems:
            click.echo(problem, err=True)
    sys.exit(DONE if verdict.good else NO)
