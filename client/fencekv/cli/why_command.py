"""`kubectl fencekv why`: looks, looks again where something blocks, and says what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fencekv.cli.output import print_document
from fencekv.cli.reach import OPERATOR_NAMESPACE, Reach, cluster_options
from fencekv.cli.run import DONE, NO
from fencekv.errors import NotFound

if TYPE_CHECKING:
    from fencekv.cli.observed import Cause, Observed


@click.command()
@click.argument("partition")
@click.option(
    "--operator-namespace",
    default=OPERATOR_NAMESPACE,
    show_default=True,
    help="Kubernetes namespace of the operator, whose Lease says whether it lives.",
)
@cluster_options
def why(reach: Any, output: str, partition: str, operator_namespace: str) -> None:
    """Say what blocks PARTITION, since when, and what to do; changes nothing.

    Leases, custom resources, pods and volumes are read, and shards are asked for their reports. If something
    blocks, it looks a second time, 2.5 s later: who renewed its session in between lives, whatever clocks say.

    Exit status 1: something blocks it, or there is no such partition.
    """

    async def act(cluster: Reach) -> int:
        from fencekv.cli.observe import look_again, observe  # noqa: PLC0415 (help must not wait for it)
        from fencekv.cli.observed import holds  # noqa: PLC0415
        from fencekv.cli.why import explain, is_blocked  # noqa: PLC0415

        seen = await observe(cluster, partition, operator_namespace=operator_namespace)
        if seen is None:
            raise NotFound(await _nothing_there(cluster, partition), field="partition")
        causes = explain(seen)
        if is_blocked(causes) or not holds(seen.partition, "Ready") or holds(seen.partition, "Degraded"):
            seen = await look_again(cluster, seen, operator_namespace=operator_namespace)
            causes = explain(seen)
        if output == "table":
            _print(seen, causes)
        else:
            blocked = is_blocked(causes)
            document = {"partition": partition, "blocked": blocked, "causes": [each.document() for each in causes]}
            print_document(document, output)
        return NO if is_blocked(causes) else DONE

    reach(act)


async def _nothing_there(cluster: Reach, partition: str) -> str:
    """There is no such KVPartition; its table may know why."""
    from fencekv.cli.observed import condition, holds  # noqa: PLC0415
    from fencekv.kube import KV_TABLES  # noqa: PLC0415

    text = f"KVPartition {partition} does not exist"
    table = await cluster.get(KV_TABLES, partition.rpartition("-")[0] or partition)
    if table is None:
        return text
    kind = "Stalled" if holds(table, "Stalled") else "Ready"
    told = condition(table, kind)
    return f"{text}; KVTable {table['metadata']['name']}: {told.get('reason')}: {told.get('message') or 'no word'}"


def _print(seen: Observed, causes: list[Cause]) -> None:
    phase = (seen.partition.get("status") or {}).get("phase") or "no phase"
    click.echo(f"{seen.name} ({phase})")
    for cause in causes:
        mark = "blocked" if cause.blocks else "note" if cause.state != "Serving" else "ok"
        step = f" [{cause.step}]" if cause.step else ""
        when = f" since {cause.since}" if cause.since else ""
        click.echo(f"\n{mark}: {cause.state}{step}{when}\n  {cause.what}.")
        if cause.do:
            click.echo(f"  What to do: {cause.do}.")
