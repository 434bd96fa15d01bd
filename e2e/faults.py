"""Faults of a kind cluster's nodes and containers, each with what undoes it.

They need docker, because a node is a container: `available` tells. Nothing is built in into FenceKV for them.

Invariants:
  * Packets are dropped in a chain of the fault's own in the table `mangle`, where nobody else filters: kube-proxy
    cannot let them through, and undoing removes the chain and nothing else.
  * A container is frozen by the kernel's freezer: it notices nothing, and says no last word.
"""

from __future__ import annotations

import enum
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from guarding import Fault, Words
from kubectl import Cluster, command

CHAIN: Final = "FENCEKV-FAULT"
HOOKS: Final = ("INPUT", "OUTPUT", "FORWARD")
MANIFEST: Final = "/etc/kubernetes/manifests/kube-apiserver.yaml"
MANIFEST_AWAY: Final = "/etc/kubernetes/kube-apiserver.yaml.away"
FILLER: Final = "fencekv-filler"
VOLUME_BYTES_MAX: Final = 4 << 30  # a larger one is the node's own disk


class Side(enum.StrEnum):
    """Whom a node is cut off from."""

    API = "API server"
    PEERS = "peers"
    BOTH = "API server and peers"
    ALL = "all"  # clients too


class Way(enum.StrEnum):
    """Which packets are dropped, as the node sees them."""

    EITHER = "both ways"
    OUT = "what it sends"
    IN = "what is sent to it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster, which is a container of its name."""

    name: str
    address: str
    pods: str  # the range of its pods' addresses
    is_control_plane: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A running container, on the node that has it."""

    node: str
    name: str
    id: str


def available() -> str:
    """Why these faults cannot be done here; empty if they can."""
    if os.environ.get("KUBECONFIG"):
        return "the cluster is the one of KUBECONFIG: faults of nodes need a kind cluster of the suite's own"
    return "" if shutil.which("docker") else "faults of nodes need docker"


def nodes(cluster: Cluster) -> list[Node]:
    """The nodes."""
    return [
        Node(
            name=item["metadata"]["name"],
            address=next(each["address"] for each in item["status"]["addresses"] if each["type"] == "InternalIP"),
            pods=item["spec"]["podCIDR"],
            is_control_plane="node-role.kubernetes.io/control-plane" in item["metadata"]["labels"],
        )
        for item in cluster.get("nodes")["items"]
    ]


def node_of(cluster: Cluster, pod: str) -> Node:
    """The node that a pod runs on."""
    name = cluster.get("pod", pod)["spec"]["nodeName"]
    return next(node for node in nodes(cluster) if node.name == name)


def container_of(cluster: Cluster, pod: str, *, container: str, namespace: str = "default") -> Container:
    """A pod's container, as it runs now."""
    found = cluster.get("pod", pod, "-n", namespace)
    status = next(each for each in found["status"]["containerStatuses"] if each["name"] == container)
    return Container(
        node=found["spec"]["nodeName"],
        name=f"{pod}/{container}",
        id=status["containerID"].removeprefix("containerd://"),
    )


def api_server(cluster: Cluster) -> Container:
    """The container of the API server."""
    node = next(node for node in nodes(cluster) if node.is_control_plane)
    return container_of(
        cluster, f"kube-apiserver-{node.name}", container="kube-apiserver", namespace="kube-system"
    )


def within(node: str, script: str) -> Words:
    """A command that runs a script in a node."""
    return ("docker", "exec", node, "sh", "-ec", script)


# -- the network


def cut(node: Node, others: Sequence[Node], side: Side, way: Way = Way.EITHER) -> Fault:
    """A node that loses packets; `others`: all nodes, itself included or not."""
    rules = [f"-A {CHAIN} {rule} -j DROP" for rule in _rules(node, others, side, way)]
    jumps = [f"-I {hook} 1 -j {CHAIN}" for hook in HOOKS]
    lines = ["*mangle", f":{CHAIN} - [0:0]", *rules, *jumps, "COMMIT"]
    # All at once: half of a cut would be another fault.
    script = f"printf '%s\\n' {' '.join(repr(line) for line in lines)} | iptables-restore --noflush --wait"
    away = [
        *(f"while iptables -w -t mangle -D {hook} -j {CHAIN} 2>/dev/null; do :; done" for hook in HOOKS),
        f"iptables -w -t mangle -F {CHAIN} 2>/dev/null || true",
        f"iptables -w -t mangle -X {CHAIN} 2>/dev/null || true",
    ]
    return Fault(
        name=f"{node.name} cut off from {side}, {way}",
        harm=[within(node.name, script)],
        undo=[within(node.name, "\n".join(away))],
        check=within(node.name, f"rules=$(iptables-save -t mangle); case $rules in *{CHAIN}*) exit 1;; esac"),
    )


def _rules(node: Node, others: Sequence[Node], side: Side, way: Way) -> list[str]:
    if side is Side.ALL:
        return [rule for rule, ways in (("-o eth0", Way.OUT), ("-i eth0", Way.IN)) if way in {ways, Way.EITHER}]
    addresses: list[str] = []
    for other in others:
        if other.name == node.name:
            continue
        # The pods on the control plane's node, DNS and the suite's client, are neither API server nor peers.
        if other.is_control_plane and side in {Side.API, Side.BOTH}:
            addresses.append(other.address)
        if not other.is_control_plane and side in {Side.PEERS, Side.BOTH}:
            addresses += [other.address, other.pods]
    out = [f"-d {address}" for address in addresses if way is not Way.IN]
    return out + [f"-s {address}" for address in addresses if way is not Way.OUT]


# -- nodes


def paused(node: Node) -> Fault:
    """A node where nothing runs for a while, and nothing notices."""
    state = "docker inspect --format '{{.State.Paused}}' " + node.name
    return Fault(
        name=f"{node.name} paused",
        harm=[("docker", "pause", node.name)],
        undo=[("docker", "unpause", node.name)],
        check=("sh", "-ec", f'test "$({state})" = false'),
    )


def killed(*chosen: Node) -> Fault:
    """Nodes that lose their power at once; undone by starting them."""
    names = [node.name for node in chosen]
    states = "docker inspect --format '{{.State.Running}}' " + " ".join(names)
    return Fault(
        name=f"{', '.join(names)} killed",
        harm=[("docker", "kill", *names)],
        undo=[("docker", "start", *names)],
        check=("sh", "-ec", f"states=$({states}); case $states in *false*) exit 1;; esac"),
    )


def kubelet_stopped(node: Node) -> Fault:
    """A node whose pods live on without their kubelet."""
    return Fault(
        name=f"kubelet of {node.name} stopped",
        harm=[within(node.name, "systemctl stop kubelet")],
        undo=[within(node.name, "systemctl start kubelet")],
        check=within(node.name, "systemctl is-active --quiet kubelet"),
    )


# -- containers


def frozen(container: Container) -> Fault:
    """A container whose processes all stand still."""
    return Fault(
        name=f"{container.name} frozen",
        harm=[within(container.node, f"{_task('pause')} {container.id}")],
        undo=[within(container.node, f"{_task('resume')} {container.id}")],
        check=within(
            container.node, f"{_task('ls')} | {{ ! grep '^{container.id} ' | grep -E 'PAUSED|PAUSING'; }}"
        ),
    )


def kill(container: Container) -> None:
    """kill -9 of a container's first process, and so of all; the kubelet starts it anew."""
    command(*within(container.node, f"{_task('kill')} --signal SIGKILL {container.id}"))


def stop(container: Container) -> None:
    """SIGTERM to a container's first process; the kubelet starts it anew."""
    command(*within(container.node, f"{_task('kill')} --signal SIGTERM {container.id}"))


def _task(verb: str) -> str:
    return f"ctr --namespace k8s.io task {verb}"


# -- the API server


def api_server_frozen(cluster: Cluster) -> Fault:
    """An API server that takes connections and answers nothing."""
    return frozen(api_server(cluster))


def api_server_stopped(cluster: Cluster) -> Fault:
    """An API server that is not there: its manifest is moved away, and the kubelet ends it."""
    container = api_server(cluster)
    lives = f"{_task('ls')} | grep '^{container.id} ' | grep -q RUNNING"
    gone = f"for _ in $(seq 200); do {lives} || exit 0; sleep 0.2; done\nexit 1"
    return Fault(
        name="API server stopped",
        harm=[
            within(container.node, f"mv {MANIFEST} {MANIFEST_AWAY}\n{gone}"),
        ],
        undo=[within(container.node, f"if test -e {MANIFEST_AWAY}; then mv {MANIFEST_AWAY} {MANIFEST}; fi")],
        check=("docker", "exec", container.node, "test", "-e", MANIFEST, "-a", "!", "-e", MANIFEST_AWAY),
    )


# -- disks


def small_volume(cluster: Cluster, pod: str, *, size_bytes: int) -> Fault:
    """A volume of its own in the place of a shard's, empty and in memory.

    The pod takes it when it is deleted and made anew, and gives it up in the same way after the fault. What it
    holds by then is lost.
    """
    node, folder = volume_of(cluster, pod)
    mount = f"mount -t tmpfs -o size={size_bytes},mode=0777 tmpfs {folder}"
    away = f"while mountpoint -q {folder}; do umount --lazy {folder}; done"
    return Fault(
        name=f"volume of {pod} is {size_bytes >> 20} MiB",
        harm=[within(node, mount)],
        undo=[within(node, away)],
        check=within(node, f"! mountpoint -q {folder}"),
    )


def full_volume(cluster: Cluster, pod: str, *, left_bytes: int) -> Fault:
    """A shard's volume with hardly a byte left. The volume must be one of its own: `small_volume` makes it so."""
    node, folder = volume_of(cluster, pod)
    filler = f"{folder}/{FILLER}"
    free = f"$(df --output=avail -B1 {folder} | tail -1)"
    return Fault(
        name=f"volume of {pod} full",
        # Others write at the same time, so that the last bytes may be missing: then it is as full as it can be.
        harm=[
            within(
                node,
                f"test $(({free})) -lt {VOLUME_BYTES_MAX}\n"
                f"head -c $(({free} - {left_bytes})) /dev/zero >{filler} || true",
            )
        ],
        undo=[within(node, f"rm -f {filler}")],
        check=within(node, f"test ! -e {filler}"),
    )


def volume_of(cluster: Cluster, pod: str) -> tuple[str, str]:
    """The node and the folder on it where a pod's volume lies."""
    volume = cluster.get("pv", cluster.get("pvc", f"data-{pod}")["spec"]["volumeName"])["spec"]
    place = volume.get("hostPath") or volume["local"]
    return cluster.get("pod", pod)["spec"]["nodeName"], place["path"]
