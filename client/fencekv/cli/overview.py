"""`kubectl fencekv status`: namespaces, tables and partitions, once or for as long as one watches."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from fencekv.cli.output import print_document, print_table
from fencekv.cli.reach import PROGRAM, Reach, cluster_options
from fencekv.cli.run import DONE
from fencekv.errors import NotFound

if TYPE_CHECKING:
    from fencekv.cli.status import Cluster


@click.command()
@click.argument("name", required=False, default="", metavar="[NAMESPACE|TABLE|PARTITION]")
@click.option("-w", "--watch", is_flag=True, help="Show it again whenever it changes, until Ctrl-C.")
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0.2, max=3600),
    help="With --watch: seconds between two looks.",
)
@cluster_options
def status(reach: Any, output: str, name: str, watch: bool, interval: float) -> None:
    """Show namespaces, tables and partitions: epochs, owners, who is in sync, and what is wrong.

    NAME may be a KVNamespace, a KVTable or a KVPartition: then only that and what belongs to it is shown.

    Exit status 1: there is nothing of that name.
    """

    async def act(cluster: Reach) -> int:
        from fencekv.kube import Unclear  # noqa: PLC0415 (help must not wait for it)

        shown: dict[str, Any] | None = None
        while True:
            try:
                document = await _look(cluster, name)
            except Unclear as error:
                if shown is None:
                    raise
                # Who watches a failover wants to see how it goes on.
                click.echo(f"{PROGRAM}: the Kubernetes API: {error}", err=True)
                document = shown
            if not watch or without_renewals(document) != without_renewals(shown):
                if watch and sys.stdout.isatty():
                    click.clear()
                elif shown is not None:
                    click.echo("---" if output == "yaml" else "")
                _show(document, output)
                shown = document
            if not watch:
                return DONE
            await asyncio.sleep(interval)

    reach(act)


def without_renewals(document: dict[str, Any] | None) -> Any:
    """What a change of is worth showing: every session renews all the time."""
    if document is None:
        return None
    spaces = [
        {**space, "shards": [{**shard, "renewal": None} for shard in space["shards"]]}
        for space in document["namespaces"]
    ]
    return {**document, "namespaces": spaces}


async def _look(cluster: Reach, name: str) -> dict[str, Any]:
    from fencekv.cli.status import status as status_of  # noqa: PLC0415 (after parsing: help must not wait for it)

    document = status_of(await read(cluster), name=name)
    if document is None:
        raise NotFound(f"no KVNamespace, KVTable or KVPartition is called {name}: {name} does not exist")
    return document


async def read(cluster: Reach) -> Cluster:
    """The custom resources and Leases of the Kubernetes namespace."""
    from fencekv.cli.status import Cluster  # noqa: PLC0415
    from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, KV_TABLES, LEASES  # noqa: PLC0415
    from fencekv.leases import LABEL_KIND  # noqa: PLC0415

    kinds = ((KV_NAMESPACES, ""), (KV_TABLES, ""), (KV_PARTITIONS, ""), (LEASES, LABEL_KIND))
    namespaces, tables, partitions, leases = await asyncio.gather(
        *(cluster.all_of(kind, labels=labels) for kind, labels in kinds)
    )
    return Cluster(namespaces=namespaces, tables=tables, partitions=partitions, leases=leases)


def _show(document: dict[str, Any], output: str) -> None:
    if output != "table":
        print_document(document, output)
        return
    shards = [(ns["name"], shard) for ns in document["namespaces"] for shard in ns["shards"]]
    rows: list[list[object]] = [[ns, s["pod"], s["state"], s["http"], s["renewal"]] for ns, s in shards]
    print_table(["NAMESPACE", "SHARD", "SESSION", "HTTP", "RENEWAL"], rows)
    click.echo()
    names = ("name", "namespace", "partitions", "serving", "replicas", "durability")
    rows = [[*(t[n] for n in names), "yes" if t["ready"] else "no"] for t in document["tables"]]
    print_table(["TABLE", "NAMESPACE", "PARTITIONS", "SERVING", "REPLICAS", "DURABILITY", "READY"], rows)
    click.echo()
    columns = ("partition", "epoch", "owner", "inSync", "token", "lag", "phase", "record")
    rows = [[",".join(p[n]) if n == "inSync" else p[n] for n in columns] for p in document["partitions"]]
    print_table(["PARTITION", "EPOCH", "OWNER", "IN-SYNC", "TOKEN", "LAG", "PHASE", "RECORD"], rows)
    for kind, member in (("namespaces", "name"), ("tables", "name"), ("partitions", "partition")):
        for item in document[kind]:
            for wrong in item["conditions"]:
                click.echo(f"{item[member]}: {wrong['type']} ({wrong['reason']}): {wrong['message']}")
    if any(not each["ready"] for each in document["partitions"]):
        click.echo("\n`kubectl fencekv why PARTITION` says what blocks one, and what to do.")
