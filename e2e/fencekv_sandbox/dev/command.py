"""The command `fencekv dev`.

Only click is imported here: every other command of `fencekv` loads this module for its help.
"""

from __future__ import annotations

from pathlib import Path

import click

UNAVAILABLE = 3


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".fencekv"),
    show_default=True,
    help="Folder for objects, volumes and logs; a later start goes on with it.",
)
@click.option("--shards", type=click.IntRange(1, 20), default=3, show_default=True, help="Shard pods to run.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the API server; by default that of last time, or a free one.",
)
@click.option("--exit", "ends", is_flag=True, help="Show the failover, then stop everything.")
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def dev(*, data: Path, shards: int, port: int, ends: bool, output: str) -> None:
    """Run FenceKV on this machine: API server, operator and shards, with the sample table.

    Puts and gets a key, kills the owner's process with -9 and shows the failover. Then everything stays up until
    Ctrl-C.
    """
    from fencekv_sandbox.dev.show import Wish, show  # noqa: PLC0415  (see above)

    raise SystemExit(show(Wish(data=data, shards=shards, port=port, ends=ends, as_json=output == "json")))
