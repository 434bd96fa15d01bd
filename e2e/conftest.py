"""One cluster for the whole run: a kind cluster that is made and deleted, or the one that KUBECONFIG names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import kind
from kind import IMAGE, ROOT, timed
from kubectl import Cluster, Failed, say

NAME = "fencekv-e2e"
KEEP = os.environ.get("KEEP") == "1"


@pytest.fixture(scope="session")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that has the image."""
    named = os.environ.get("KUBECONFIG", "")
    lacking = kind.missing(*(["kubectl"] if named else ["docker", "kind", "kubectl"]))
    assert not lacking, lacking
    if named:
        say(f"the cluster of KUBECONFIG={named}; {IMAGE} must be there already")
        cluster = Cluster(Path(named))
        assert not has_sample(cluster), "KVNamespace default/sample is there already, and not ours to delete"
        yield cluster
        return
    kubeconfig = tmp_path_factory.mktemp("kind") / "kubeconfig"
    this = ("--kubeconfig", str(kubeconfig))
    if kind.exists(NAME):
        kind.delete(NAME, *this)  # of an earlier run
    try:
        kind.create(NAME, *this)
        kind.load(NAME)
        cluster = Cluster(kubeconfig)
        kind.nodes_ready(cluster)
        yield cluster
    finally:
        if KEEP:
            say(f"kept; its kubeconfig: kind get kubeconfig --name {NAME}")
        else:
            kind.delete(NAME, *this)


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
    kind.install(bare_cluster)
    yield bare_cluster
    if os.environ.get("KUBECONFIG") and not KEEP:
        with timed("taking away what was made"):
            words = ("delete", "--ignore-not-found", "--wait")
            bare_cluster.kubectl(*words, "-f", str(ROOT / "e2e/client.yaml"))
            bare_cluster.kubectl(*words, "-k", str(ROOT / "manifests/samples"))
            if ours:
                bare_cluster.kubectl(*words, "-k", str(ROOT / "manifests"), seconds=120)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What makes a cluster of its own goes first: two clusters at once are too many for two cores."""
    items.sort(key=uses_cluster)


def uses_cluster(item: pytest.Item) -> bool:
    """Whether a test needs the cluster of the whole run."""
    return "bare_cluster" in getattr(item, "fixturenames", ())


@pytest.fixture(autouse=True)
def report_failures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shows the cluster when a test failed."""
    cluster = request.getfixturevalue("cluster") if uses_cluster(request.node) else None
    before = request.session.testsfailed
    yield
    if cluster and request.session.testsfailed > before:
        cluster.report()
