"""The operator's composition root: reads its flags, makes clock, chance and connections, and starts the tasks.

The failover loop and the elector are tasks of their own beside kopf: kopf's watches can die silently, and its
retries can pause for minutes, and neither may hold up a failover.

Invariants:
  * If any of the tasks ends, the process ends: half an operator is worse than none, whose Lease is taken over.
  * A clean stop releases the leader's Lease, so that the other operator need not wait for silence.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random  # noqa: TID251 - composition root: chance is made here and passed on
import secrets
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from fencekv.access import Access, NoAccess, find
from fencekv.clock import SystemClock
from fencekv.kube import KV_NAMESPACES, KV_PARTITIONS, KV_TABLES, HttpKube, KubeError, Unclear
from fencekv_operator import drill_client, metrics, probes
from fencekv_operator.drill import Surroundings
from fencekv_operator.events import Recorder
from fencekv_operator.facts import PartitionFacts
from fencekv_operator.failover import Failover
from fencekv_operator.leader import Leader
from fencekv_operator.operate import Cluster, Operations
from fencekv_operator.placement import preferring
from fencekv_operator.reconcile import Reconciler
from fencekv_operator.settings import OperatorSettings
from fencekv_operator.shards import HttpShardClient

log = logging.getLogger("fencekv_operator")

USER_AGENT: Final = "fencekv-operator"
DEFAULT_IMAGE: Final = "fencekv:dev"
STOP_SECONDS: Final = 5.0
CRD_POLL_SECONDS: Final = 1.0
USAGE: Final = 2
UNAVAILABLE: Final = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `fencekv-operator`."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        access = find(os.environ, kubeconfig=options.kubeconfig)
    except NoAccess as error:
        log.error("%s", error)
        sys.exit(UNAVAILABLE)
    # kopf imports the official client wherever it is installed (70 MB, over a second) and we use none of it. This
    # None makes that import fail, which kopf takes for "not installed".
    sys.modules.setdefault("kubernetes", None)  # type: ignore[arg-type]
    sys.exit(asyncio.run(Operator(options, access).run()))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fencekv-operator", description="The FenceKV operator.")
    environment = os.environ
    pod, uid = environment.get("FENCEKV_POD", ""), environment.get("FENCEKV_POD_UID", "")
    identity = f"{pod}_{uid}" if pod and uid else f"{socket.gethostname()}_{secrets.token_hex(4)}"
    parser.add_argument("--kubeconfig", default="", help="default: KUBECONFIG, or the pod's service account")
    parser.add_argument(
        "--kube-namespace",
        default=environment.get("FENCEKV_KUBE_NAMESPACE", ""),
        help="watch this Kubernetes namespace alone; default: all of them",
    )
    parser.add_argument("--probe-port", type=int, default=8080, help="/livez, /readyz, /metrics; 0: none")
    parser.add_argument("--identity", default=identity, help="name in the leader's Lease; must be unique")
    parser.add_argument("--image", default=environment.get("FENCEKV_IMAGE", DEFAULT_IMAGE), help="of the shards")
    parser.add_argument(
        "--priority-class",
        default=environment.get("FENCEKV_PRIORITY_CLASS", ""),
        help="PriorityClass of the shards; default: the cluster's default",
    )
    parser.add_argument(
        "--log-level",
        default=environment.get("FENCEKV_LOG_LEVEL", "info"),
        choices=["debug", "info", "warning", "error"],
    )
    return parser.parse_args(arguments)


class Operator:
    """All the parts, and how they are tied together."""

    def __init__(self, options: argparse.Namespace, access: Access) -> None:
        self._options, self._access = options, access
        self._kube_namespace: str | None = options.kube_namespace or None
        self._clock = SystemClock()
        chance = random.Random(secrets.randbits(64))  # noqa: S311 - spreads retries, guards nothing
        self._kube = HttpKube(access, user_agent=USER_AGENT)
        self._shards = HttpShardClient()
        self._leader = Leader(self._kube, namespace=access.namespace, identity=options.identity, clock=self._clock)
        self._recorder = Recorder(kube=self._kube, clock=self._clock, reporter=options.identity, calm=self._calm)
        self._reconciler = Reconciler(
            kube=self._kube,
            clock=self._clock,
            chance=chance,
            operator=OperatorSettings(
                image=options.image, namespace=access.namespace, priority_class=options.priority_class
            ),
            facts=self._facts,
            leading=lambda: self._leader.leading,
            post=self._recorder.post,
            kube_namespace=self._kube_namespace,
            answered_at=lambda: self._failover.quorum_read_at,
            born=self._born,
            crowded=self._is_crowded,
        )
        self._failover = Failover(
            kube=self._kube,
            shards=self._shards,
            clock=self._clock,
            chance=chance,
            namespace=self._kube_namespace,
            leading=lambda: self._leader.leading,
            on_transition=self._reconciler.on_transition,
            on_change=self._reconciler.on_change,
            preference=self._reconciler.preferences.of,
            step_down=self._leader.step_down,
            on_partition=self._saw_partition,
        )
        self._operations = Operations(
            kube=self._kube,
            shards=self._shards,
            cluster=self._cluster(),
            around=Surroundings(
                kube=self._kube,
                clock=self._clock,
                connect=lambda namespace, kvns: drill_client.connect(
                    kvns, kubeconfig=options.kubeconfig, kube_namespace=namespace
                ),
                probe=drill_client.probe,
                facts=self._facts,
            ),
            chance=chance,
            runner=f"{options.identity}/{secrets.token_hex(8)}",
            namespace=self._kube_namespace,
            leading=lambda: self._leader.leading,
            post=self._recorder.post,
        )

    def _cluster(self) -> Cluster:
        cache = self._reconciler.cache

        def partitions_of(namespace: str, table: str) -> list[dict[str, Any]]:
            of_table = [
                each
                for each in cache.all(KV_PARTITIONS)
                if each["metadata"]["namespace"] == namespace and each["spec"]["table"] == table
            ]
            return sorted(of_table, key=lambda each: int(each["spec"]["index"]))

        async def prefer(partition: dict[str, Any], pod: str) -> None:
            metadata, replicas = partition["metadata"], partition["spec"]["replicas"]
            patch = {"spec": {"replicas": list(preferring(replicas, pod))}}
            await self._kube.patch(KV_PARTITIONS, metadata["namespace"], metadata["name"], patch)

        return Cluster(
            facts=self._facts,
            partition=lambda namespace, name: cache.get(KV_PARTITIONS, namespace, name),
            partitions_of=partitions_of,
            tables=lambda: cache.all(KV_TABLES),
            order=self._failover.mover.order,
            prefer=prefer,
        )

    def _facts(self, namespace: str, partition: str) -> PartitionFacts | None:
        # The loop and the reconciler know of each other; the reconciler is made first.
        return self._failover.facts(namespace, partition)

    def _saw_partition(self, change: str, item: dict[str, Any]) -> None:
        try:
            self._reconciler.observe(KV_PARTITIONS, change, item)
        except Exception:
            # Whoever shows partitions must not stop who grants them.
            log.exception("KVPartition %s not taken", item["metadata"]["name"])

    def _is_crowded(self) -> bool:
        return self._failover.crowd.is_there

    async def _calm(self) -> None:
        await self._failover.crowd.passed()

    def _born(self, partition: dict[str, Any]) -> bool:
        return self._failover.born(partition)

    async def run(self) -> int:
        """Runs until a signal or until a part ends; gives the exit status."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._catch_signals(stop)
        parts: dict[str, Coroutine[Any, Any, None]] = {
            "elector": self._leader.run(),
            "failover": self._failover.run(),
            "operations": self._operations.run(),
            "reconciler": self._reconciler.run(),
            "recorder": self._recorder.run(),
            "watches": self._watches(stop),
        }
        if self._options.probe_port:
            parts["probes"] = probes.serve(self._probes(), port=self._options.probe_port)
        tasks = [loop.create_task(part, name=name) for name, part in parts.items()]
        stopped = loop.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            return self._verdict(tasks, wanted=stop.is_set())
        finally:
            stop.set()
            await self._close([*tasks, stopped])

    def _verdict(self, tasks: Sequence[asyncio.Task[None]], *, wanted: bool) -> int:
        if wanted:
            log.info("stopping")
            return 0
        for task in tasks:
            if task.done():
                error = None if task.cancelled() else task.exception()
                log.error("%s ended: %s", task.get_name(), error or "without an error", exc_info=error)
        return 1

    async def _close(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        # First whatever acts as leader, then the Lease, and last kopf, which takes its time to end.
        acting = [task for task in tasks if task.get_name() != "watches"]
        for task in acting:
            task.cancel()
        await asyncio.wait(acting, timeout=STOP_SECONDS)
        with contextlib.suppress(KubeError, Unclear, TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._leader.release()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=STOP_SECONDS)
        await self._shards.close()
        await self._kube.close()

    def _catch_signals(self, stop: asyncio.Event) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def _watches(self, stop: asyncio.Event) -> None:
        await self._wait_for_definitions()
        # Only now, because it imports kopf: an elector and a failover loop need not wait for that.
        from fencekv_operator import handlers  # noqa: PLC0415

        ready, ended = asyncio.Event(), asyncio.Event()
        kopf = asyncio.create_task(
            handlers.run(
                self._access,
                self._reconciler.observe,
                kube_namespace=self._kube_namespace,
                stop=ended,
                ready=ready,
            )
        )
        try:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait([kopf, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            # kopf takes the signals for itself when it starts; it is not the one to decide when we stop.
            self._catch_signals(stop)
            log.info("watching %s", self._kube_namespace or "all namespaces")
            await kopf
            stop.set()  # It ends without an error only when a signal reached it first.
        finally:
            kopf.cancel()
            await asyncio.wait([kopf])

    async def _wait_for_definitions(self) -> None:
        """kopf looks once at what the server serves, so the custom resources must be there before it starts."""
        missing = [KV_NAMESPACES, KV_TABLES, KV_PARTITIONS]
        told = False
        while missing:
            try:
                await self._kube.list(missing[0], self._kube_namespace, labels="fencekv.io/none")
                missing.pop(0)
            except (KubeError, Unclear) as error:
                if not told:
                    log.warning("waiting for the custom resources: %s", error)
                told = True
                await asyncio.sleep(CRD_POLL_SECONDS)

    def _probes(self) -> Any:
        health = probes.Health(
            ticked_at=lambda: self._failover.ticked_at,
            quorum_read_at=lambda: self._failover.quorum_read_at,
            metrics=lambda: metrics.render(self._picture()),
        )
        return probes.application(health, self._clock)

    def _picture(self) -> metrics.Picture:
        cache = self._reconciler.cache
        return metrics.Picture(
            leading=self._leader.leading,
            namespaces=len(cache.all(KV_NAMESPACES)),
            tables=cache.all(KV_TABLES),
            partitions=cache.all(KV_PARTITIONS),
            operations=self._operations.objects(),
            sessions=self._failover.session_states(),
            queue_length=len(self._reconciler.queue),
            actions=self._reconciler.performed,
            failures=self._reconciler.failed,
            events_dropped=self._recorder.dropped,
            tick_age_seconds=self._clock.now() - self._failover.ticked_at,
            quorum_read_age_seconds=self._clock.now() - self._failover.quorum_read_at,
            phases=self._failover.phases,
        )


if __name__ == "__main__":
    main()
