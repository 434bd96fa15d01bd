"""`kubectl-fencekv`: what the cluster says of FenceKV; kubectl finds it as `kubectl fencekv`."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from fencekv.cli.output import print_json, print_table
from fencekv.cli.run import output_option, report
from fencekv.errors import FenceKVError, Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from fencekv.cli.status import Cluster

PROGRAM = "kubectl-fencekv"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fencekv", prog_name=PROGRAM)
def main() -> None:
    """Look at FenceKV in a cluster.

    Exit status: 0 done, 1 the answer is no, 2 wrong usage, 3 unavailable.
    """


@main.command()
@click.argument("table", required=False, default="")
@click.option("-n", "--namespace", default="", help="Kubernetes namespace [default: the kubeconfig's].")
@click.option("--kubeconfig", default="", type=click.Path(), help="How to reach the cluster.")
@click.option("--context", "context_name", default="", help="Context of the kubeconfig.")
@output_option
def status(table: str, namespace: str, kubeconfig: str, context_name: str, output: str | None) -> None:
    """Show namespaces, tables and partitions: epochs, owners, who is in sync.

    Exit status 1: TABLE does not exist.
    """
    try:
        document = asyncio.run(_document(table, namespace, kubeconfig, context_name))
    except FenceKVError as refusal:
        sys.exit(report(refusal, output=output or "table", program=PROGRAM))
    if table and not document["tables"]:
        error = NotFound(f"table {table} does not exist", field="table")
        sys.exit(report(error, output=output or "table", program=PROGRAM))
    if output == "json":
        print_json(document)
    else:
        _print(document)


async def _document(table: str, namespace: str, kubeconfig: str, context: str) -> dict[str, Any]:
    from fencekv import access  # noqa: PLC0415 (after parsing: help must not wait for it)
    from fencekv.cli.status import status as status_of  # noqa: PLC0415
    from fencekv.kube import HttpKube, KubeError, Unclear  # noqa: PLC0415

    try:
        way = await asyncio.to_thread(access.find, os.environ, kubeconfig=kubeconfig, context=context)
    except access.NoAccess as error:
        raise Invalid(str(error), field="kubeconfig") from error
    async with HttpKube(way, user_agent=PROGRAM) as kube:
        try:
            cluster = await _read(kube, namespace or way.namespace)
        except (KubeError, Unclear) as error:
            raise Unavailable(f"the Kubernetes API: {error}") from error
    return status_of(cluster, table=table)


async def _read(kube: Any, namespace: str) -> Cluster:
    from fencekv.cli.status import Cluster  # noqa: PLC0415 (after parsing: help must not wait for it)
    from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, KV_TABLES, LEASES  # noqa: PLC0415
    from fencekv.leases import LABEL_KIND  # noqa: PLC0415

    kinds = ((KV_NAMESPACES, ""), (KV_TABLES, ""), (KV_PARTITIONS, ""), (LEASES, LABEL_KIND))
    listings = await asyncio.gather(*(kube.list(kind, namespace, labels=labels) for kind, labels in kinds))
    namespaces, tables, partitions, leases = (listing.items for listing in listings)
    return Cluster(namespaces=namespaces, tables=tables, partitions=partitions, leases=leases)


def _print(document: dict[str, Any]) -> None:
    shards = [(ns["name"], shard) for ns in document["namespaces"] for shard in ns["shards"]]
    rows: list[list[object]] = [[ns, s["pod"], s["state"], s["http"], s["renewal"]] for ns, s in shards]
    print_table(["NAMESPACE", "SHARD", "SESSION", "HTTP", "RENEWAL"], rows)
    click.echo()
    names = ("name", "namespace", "partitions", "serving", "replicas", "durability")
    rows = [[*(t[n] for n in names), "yes" if t["ready"] else "no"] for t in document["tables"]]
    print_table(["TABLE", "NAMESPACE", "PARTITIONS", "SERVING", "REPLICAS", "DURABILITY", "READY"], rows)
    click.echo()
    rows = [
        [
            p["partition"],
            p["epoch"],
            p["owner"],
            ",".join(p["inSync"]),
            p["token"],
            p["lag"],
            p["phase"],
            p["record"],
        ]
        for p in document["partitions"]
    ]
    print_table(["PARTITION", "EPOCH", "OWNER", "IN-SYNC", "TOKEN", "LAG", "PHASE", "RECORD"], rows)
    for kind, name in (("namespaces", "name"), ("tables", "name"), ("partitions", "partition")):
        for item in document[kind]:
            for wrong in item["conditions"]:
                click.echo(f"{item[name]}: {wrong['type']} ({wrong['reason']}): {wrong['message']}")
