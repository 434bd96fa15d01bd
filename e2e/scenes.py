"""What a drill does to the cluster while the load runs: one function for each fault.

Each returns when every partition that lost its owner has acknowledged under a higher epoch, with the fault undone.
"""

from __future__ import annotations

import json
import signal
import time  # noqa: TID251 - how long a fault lasts
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import ne
from typing import Final

import faults
import operators
from faults import Node, Side, Way
from guarding import Fault, done
from kubectl import Cluster, Object, command
from loading import Load
from sample import OPERATOR, delete_by_force, leader, owners, send, settle

TAKEOVER_SECONDS: Final = 60.0
READY_SECONDS: Final = 180.0
# To start a kubectl takes much of a core for a while. Where the nodes are on this very machine, that is not to be
# while a pause is measured.
HANDS_OFF_SECONDS: Final = 2.0
THAWED_SECONDS: Final = 3.0  # how long the thawed owner is tempted before the load ends


@dataclass(slots=True, kw_only=True)
class Scene:
    """A cluster under load, and whose turn it is."""

    cluster: Cluster
    load: Load
    number: int  # of the run, from 0: what can be varied is varied by it
    victim: str  # a pod that owns partitions
    epochs: dict[str, int]  # of the victim's partitions
    nodes: list[Node]
    marked: float | None = None  # from when on writes are waited for. None: from the fault on.
    notes: list[str] = field(default_factory=list)  # what was seen, for people

    @property
    def node(self) -> Node:
        """The victim's node."""
        return faults.node_of(self.cluster, self.victim)

    def taken_over(self, *, seconds: float = TAKEOVER_SECONDS) -> None:
        """Waits until the victim's partitions acknowledge under higher epochs."""
        time.sleep(HANDS_OFF_SECONDS)
        self.load.acknowledges(above=self.epochs, seconds=seconds)

    def mark(self) -> None:
        """From here on writes are waited for, by the clock that the client's pod has too."""
        node = next(node for node in self.nodes if node.is_control_plane)
        self.marked = float(command("docker", "exec", node.name, "cat", "/proc/uptime").split()[0])


Play = Callable[[Scene], None]


def scene_of(cluster: Cluster, load: Load, *, number: int, table: str = "orders") -> Scene:
    """The scene with the owner of a table's first partition as the victim."""
    owned = owners(cluster, table)
    victim = owned[f"{table}-0"][0]
    epochs = {partition: epoch for partition, (owner, epoch) in owned.items() if owner == victim}
    nodes = faults.nodes(cluster)
    return Scene(cluster=cluster, load=load, number=number, victim=victim, epochs=epochs, nodes=nodes)


def container_of(scene: Scene) -> faults.Container:
    """The victim's container."""
    return faults.container_of(scene.cluster, scene.victim, container="shard")


# -- processes, containers, pods


def process_killed(scene: Scene) -> None:
    """kill -9 of the process that serves."""
    send(scene.cluster, scene.victim, signal.SIGKILL)
    scene.taken_over()


def container_killed(scene: Scene) -> None:
    """kill -9 of PID 1, and so of everything in the container."""
    faults.kill(container_of(scene))
    scene.taken_over()


def pod_deleted(scene: Scene) -> None:
    """kubectl delete pod --force."""
    delete_by_force(scene.cluster, scene.victim)
    scene.taken_over()


def frozen(scene: Scene) -> None:
    """The owner stands still, is deposed, and goes on as if nothing had been."""
    with done(faults.frozen(container_of(scene))):
        scene.taken_over()
    time.sleep(THAWED_SECONDS)


def frozen_and_deleted(scene: Scene) -> None:
    """The process hangs, so the next pod of that name starts beside it, on the same volume."""
    send(scene.cluster, scene.victim, signal.SIGSTOP)
    delete_by_force(scene.cluster, scene.victim)
    scene.taken_over()


# -- planned


def switched_over(scene: Scene) -> None:
    """A KVOperation for each partition of the victim."""
    for partition in scene.epochs:
        name = f"drill-{partition}-{scene.epochs[partition]}"
        body = {
            "apiVersion": "fencekv.io/v1alpha1",
            "kind": "KVOperation",
            "metadata": {"name": name},
            "spec": {"type": "switchover", "table": partition.rpartition("-")[0], "partition": partition},
        }
        scene.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))
        time.sleep(HANDS_OFF_SECONDS)
        scene.cluster.wait("--for=condition=Complete", f"kvoperation/{name}", seconds=30)
    scene.taken_over()


def drained(scene: Scene) -> None:
    """kubectl drain of the victim's node, and uncordon."""
    kubectl = ("env", f"KUBECONFIG={scene.cluster.environment['KUBECONFIG']}", "kubectl")
    node = scene.node.name
    pods = "--pod-selector=fencekv.io/kind=shard"
    drain = (*kubectl, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=50s", pods)
    shown = f"{' '.join(kubectl)} get node {node} -o jsonpath={{.spec.unschedulable}}"
    fault = Fault(
        name=f"{node} drained",
        harm=[drain],
        undo=[(*kubectl, "uncordon", node)],
        check=("sh", "-ec", f'test -z "$({shown})"'),
    )
    with done(fault):
        scene.taken_over()


def updated(scene: Scene) -> None:
    """A change of the shards' pods, carried to all of them."""
    before = _uids(scene.cluster)
    asked = scene.cluster.get("kvns", "sample")["spec"]["shards"]["resources"]["requests"]["cpu"]
    other = "100m" if asked != "100m" else "110m"
    patch = {"spec": {"shards": {"resources": {"requests": {"cpu": other}}}}}
    scene.cluster.kubectl("patch", "kvns", "sample", "--type=merge", "-p", json.dumps(patch))
    deadline = time.monotonic() + READY_SECONDS
    while not before.isdisjoint(_uids(scene.cluster)):
        assert time.monotonic() < deadline, f"not all pods were replaced within {READY_SECONDS:g} s"
        time.sleep(HANDS_OFF_SECONDS)
    settle(scene.cluster)
    scene.load.acknowledges()


def _uids(cluster: Cluster) -> set[str]:
    items: list[Object] = cluster.get("pods", "-l", "fencekv.io/kind=shard")["items"]
    return {item["metadata"]["uid"] for item in items}


# -- the network


def cut(side: Side, *ways: Way) -> Play:
    """The victim's node loses packets; one of the ways, in turn."""

    def play(scene: Scene) -> None:
        way = ways[scene.number % len(ways)] if ways else Way.EITHER
        with done(faults.cut(scene.node, scene.nodes, side, way)):
            scene.taken_over()
        time.sleep(THAWED_SECONDS)

    return play


# -- nodes


def node_dead(scene: Scene) -> None:
    """The victim's node loses its power, and is switched on again."""
    with done(faults.killed(scene.node)):
        scene.taken_over()
    _nodes_ready(scene)


def workers_restarted(scene: Scene) -> None:
    """All workers lose their power at once; writes are waited for once they are Ready again."""
    with done(faults.killed(*(node for node in scene.nodes if not node.is_control_plane))):
        pass
    _nodes_ready(scene)
    scene.mark()
    scene.load.acknowledges(seconds=READY_SECONDS)


def _nodes_ready(scene: Scene) -> None:
    for node in scene.nodes:
        # A node that was off is still called Ready for a while: its kubelet has to be heard anew.
        lease = ("lease", node.name, "-n", "kube-node-lease")
        heard = scene.cluster.get(*lease)["spec"]["renewTime"]
        scene.cluster.until(*lease, path=".spec.renewTime", holds=partial(ne, heard), seconds=READY_SECONDS)
    scene.cluster.wait("--for=condition=Ready", "node", "--all", seconds=READY_SECONDS)


# -- the API server


def api_away(seconds: float, *, is_felt: bool) -> Play:
    """The API server answers nothing for so long; `is_felt`: writes stop, and are waited for once it is back."""

    def play(scene: Scene) -> None:
        with done(faults.api_server_frozen(scene.cluster)) as fault:
            time.sleep(seconds)
            if is_felt:
                scene.mark()
            fault.undo()
        scene.load.acknowledges(seconds=TAKEOVER_SECONDS)

    return play


# -- operators


def operator_killed(play: Play) -> Play:
    """The same with the leading operator gone at that moment."""

    def both(scene: Scene) -> None:
        delete_by_force(scene.cluster, leader(scene.cluster), *OPERATOR)
        play(scene)

    return both


def two_leaders(play: Play) -> Play:
    """The same with two operators that lead: before the fault, and when it is over."""

    def both(scene: Scene) -> None:
        with done(operators.second(scene.cluster)):
            scene.cluster.wait("--for=condition=Ready", f"pod/{operators.SECOND}", *OPERATOR)
            path = ".spec.holderIdentity"
            scene.cluster.until(*operators.LEASE, path=path, holds=lambda shown: operators.SECOND in shown)
            before = operators.both(scene.cluster)
            play(scene)
            after = operators.both(scene.cluster)
        # The first one may be another pod by now, which counts from its own start.
        grants = [
            new.grants - (old.grants if new.pod == old.pod else 0) for old, new in zip(before, after, strict=True)
        ]
        told = " and ".join(f"{new.pod} ({count} grants)" for new, count in zip(after, grants, strict=True))
        scene.notes.append(f"both lead by Leases of their own, before and after: {told}")

    return both
