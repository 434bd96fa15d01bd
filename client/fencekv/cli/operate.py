"""`kubectl fencekv promote` and `drill`: orders to the operator, as KVOperations, and the wait for their end.

Invariants:
  * A command makes one KVOperation, or sets one annotation, and nothing else. Stopped, it takes nothing back: the
    order stands in the cluster, and its name was printed.
  * A loss is accepted only for the epoch that the cluster itself names at this moment.
"""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any, Final

import click

from fencekv.cli.output import print_document, print_table
from fencekv.cli.reach import Reach, cluster_options
from fencekv.cli.run import DONE, NO
from fencekv.errors import Conflict, Invalid, NotFound, Unavailable

FAULTS: Final = ("kill", "freeze", "cutFromAPI", "cutFromPeers", "deletePod")
LOOK_SECONDS: Final = 0.5
WAIT_SECONDS: Final = 300.0
HISTORY_KEY: Final = "history.cbor.gz"

Object = dict[str, Any]

_wait = click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the result.")
_timeout = click.option(
    "--timeout",
    default=WAIT_SECONDS,
    show_default=True,
    type=click.FloatRange(min=1, max=86400),
    help="Seconds to wait; the order goes on when they are over.",
)


@click.command()
@click.argument("partition")
@click.option(
    "--to", "target", default="", metavar="POD", help="The shard pod that is to own it [default: the best]."
)
@click.option(
    "--accept-loss",
    "accepted",
    default=None,
    type=click.IntRange(min=0),
    metavar="EPOCH",
    help="Go on without the replicas that are lost, and with them the writes that only they held.",
)
@_wait
@_timeout
@cluster_options
def promote(
    reach: Any, output: str, partition: str, target: str, accepted: int | None, wait: bool, timeout: float
) -> None:
    """Move PARTITION to another shard, in a planned move that loses nothing.

    A KVOperation of type switchover is made, and waited for.

    With --accept-loss no move is made: the KVPartition is annotated, so that the operator grants it to the best
    replica there is, although every member of the in-sync set is lost. EPOCH is the number that `kubectl fencekv
    why` names; for any other one nothing is done. What was acknowledged, and only the lost replicas held, is gone
    then, and the journal says so.

    Exit status 1: it failed, or the epoch is another one. 3: it was not over in time.
    """
    if accepted is not None and target:
        raise click.UsageError(
            "--to and --accept-loss exclude each other: a loss goes to the best replica there is"
        )

    async def act(cluster: Reach) -> int:
        from fencekv.kube import KV_PARTITIONS  # noqa: PLC0415 (help must not wait for it)

        item = await cluster.get(KV_PARTITIONS, partition)
        if item is None:
            raise NotFound(f"KVPartition {partition} does not exist", field="partition")
        if accepted is not None:
            return await _accept_loss(cluster, item, accepted, seconds=timeout if wait else 0.0, output=output)
        spec = {"type": "switchover", "table": item["spec"]["table"], "partition": partition}
        if target:
            spec["switchover"] = {"to": target}
        return await _order(
            cluster, spec, prefix=f"switchover-{partition}-", wait=wait, timeout=timeout, output=output
        )

    reach(act)


@click.command()
@click.argument("name", metavar="PARTITION|TABLE")
@click.option(
    "--fault", type=click.Choice(FAULTS), default="kill", show_default=True, help="What is done to the owner."
)
@click.option(
    "--puts-per-second", default=200, show_default=True, type=click.IntRange(10, 500), help="Load meanwhile."
)
@click.option(
    "--rto",
    "rto_seconds",
    default=10,
    show_default=True,
    type=click.IntRange(1, 60),
    help="Seconds without writes at most.",
)
@click.option(
    "--history",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Where to save every request of it.",
)
@_wait
@_timeout
@cluster_options
def drill(
    reach: Any,
    output: str,
    name: str,
    fault: str,
    puts_per_second: int,
    rto_seconds: int,
    history: Path | None,
    wait: bool,
    timeout: float,
) -> None:
    """Prove a failover of PARTITION, or of a healthy partition of TABLE, by doing one.

    A KVOperation of type drill is made: the operator writes at the given rate, does the fault to the owner, waits
    for the new one, lets the old one try to write, and reads everything back. It is refused unless the partition
    is healthy with two standbys in sync. `fencekv check-history FILE` judges the history again, offline.

    Exit status 1: the drill failed, or was refused. 3: it was not over in time.
    """
    if history is not None and not wait:
        raise click.UsageError("--history needs --wait: there is no history before the end")

    async def act(cluster: Reach) -> int:
        spec = {
            "type": "drill",
            **await _about(cluster, name),
            "drill": {"fault": fault, "putsPerSecond": puts_per_second, "rtoSecondsMax": rto_seconds},
        }
        return await _order(
            cluster, spec, prefix=f"drill-{name}-", wait=wait, timeout=timeout, output=output, history=history
        )

    reach(act)


async def _about(cluster: Reach, name: str) -> dict[str, str]:
    from fencekv.kube import KV_PARTITIONS, KV_TABLES  # noqa: PLC0415

    partition = await cluster.get(KV_PARTITIONS, name)
    if partition is not None:
        return {"table": str(partition["spec"]["table"]), "partition": name}
    if await cluster.get(KV_TABLES, name) is None:
        raise NotFound(f"no KVPartition and no KVTable is called {name}", field="name")
    return {"table": name}


# -- a KVOperation and its end


async def _order(
    cluster: Reach,
    spec: Object,
    *,
    prefix: str,
    wait: bool,
    timeout: float,
    output: str,
    history: Path | None = None,
) -> int:
    from fencekv.kube import KV_OPERATIONS  # noqa: PLC0415

    body = {
        "apiVersion": KV_OPERATIONS.api_version,
        "kind": KV_OPERATIONS.kind,
        "metadata": {"generateName": prefix, "namespace": cluster.namespace},
        "spec": spec,
    }
    operation = await cluster.kube.create(KV_OPERATIONS, cluster.namespace, body)
    name = str(operation["metadata"]["name"])
    click.echo(f"kvoperation.fencekv.io/{name} created", err=True)
    if not wait:
        _show(operation, output)
        return DONE
    operation = await _ended(cluster, name, seconds=timeout)
    if history is not None:
        await _save_history(cluster, operation, history)
    _show(operation, output)
    return DONE if operation["status"]["phase"] == "Succeeded" else NO


async def _ended(cluster: Reach, name: str, *, seconds: float) -> Object:
    """The KVOperation when it is over; its steps are told on the way."""
    from fencekv.kube import KV_OPERATIONS  # noqa: PLC0415

    told = ""
    try:
        async with asyncio.timeout(seconds):
            while True:
                operation = await cluster.get(KV_OPERATIONS, name)
                if operation is None:
                    raise Conflict(f"KVOperation {name} was deleted before it was over")
                status = operation.get("status") or {}
                step = ": ".join(filter(None, (status.get("step"), status.get("message"))))
                if step and step != told:
                    click.echo(step, err=True)
                    told = step
                if status.get("phase") in {"Succeeded", "Failed"}:
                    return operation
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError as error:
        last = told or "no operator has begun it"
        raise Unavailable(f"KVOperation {name} was not over after {seconds:g} s ({last}); it goes on") from error


def _show(operation: Object, output: str) -> None:
    status = operation.get("status") or {}
    result, name = status.get("result") or {}, operation["metadata"]["name"]
    if output != "table":
        document = {
            "name": name,
            "spec": operation["spec"],
            "status": {k: v for k, v in status.items() if k != "conditions"},
        }
        print_document(document, output)
        return
    about = status.get("partition") or operation["spec"].get("partition") or operation["spec"]["table"]
    plain = {key: value for key, value in result.items() if not isinstance(value, list | dict)}
    rows: list[list[object]] = [["operation", name], ["about", about], ["phase", status.get("phase") or "Pending"]]
    rows += [[key, value] for key, value in plain.items()]
    print_table(["WHAT", "RESULT"], rows)
    if status.get("phase") == "Failed":
        click.echo(str(status.get("message") or "it says no reason"), err=True)


async def _save_history(cluster: Reach, operation: Object, file: Path) -> None:
    from fencekv import drill_history  # noqa: PLC0415
    from fencekv.kube import CONFIG_MAPS  # noqa: PLC0415

    name = (operation.get("status") or {}).get("history")
    if not name:
        click.echo("the drill left no history", err=True)
        return
    held = await cluster.get(CONFIG_MAPS, str(name))
    raw = ((held or {}).get("binaryData") or {}).get(HISTORY_KEY)
    if raw is None:
        click.echo(f"ConfigMap {name} holds no {HISTORY_KEY}", err=True)
        return
    data = base64.b64decode(raw)
    drill_history.from_bytes(data)  # a file that nobody can read is told of now
    await asyncio.to_thread(file.write_bytes, data)
    click.echo(f"history saved in {file}: `fencekv check-history {file}` judges it", err=True)


# -- a loss


async def _accept_loss(cluster: Reach, item: Object, epoch: int, *, seconds: float, output: str) -> int:
    from fencekv.cli.observed import condition, holds  # noqa: PLC0415
    from fencekv.kube import KV_PARTITIONS  # noqa: PLC0415
    from fencekv.leases import ACCEPT_LOSS  # noqa: PLC0415

    name = str(item["metadata"]["name"])
    kinds = [
        kind for kind in ("Degraded", "RecordSuspect") if ACCEPT_LOSS in str(condition(item, kind).get("message"))
    ]
    if not any(holds(item, kind) for kind in kinds):
        raise Conflict(f"{name}: there is no loss to accept; `kubectl fencekv why {name}` says how it is")
    named = named_epoch(str(condition(item, kinds[0]).get("message")), ACCEPT_LOSS)
    if named != epoch:
        raise Conflict(f"{name}: the epoch whose loss can be accepted is {named}, not {epoch}: nothing was done")
    body = {
        "metadata": {
            "annotations": {ACCEPT_LOSS: str(epoch)},
            "resourceVersion": item["metadata"]["resourceVersion"],
        }
    }
    await cluster.kube.patch(KV_PARTITIONS, cluster.namespace, name, body)
    click.echo(f"{name}: the loss under epoch {epoch} is accepted", err=True)
    if not seconds:
        return DONE
    after = await _served(cluster, name, above=epoch, seconds=seconds)
    status = after.get("status") or {}
    document = {"partition": name, "owner": status.get("owner"), "epoch": status.get("epoch")}
    if output == "table":
        print_table(["PARTITION", "OWNER", "EPOCH"], [list(document.values())])
    else:
        print_document(document, output)
    return DONE


def named_epoch(message: str, annotation: str) -> int:
    """The epoch that the operator's words name for an acceptance of loss."""
    found = re.search(rf"{re.escape(annotation)}=(\d+)", message)
    if found is None:
        raise Invalid(f"the operator names no epoch: {message}")
    return int(found[1])


async def _served(cluster: Reach, name: str, *, above: int, seconds: float) -> Object:
    from fencekv.cli.observed import condition, holds  # noqa: PLC0415
    from fencekv.kube import KV_PARTITIONS  # noqa: PLC0415

    told = ""
    try:
        async with asyncio.timeout(seconds):
            while True:
                item = await cluster.get(KV_PARTITIONS, name)
                if item is None:
                    raise NotFound(f"KVPartition {name} does not exist any more")
                if holds(item, "Ready") and int((item.get("status") or {}).get("epoch") or 0) > above:
                    return item
                word = str(condition(item, "Ready").get("message") or "")
                if word and word != told:
                    click.echo(word, err=True)
                    told = word
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError as error:
        raise Unavailable(f"{name} is not served after {seconds:g} s: `kubectl fencekv why {name}`") from error
