"""`kubectl fencekv plan`: what an apply would move, without doing it.

Invariants:
  * It reads, and asks the API server for a dry run; it writes nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
import yaml

from fencekv.cli.output import print_document, print_table
from fencekv.cli.reach import Reach, cluster_options
from fencekv.cli.run import DONE, NO
from fencekv.errors import Invalid

if TYPE_CHECKING:
    from fencekv_operator.forecast import Forecast, Seen

Object = dict[str, Any]

FILE_BYTES_MAX: Final = 4 << 20
OBJECTS_MAX: Final = 1000


@click.command(name="plan")
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    type=click.File("rb"),
    help="KVTables and KVNamespaces as they would be applied, '-' for the standard input; repeatable. "
    "Without it: what is on its way now.",
)
@cluster_options
def plan(reach: Any, output: str, files: tuple[Any, ...]) -> None:
    """Show which replicas and owners an apply would move, without doing it.

    The steps are the operator's own, taken on what the cluster shows now. A file is taken as the whole object:
    what it leaves out gets its default. Owners that move for balance alone, a while later, are not shown.

    Exit status: 0 nothing would move, 1 something would, 2 the API server would refuse it, 3 unavailable.
    """
    wanted = [each for file in files for each in _objects(file)]

    async def act(cluster: Reach) -> int:
        from fencekv_operator.forecast import forecast  # noqa: PLC0415 (after parsing: help must not wait for it)
        from fencekv_operator.settings import OperatorSettings  # noqa: PLC0415

        seen = await _seen(cluster, wanted)
        found = forecast(seen, OperatorSettings(image="", namespace=""))
        sizes = await _sizes(cluster, seen, found)
        _show(found, sizes, output)
        return NO if found.moves else DONE

    reach(act)


def _objects(file: Any) -> list[Object]:
    name = getattr(file, "name", "-")
    raw = file.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise click.BadParameter(f"{name}: more than {FILE_BYTES_MAX} bytes")
    try:
        documents = [each for each in yaml.safe_load_all(raw) if each is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{name}: not YAML: {error}") from error
    found: list[Object] = []
    for each in documents:
        if not isinstance(each, dict) or not isinstance(each.get("metadata"), dict):
            raise click.BadParameter(f"{name}: not a Kubernetes object")
        if each.get("kind") in {"KVTable", "KVNamespace"}:
            found.append(each)
    if len(found) > OBJECTS_MAX:
        raise click.BadParameter(f"{name}: more than {OBJECTS_MAX} objects")
    if not found:
        raise click.BadParameter(f"{name}: holds neither a KVTable nor a KVNamespace")
    return found


async def _seen(cluster: Reach, wanted: Iterable[Object]) -> Seen:
    from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, KV_TABLES, PODS  # noqa: PLC0415
    from fencekv.leases import KIND_SHARD, LABEL_KIND  # noqa: PLC0415
    from fencekv_operator.forecast import Seen  # noqa: PLC0415

    spaces, tables, partitions, pods = await asyncio.gather(
        cluster.all_of(KV_NAMESPACES),
        cluster.all_of(KV_TABLES),
        cluster.all_of(KV_PARTITIONS),
        cluster.all_known(PODS, labels=f"{LABEL_KIND}={KIND_SHARD}"),
    )
    by_kind = {"KVNamespace": _by_name(spaces), "KVTable": _by_name(tables)}
    for each in wanted:
        known = by_kind[each["kind"]]
        known[str(each["metadata"].get("name"))] = await _applied(cluster, each, known)
    return Seen(
        spaces=by_kind["KVNamespace"],
        tables=by_kind["KVTable"],
        partitions=[each for each in partitions if "deletionTimestamp" not in each["metadata"]],
        pods=_by_name(pods),
        nodes=await _nodes(cluster, pods),
    )


async def _applied(cluster: Reach, wanted: Object, known: Mapping[str, Object]) -> Object:
    """The object as the server would store it."""
    from fencekv.kube import KV_NAMESPACES, KV_TABLES  # noqa: PLC0415

    resource = KV_TABLES if wanted["kind"] == "KVTable" else KV_NAMESPACES
    meta = wanted["metadata"]
    place = meta.get("namespace") or cluster.namespace
    if place != cluster.namespace:
        raise Invalid(f"it lies in {place}, and this plan is of {cluster.namespace}", field="metadata.namespace")
    there = known.get(str(meta.get("name")))
    if there is None:
        body = {**wanted, "metadata": {**meta, "namespace": place}}
        made = await cluster.kube.dry_run(resource, place, body, exists=False)
        # A dry run need not give what only a stored object has.
        made["metadata"] = {"uid": "", "resourceVersion": "", **made["metadata"]}
        return made
    body = {**there, "spec": wanted.get("spec") or {}}
    return await cluster.kube.dry_run(resource, place, body, exists=True)


async def _nodes(cluster: Reach, pods: Iterable[Object]) -> dict[str, Mapping[str, str]]:
    """Labels of the nodes that shards run on, as far as they may be read."""
    from fencekv.kube import KubeError  # noqa: PLC0415
    from fencekv_operator.nodes import NODES  # noqa: PLC0415

    found: dict[str, Mapping[str, str]] = {}
    for name in sorted({(pod.get("spec") or {}).get("nodeName", "") for pod in pods} - {""}):
        try:
            node = await cluster.kube.get(NODES, None, name)
        except KubeError as error:
            if error.status not in {403, 404}:
                raise
            continue
        found[name] = node["metadata"].get("labels") or {}
    return found


async def _sizes(cluster: Reach, seen: Seen, found: Forecast) -> dict[str, int]:
    """Bytes of each partition that is copied, where its owner tells."""
    from fencekv.kube import LEASES  # noqa: PLC0415
    from fencekv.leases import HTTP, KIND_SESSION, LABEL_KIND, session_lease_name  # noqa: PLC0415

    copied = {move.partition for move in found.moves if move.what == "copy"}
    owners = {(each.get("status") or {}).get("owner", "") for each in seen.partitions} - {""}
    if not copied:
        return {}
    listing = await cluster.all_known(LEASES, labels=f"{LABEL_KIND}={KIND_SESSION}")
    leases = {each["metadata"]["name"]: each["metadata"].get("annotations") or {} for each in listing}
    shards = {pod: leases.get(session_lease_name(pod), {}).get(HTTP, "") for pod in sorted(owners)}
    sizes: dict[str, int] = {}
    for report in (await cluster.shard_reports(shards)).values():
        for replica in report.get("replicas") or ():
            if replica.get("partition") in copied and isinstance(replica.get("bytes"), int):
                sizes[replica["partition"]] = max(replica["bytes"], sizes.get(replica["partition"], 0))
    return sizes


def _by_name(objects: Iterable[Object]) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects}


def _show(found: Forecast, sizes: Mapping[str, int], output: str) -> None:
    rows = [
        {
            **{key: value for key, value in asdict(move).items() if key not in {"source", "target"}},
            "from": move.source,
            "to": move.target,
            "bytes": sizes.get(move.partition) if move.what == "copy" else None,
        }
        for move in found.moves
    ]
    if output != "table":
        print_document({"moves": rows, "missing": dict(found.missing)}, output)
        return
    if rows:
        names = ("table", "partition", "what", "from", "to", "bytes")
        print_table([name.upper() for name in names], [[row[name] for name in names] for row in rows])
    else:
        click.echo("nothing would move")
    for table, text in sorted(found.missing.items()):
        click.echo(f"{table}: PlacementUnsatisfiable: {text}", err=True)
    sys.stdout.flush()
