"""One cluster for the whole run: a kind cluster that is made and deleted, or the one that KUBECONFIG names."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubectl import Cluster, Failed, command, say

ROOT = Path(__file__).parents[1]
NAME = "fencekv-e2e"
IMAGE = "fencekv:dev"
KEEP = os.environ.get("KEEP") == "1"


@contextlib.contextmanager
def timed(text: str) -> Iterator[None]:
    """Says what is done and how long it took."""
    say(f"{text} …")
    begin = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - begin:.1f} s")


@pytest.fixture(scope="session")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that has the image."""
    named = os.environ.get("KUBECONFIG", "")
    missing = [
        tool for tool in (["kubectl"] if named else ["docker", "kind", "kubectl"]) if not shutil.which(tool)
    ]
    assert not missing, f"not on PATH: {', '.join(missing)}"
    if named:
        say(f"the cluster of KUBECONFIG={named}; {IMAGE} must be there already")
        cluster = Cluster(Path(named))
        assert not has_sample(cluster), "KVNamespace default/sample is there already, and not ours to delete"
        yield cluster
        return
    kubeconfig = tmp_path_factory.mktemp("kind") / "kubeconfig"
    this = ("--name", NAME, "--kubeconfig", str(kubeconfig))
    if NAME in command("kind", "get", "clusters").split():
        with timed(f"deleting the kind cluster {NAME} of an earlier run"):
            command("kind", "delete", "cluster", *this, seconds=180)
    # kind takes the newest node image that it knows of, unless told.
    wanted = os.environ.get("KIND_NODE_IMAGE")
    chosen = ("--image", wanted) if wanted else ()
    config = str(ROOT / "e2e/kind.yaml")
    try:
        with timed(f"kind cluster {NAME}"):
            command("kind", "create", "cluster", *this, "--config", config, "--wait", "120s", *chosen, seconds=300)
        with timed(f"loading {IMAGE}"):
            nodes = [node for node in command("kind", "get", "nodes", "--name", NAME).split() if "worker" in node]
            command("kind", "load", "docker-image", IMAGE, "--name", NAME, "--nodes", ",".join(nodes), seconds=180)
        yield Cluster(kubeconfig)
    finally:
        if KEEP:
            say(f"kept; its kubeconfig: kind get kubeconfig --name {NAME}")
        else:
            with timed(f"deleting the kind cluster {NAME}"):
                command("kind", "delete", "cluster", *this, seconds=180)


def has_sample(cluster: Cluster) -> bool:
    """Whether somebody works with the samples there; where the resource itself is unknown nobody does."""
    try:
        return "sample" in cluster.names("kvns")
    except Failed:
        return False


@pytest.fixture(scope="session")
def cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with the operator, the samples and a client's pod."""
    ours = "fencekv-system" not in bare_cluster.names("namespaces")
    try:
        install(bare_cluster)
    except Failed:
        bare_cluster.report()
        raise
    yield bare_cluster
    if os.environ.get("KUBECONFIG") and not KEEP:
        with timed("taking away what was made"):
            words = ("delete", "--ignore-not-found", "--wait")
            bare_cluster.kubectl(*words, "-f", str(ROOT / "e2e/client.yaml"))
            bare_cluster.kubectl(*words, "-k", str(ROOT / "manifests/samples"))
            if ours:
                bare_cluster.kubectl(*words, "-k", str(ROOT / "manifests"), seconds=120)


def install(cluster: Cluster) -> None:
    """The steps of the README."""
    with timed("kubectl apply -k manifests/, operator ready"):
        cluster.kubectl("apply", "-k", str(ROOT / "manifests"))
        rollout = ("-n", "fencekv-system", "rollout", "status", "deployment/fencekv-operator", "--timeout=90s")
        cluster.kubectl(*rollout, seconds=100)
    with timed("kubectl apply -k manifests/samples/, table ready"):
        cluster.kubectl("apply", "-f", str(ROOT / "e2e/client.yaml"))
        cluster.kubectl("apply", "-k", str(ROOT / "manifests/samples"))
        cluster.wait("--for=condition=Ready", "kvt", "--all", seconds=120)
        cluster.wait("--for=condition=Ready", "pod/fencekv-client")


@pytest.fixture(autouse=True)
def report_failures(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    """Shows the cluster when a test failed."""
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        cluster.report()
