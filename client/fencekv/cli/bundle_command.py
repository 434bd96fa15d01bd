"""`kubectl fencekv report`: gathers a support bundle. Reads, and changes nothing."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fencekv.cli.output import print_table
from fencekv.cli.reach import HTTP_PORT, OPERATOR_NAMESPACE, Reach, way_options
from fencekv.cli.run import DONE
from fencekv.errors import NotFound

if TYPE_CHECKING:
    from fencekv.cli.bundle import Bundle

LOG_LINES: Final = 5000
LOG_SECONDS: Final = 15.0
OPERATOR_PORT: Final = 8080
OPERATOR_LABEL: Final = "app.kubernetes.io/name=fencekv-operator"
AT_ONCE: Final = 8

Object = dict[str, Any]


@click.command()
@click.argument("namespace", required=False, default="", metavar="[NAMESPACE]")
@click.option(
    "-o",
    "--output",
    "file",
    default="fencekv-report.zip",
    show_default=True,
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Archive to write: .zip, .tar.gz or .tgz.",
)
@click.option(
    "--operator-namespace",
    default=OPERATOR_NAMESPACE,
    show_default=True,
    help="Kubernetes namespace of the operator.",
)
@click.option("--logs/--no-logs", default=True, show_default=True, help="With the logs of shards and operators.")
@way_options
def report(reach_as: Any, namespace: str, file: Path, operator_namespace: str, logs: bool) -> None:
    """Gather what an expert would ask for into one archive.

    Custom resources, Leases, StatefulSets, pods, volume claims, budgets and Events of the Kubernetes namespace (of
    one KVNamespace, if it is named), what every shard reports of itself, its metrics and logs, and the operator's.

    No Secret and no ConfigMap is read, and what looks like a credential is taken out of objects and logs. Look
    through it all the same before you give it away.
    """
    from fencekv.cli.bundle import SUFFIXES, suffix_of  # noqa: PLC0415 (help must not wait for it)

    kind = suffix_of(file)
    if kind is None:
        raise click.BadParameter(f"want a name that ends in {', '.join(SUFFIXES)}", param_hint="--output")

    async def act(cluster: Reach) -> int:
        from fencekv.cli.bundle import Bundle  # noqa: PLC0415

        bundle = Bundle()
        await _namespace(cluster, bundle, namespace, logs=logs)
        await _operators(Reach(cluster.kube, operator_namespace), bundle, logs=logs)
        about = {
            "fencekv": version("fencekv"),
            "kubeNamespace": cluster.namespace,
            "kvNamespace": namespace or None,
        }
        data = bundle.archive(kind, about={**about, "cluster": await _version(cluster, bundle)})
        await asyncio.to_thread(file.write_bytes, data)
        print_table(["FILE", "BYTES", "FILES"], [[file, len(data), len(bundle.files)]])
        for note in bundle.notes:
            click.echo(note, err=True)
        return DONE

    reach_as(act, "table")


async def _namespace(cluster: Reach, bundle: Bundle, kvns: str, *, logs: bool) -> None:
    from fencekv import kube  # noqa: PLC0415
    from fencekv.leases import HTTP, KIND_SESSION, KIND_SHARD, LABEL_KIND, LABEL_NAMESPACE  # noqa: PLC0415

    spaces = await cluster.all_of(kube.KV_NAMESPACES)
    if kvns and kvns not in {space["metadata"]["name"] for space in spaces}:
        raise NotFound(f"KVNamespace {kvns} does not exist", field="namespace")
    labels = f"{LABEL_NAMESPACE}={kvns}" if kvns else LABEL_NAMESPACE
    custom = (kube.KV_TABLES, kube.KV_PARTITIONS, kube.KV_OPERATIONS)
    labelled = (kube.LEASES, kube.STATEFUL_SETS, kube.SERVICES, kube.BUDGETS, kube.NETWORK_POLICIES, kube.CLAIMS)
    bundle.add_objects("kvnamespaces", [each for each in spaces if not kvns or each["metadata"]["name"] == kvns])
    for resource in custom:
        items = await _listed(cluster, bundle, resource, "")
        bundle.add_objects(resource.plural, [each for each in items if _concerns(each, kvns)])
    leases: list[Object] = []
    for resource in labelled:
        items = await _listed(cluster, bundle, resource, labels)
        bundle.add_objects(resource.plural, items)
        leases = items if resource is kube.LEASES else leases
    pods = await _listed(cluster, bundle, kube.PODS, f"{labels},{LABEL_KIND}={KIND_SHARD}")
    bundle.add_objects("pods", pods)
    bundle.add_objects("events", await _listed(cluster, bundle, kube.EVENTS, ""))
    addresses = {
        str(each["metadata"]["name"]).removeprefix("session-"): str(each["metadata"]["annotations"].get(HTTP, ""))
        for each in leases
        if each["metadata"]["labels"].get(LABEL_KIND) == KIND_SESSION
    }
    names = sorted({str(pod["metadata"]["name"]) for pod in pods} | addresses.keys())
    await _side_by_side([_shard(cluster, bundle, name, addresses.get(name, "")) for name in names])
    if logs:
        await _side_by_side([_logs(cluster, bundle, "shards", pod) for pod in pods])


def _concerns(item: Object, kvns: str) -> bool:
    """Whether a KVTable, KVPartition or KVOperation is to go in; the last ones do not say whose they are."""
    named = (item.get("spec") or {}).get("namespace")
    return not kvns or named is None or named == kvns


async def _listed(cluster: Reach, bundle: Bundle, resource: Any, labels: str) -> list[Object]:
    from fencekv.kube import KubeError, Unclear  # noqa: PLC0415

    try:
        return await cluster.all_of(resource, labels=labels)
    except (KubeError, Unclear) as error:
        bundle.missing(resource.plural, error)
        return []


async def _shard(cluster: Reach, bundle: Bundle, pod: str, http: str) -> None:
    for page, name in (("/peer/v1/report", "report.json"), ("/metrics", "metrics.txt")):
        text = await cluster.shard_page(pod, http, page)
        if text is None:
            bundle.missing(
                f"shards/{pod}/{name}", f"neither the API server's proxy to port {HTTP_PORT} nor {http} answers"
            )
        else:
            bundle.add_text(f"shards/{pod}/{name}", text)


async def _operators(cluster: Reach, bundle: Bundle, *, logs: bool) -> None:
    from fencekv import kube  # noqa: PLC0415

    pods = await _listed(cluster, bundle, kube.PODS, OPERATOR_LABEL)
    bundle.add_objects("operator/pods", pods)
    for resource in (kube.DEPLOYMENTS, kube.LEASES):
        try:
            item = await cluster.get(resource, "fencekv-operator")
            bundle.add_objects(f"operator/{resource.plural}", [item] if item else [])
        except (kube.KubeError, kube.Unclear) as error:
            bundle.missing(f"operator/{resource.plural}", error)
    for pod in pods:
        name = str(pod["metadata"]["name"])
        await _page(cluster, bundle, f"{name}:{OPERATOR_PORT}", "proxy/metrics", f"operator/{name}/metrics.txt")
        if logs:
            await _logs(cluster, bundle, "operator", pod)


async def _logs(cluster: Reach, bundle: Bundle, folder: str, pod: Object) -> None:
    name = str(pod["metadata"]["name"])
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    for container in (pod.get("spec") or {}).get("containers") or ():
        label = str(container["name"])
        query = {"container": label, "tailLines": str(LOG_LINES)}
        await _page(cluster, bundle, name, "log", f"{folder}/{name}/{label}.log", query)
        if any(each.get("name") == label and each.get("restartCount") for each in statuses):
            query = {**query, "previous": "true"}
            await _page(cluster, bundle, name, "log", f"{folder}/{name}/{label}.previous.log", query)


async def _page(
    cluster: Reach, bundle: Bundle, pod: str, subresource: str, name: str, query: dict[str, str] | None = None
) -> None:
    from fencekv.cli.bundle import FILE_BYTES_MAX  # noqa: PLC0415
    from fencekv.kube import PODS, KubeError, Unclear  # noqa: PLC0415

    path = PODS.path(cluster.namespace, pod, subresource)
    try:
        text = await cluster.kube.read(path, query=query, bytes_max=4 * FILE_BYTES_MAX, timeout=LOG_SECONDS)
    except (KubeError, Unclear) as error:
        bundle.missing(name, error)
    else:
        bundle.add_text(name, text)


async def _version(cluster: Reach, bundle: Bundle) -> Any:
    from fencekv.kube import KubeError, Unclear  # noqa: PLC0415

    try:
        return json.loads(await cluster.kube.read("/version", bytes_max=1 << 16))
    except (KubeError, Unclear, ValueError) as error:
        bundle.missing("version", error)
        return None


async def _side_by_side(works: list[Any]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def run(work: Any) -> None:
        async with gate:
            await work

    await asyncio.gather(*(run(work) for work in works))
