"""kind clusters that have the image: made, found again, and taken away.

    python e2e/kind.py up      # make kind
    python e2e/kind.py down    # make kind-stop

Invariants:
  * Everything may be repeated: what is there already is left as it is.
  * kind itself decides which kubeconfig it writes: KUBECONFIG, or the one in the home folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time  # noqa: TID251 - how long it took
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kubectl import Cluster, Failed, command, say

ROOT: Final = Path(__file__).parents[1]
NAME: Final = "fencekv"  # of `make kind` and `make drills`; the e2e suite's own is another one
NODES_SECONDS_MAX: Final = 180.0
IMAGE: Final = "fencekv:dev"
FOLDER: Final = "/opt/fencekv"  # of the image, where all of FenceKV is
HISTORY: Final = ("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}")
CONFIG: Final = ROOT / "e2e/kind.yaml"
NEXT: Final = f"""
The cluster is there, with the operator and the sample. What to do next:
  kubectl --context kind-{NAME} get kvns,kvt,kvp
  kubectl --context kind-{NAME} exec fencekv-client -- fencekv put orders order-17 packed
  make drill FAULT=process-killed
  make kind-stop
"""


@contextlib.contextmanager
def timed(text: str) -> Iterator[None]:
    """Says what is done and how long it took."""
    say(f"{text} …")
    begin = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - begin:.1f} s")


def missing(*tools: str) -> str:
    """What is not on PATH, for people; empty if nothing is."""
    lacking = [tool for tool in tools if not shutil.which(tool)]
    return f"not on PATH: {', '.join(lacking)}" if lacking else ""


def exists(name: str) -> bool:
    """Whether there is such a cluster."""
    return name in command("kind", "get", "clusters").split()


def create(name: str, *options: str) -> None:
    """Makes a cluster, and waits until its control plane is ready."""
    # kind takes the newest node image that it knows of, unless told.
    wanted = os.environ.get("KIND_NODE_IMAGE")
    chosen = ("--image", wanted) if wanted else ()
    with timed(f"kind cluster {name}"):
        words = ("kind", "create", "cluster", "--name", name, "--config", str(CONFIG), "--wait", "120s")
        command(*words, *options, *chosen, seconds=300)


def load(name: str) -> None:
    """Gives the image to all nodes: the client's pod stands beside the control plane."""
    with timed(f"loading {IMAGE}"):
        command("kind", "load", "docker-image", IMAGE, "--name", name, seconds=240)


def nodes_ready(cluster: Cluster) -> None:
    """Waits for all nodes: until then whatever is installed comes to stand on those that were first."""
    with timed("all nodes ready"):
        cluster.wait("--for=condition=Ready", "node", "--all", seconds=NODES_SECONDS_MAX)


def delete(name: str, *options: str) -> None:
    """Takes a cluster away."""
    with timed(f"deleting the kind cluster {name}"):
        command("kind", "delete", "cluster", "--name", name, *options, seconds=180)


def kubeconfig(name: str, folder: Path) -> Path:
    """A kubeconfig of a cluster, in a file of its own."""
    path = folder / f"{name}.kubeconfig"
    path.write_text(command("kind", "get", "kubeconfig", "--name", name), encoding="utf-8")
    path.chmod(0o600)
    return path


def bytes_over_base(history: str) -> int:
    """How many bytes an image has over its base, by `docker history` in the form of `HISTORY`, the newest first.

    The base itself need not be there: everything since the first layer that speaks of our folder is ours.
    """
    layers = [line.split(maxsplit=1) for line in history.splitlines() if line.strip()]
    ours = [number for number, words in enumerate(layers) if FOLDER in "".join(words[1:])]
    assert ours, f"no layer of {FOLDER}: {history[:500]}"
    return sum(int(words[0]) for words in layers[: ours[-1] + 1])


def install(cluster: Cluster) -> None:
    """The steps of the README: operator, samples, and a client's pod."""
    try:
        _install(cluster)
    except Failed:
        cluster.report()
        raise


def _install(cluster: Cluster) -> None:
    began, is_fresh = time.monotonic(), "fencekv-system" not in cluster.names("namespaces")
    with timed("kubectl apply -k manifests/, operator ready"):
        cluster.kubectl("apply", "-k", str(ROOT / "manifests"))
        rollout = ("-n", "fencekv-system", "rollout", "status", "deployment/fencekv-operator", "--timeout=90s")
        cluster.kubectl(*rollout, seconds=100)
    with timed("kubectl apply -k manifests/samples/, table ready"):
        cluster.kubectl("apply", "-f", str(ROOT / "e2e/client.yaml"))
        cluster.kubectl("apply", "-k", str(ROOT / "manifests/samples"))
        cluster.wait("--for=condition=Ready", "kvt", "--all", seconds=120)
    cluster.installed_seconds = time.monotonic() - began if is_fresh else None
    cluster.wait("--for=condition=Ready", "pod/fencekv-client")


def up(folder: Path) -> None:
    """A cluster with the operator and the sample."""
    there = exists(NAME)
    if not there:
        create(NAME)
    load(NAME)
    cluster = Cluster(kubeconfig(NAME, folder))
    nodes_ready(cluster)
    if there and "fencekv-system" in cluster.names("namespaces"):
        # The image's name is the same as before: only a new pod takes the new one.
        with contextlib.suppress(Failed):
            cluster.kubectl("-n", "fencekv-system", "rollout", "restart", "deployment/fencekv-operator")
        say("shards go on with the image that they have until their pods are deleted, one by one")
    install(cluster)
    sys.stdout.write(NEXT)


def main(words: list[str]) -> int:
    """Does what is asked; gives the exit status."""
    if why := missing("docker", "kind", "kubectl"):
        say(why)
        return 3
    folder = ROOT / ".fencekv"
    folder.mkdir(exist_ok=True)
    match words:
        case ["up"]:
            up(folder)
        case ["down"]:
            delete(NAME)
            (folder / f"{NAME}.kubeconfig").unlink(missing_ok=True)
        case _:
            say("usage: python e2e/kind.py up|down")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
