"""The faults themselves: each does what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import faults
from faults import CHAIN, Node, Side, Way
from guarding import LOG, Fault, done
from history import judge
from kubectl import Cluster, Failed, command
from loading import loading
from sample import PARTITIONS, delete_by_force, settle

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(faults.available()), reason=faults.available() or "faults of nodes"),
]

REACHED_SECONDS = 2
# Does a cut, says so, and waits for what never comes.
DOER = """
import sys
from pathlib import Path
import faults
from guarding import done
from kubectl import Cluster
cluster = Cluster(Path(sys.argv[1]))
nodes = faults.nodes(cluster)
with done(faults.cut(next(node for node in nodes if node.name == sys.argv[2]), nodes, faults.Side.ALL)):
    print("done", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(name="nodes")
def find(cluster: Cluster) -> Iterator[list[Node]]:
    yield faults.nodes(cluster)
    settle(cluster)


def reaches(node: Node, address: str, port: int) -> bool:
    """Whether a node gets a connection."""
    connect = f"timeout {REACHED_SECONDS} bash -c 'exec 3<>/dev/tcp/{address}/{port}'"
    try:
        command(*faults.within(node.name, connect))
    except Failed:
        return False
    return True


def packets(node: Node) -> str:
    """Everything that filters in a node."""
    rules = command("docker", "exec", node.name, "iptables-save", "-t", "mangle")
    return "\n".join(line for line in rules.splitlines() if not line.startswith(("#", ":")))


KUBELET = 10250


@pytest.mark.parametrize("way", list(Way), ids=lambda way: way.name)
@pytest.mark.parametrize("side", list(Side), ids=lambda side: side.name)
def test_a_cut_takes_those_and_no_others_and_is_undone_exactly(nodes: list[Node], side: Side, way: Way) -> None:
    server = next(node for node in nodes if node.is_control_plane)
    one, peer, *_ = (node for node in nodes if not node.is_control_plane)
    before = packets(one)
    with done(faults.cut(one, nodes, side, way)):
        assert reaches(one, server.address, 6443) == (side is Side.PEERS)
        assert reaches(one, peer.address, KUBELET) == (side is Side.API)
        assert reaches(peer, one.address, KUBELET) == (side is Side.API)
        assert reaches(peer, server.address, 6443)
    assert packets(one) == before
    assert reaches(one, server.address, 6443)


def test_a_cut_is_undone_when_its_doer_is_killed(
    cluster: Cluster, nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = next(node for node in nodes if not node.is_control_plane)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = [sys.executable, "-c", DOER, cluster.environment["KUBECONFIG"], one.name]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as doer:
        assert doer.stdout is not None
        assert doer.stderr is not None
        while doer.stdout.readline() != "done\n":
            assert doer.poll() is None
        assert CHAIN in packets(one)
        doer.send_signal(signal.SIGKILL)
        doer.stderr.read()  # ends with the last one who holds it, the guardian
    assert CHAIN not in packets(one)
    outcome = json.loads((tmp_path / LOG.name).read_text())
    assert (outcome["reason"], outcome["undone"]) == ("gone", True)


def state_of(container: faults.Container) -> str:
    """What the container's runtime says of it; empty: it is gone."""
    tasks = command("docker", "exec", container.node, "ctr", "--namespace", "k8s.io", "task", "ls").splitlines()
    return next((line.split()[2] for line in tasks if line.startswith(container.id)), "")


def test_a_container_is_frozen_and_thawed(cluster: Cluster, nodes: list[Node]) -> None:
    container = faults.container_of(cluster, "sample-0", container="shard")
    with done(faults.frozen(container)):
        assert state_of(container) == "PAUSED"
    assert state_of(container) == "RUNNING"


@pytest.mark.parametrize("end", [faults.kill, faults.stop], ids=["killed", "stopped"])
def test_a_container_ends_and_another_one_takes_its_place(
    cluster: Cluster, nodes: list[Node], end: Callable[[faults.Container], None]
) -> None:
    container = faults.container_of(cluster, "sample-0", container="shard")
    end(container)
    cluster.until(
        "pod",
        "sample-0",
        path=".status.containerStatuses[0].containerID",
        holds=lambda shown: bool(shown) and container.id not in shown,
        seconds=120,
    )


def test_a_kubelet_stops_while_its_pods_live(cluster: Cluster, nodes: list[Node]) -> None:
    container = faults.container_of(cluster, "sample-0", container="shard")
    node = faults.node_of(cluster, "sample-0")
    with done(faults.kubelet_stopped(node)):
        assert not reaches(node, node.address, KUBELET)
        assert state_of(container) == "RUNNING"
    command(*faults.within(node.name, "systemctl is-active --quiet kubelet"))


def test_a_volume_is_full_and_its_replica_is_left_out(cluster: Cluster, nodes: list[Node]) -> None:
    def in_sync(holds: Callable[[str], bool]) -> None:
        cluster.until("kvp", PARTITIONS[0], path=".status.inSync", holds=holds, seconds=120)

    pod = "sample-2"
    try:
        with done(faults.small_volume(cluster, pod, size_bytes=512 << 20)):
            delete_by_force(cluster, pod)
            settle(cluster)
            with done(faults.full_volume(cluster, pod, left_bytes=1 << 20)), loading(cluster) as load:
                in_sync(lambda shown: pod not in shown)
                load.acknowledges()
                verdict = judge(load.end())
            in_sync(lambda shown: pod in shown)
            assert (verdict.lost, verdict.stale) == (0, 0), verdict.examples
    finally:
        delete_by_force(cluster, pod)


@pytest.mark.parametrize(
    ("fault", "state"), [(faults.paused, "true true"), (faults.killed, "false false")], ids=["paused", "killed"]
)
def test_a_node_stands_still_or_is_off(nodes: list[Node], fault: Callable[[Node], Fault], state: str) -> None:
    one = next(node for node in nodes if not node.is_control_plane)
    shown = ("docker", "inspect", "--format", "{{.State.Running}} {{.State.Paused}}", one.name)
    with done(fault(one)):
        assert command(*shown).strip() == state
    assert command(*shown).strip() == "true false"


@pytest.mark.parametrize("fault", [faults.api_server_frozen, faults.api_server_stopped], ids=["frozen", "stopped"])
def test_the_api_server_is_away(cluster: Cluster, nodes: list[Node], fault: Callable[[Cluster], Fault]) -> None:
    with done(fault(cluster)), pytest.raises(Failed):
        cluster.kubectl("get", "--raw", "/readyz", "--request-timeout=2s", seconds=5)
    server = next(node for node in nodes if node.is_control_plane)
    asked = "kubectl --kubeconfig /etc/kubernetes/admin.conf get --raw /readyz"
    ready = f"for _ in $(seq 300); do {asked} && exit; sleep 0.2; done; exit 1"
    command(*faults.within(server.name, ready), seconds=120)
