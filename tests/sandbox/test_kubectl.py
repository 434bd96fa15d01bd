"""kubectl, unmodified, on the API server of this run. Needs one: from KUBEBUILDER_ASSETS or on the PATH."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiservers import Api
from conformance.samples import (
    GROUP,
    MERGE,
    WIDGETS,
    create,
    get,
    lease,
    leases,
    pod,
    pods,
    stateful_set,
    widget,
    widgets,
)

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
SECONDS = 30


def find_kubectl() -> str | None:
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    beside = Path(folder) / "kubectl"
    if folder and os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which("kubectl")


KUBECTL = find_kubectl()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(KUBECTL is None, reason="no kubectl in KUBEBUILDER_ASSETS or on the PATH"),
]


class Kubectl:
    """kubectl in a namespace of its own."""

    def __init__(self, api: Api, namespace: str, folder: Path) -> None:
        self.api, self.namespace, self.folder = api, namespace, folder

    async def run(self, *arguments: str, stdin: Any = None, status: int = 0, **variables: str) -> str:
        """Run it; what it printed, both streams together."""
        assert KUBECTL is not None
        home = self.folder / "home"
        environment = {**os.environ, "KUBECONFIG": str(self.api.kubeconfig), "HOME": str(home), **variables}
        process = await asyncio.create_subprocess_exec(
            KUBECTL, "--namespace", self.namespace, *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
        text = stdin if isinstance(stdin, str | None) else yaml.safe_dump_all(stdin)
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate(None if text is None else text.encode())
        printed = output.decode()
        assert process.returncode == status, printed
        return printed

    async def apply(self, *objects: Object, more: tuple[str, ...] = (), status: int = 0) -> str:
        return await self.run("apply", "-f", "-", *more, stdin=list(objects), status=status)


@pytest.fixture
async def kubectl(apiserver: Api, tmp_path: Path) -> Kubectl:
    await apiserver.define(WIDGETS)
    return Kubectl(apiserver, await apiserver.namespace(), tmp_path)


async def test_apply_creates_configures_and_leaves_alone(kubectl: Kubectl) -> None:
    assert "widget.conformance.fencekv.io/a created" in await kubectl.apply(widget())
    assert "unchanged" in await kubectl.apply(widget())
    assert "configured" in await kubectl.apply(widget(size=4, note="hello"))
    assert "configured" in await kubectl.apply(widget(size=4))
    spec = (await get(kubectl.api, widgets(kubectl.namespace, "a")))["spec"]
    assert spec == {"size": 4, "color": "red", "owner": {"name": "nobody"}}


async def test_apply_refuses_what_the_schema_does_not_know(kubectl: Kubectl) -> None:
    printed = await kubectl.apply(widget(surplus=4), status=1)
    assert 'unknown field "spec.surplus"' in printed
    printed = await kubectl.apply(widget(surplus=4), more=("--validate=warn",))
    assert 'Warning: unknown field "spec.surplus"' in printed
    printed = await kubectl.apply(widget("b", size=40), status=1)
    assert "spec.size in body should be less than or equal to 9" in printed
    printed = await kubectl.apply(lease(duration=5), status=1)
    assert 'unknown field "spec.duration"' in printed


async def test_apply_of_a_built_in_kind_merges_strategically(kubectl: Kubectl) -> None:
    body = stateful_set(replicas=1)
    assert "created" in await kubectl.apply(body)
    body["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "example.com/side:1"})
    assert "configured" in await kubectl.apply(body)
    del body["spec"]["template"]["spec"]["containers"][0]
    assert "configured" in await kubectl.apply(body)
    found = json.loads(await kubectl.run("get", "sts", "a", "-o", "json"))
    assert [one["name"] for one in found["spec"]["template"]["spec"]["containers"]] == ["side"]
    assert "unchanged" in await kubectl.apply(body)


async def test_server_side_apply(kubectl: Kubectl) -> None:
    more = ("--server-side", "--field-manager=one")
    assert "serverside-applied" in await kubectl.apply(widget(note="hello"), more=more)
    assert "serverside-applied" in await kubectl.apply(widget(size=5), more=more)
    assert "note" not in (await get(kubectl.api, widgets(kubectl.namespace, "a")))["spec"]
    other = ("--server-side", "--field-manager=two")
    printed = await kubectl.apply(widget(size=6), more=other, status=1)
    assert 'conflict with "one"' in printed
    assert "serverside-applied" in await kubectl.apply(widget(size=6), more=(*other, "--force-conflicts"))


async def test_get_shows_columns(kubectl: Kubectl) -> None:
    await kubectl.apply(widget(note="hello"))
    lines = (await kubectl.run("get", "wd")).splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "READY", "AGE"]
    assert lines[1].split()[:2] == ["a", "3"]
    assert "NOTE" in (await kubectl.run("get", "widgets", "-o", "wide")).splitlines()[0]
    assert (await kubectl.run("get", "widget", "a", "-o", "name")).strip() == f"widget.{GROUP}/a"
    assert yaml.safe_load(await kubectl.run("get", "wd", "a", "-o", "yaml"))["spec"]["size"] == 3
    assert json.loads(await kubectl.run("get", "conformance", "-o", "json"))["items"][0]["kind"] == "Widget"
    assert (await kubectl.run("get", "wd", "a", "-o", "jsonpath={.spec.color}")) == "red"
    assert "No resources found" in await kubectl.run("get", "leases")


async def test_describe_label_annotate_patch_scale(kubectl: Kubectl) -> None:
    await kubectl.apply(widget())
    assert "labeled" in await kubectl.run("label", "wd", "a", "x=y")
    assert "annotated" in await kubectl.run("annotate", "wd", "a", "n=m")
    assert "patched" in await kubectl.run("patch", "wd", "a", "--type=merge", "-p", '{"spec":{"size":5}}')
    assert "scaled" in await kubectl.run("scale", "wd", "a", "--replicas=7")
    described = await kubectl.run("describe", "wd", "a")
    assert "x=y" in described
    assert "n: m" in described
    assert re.search(r"Size: +7\n", described)
    assert "Events:" in described
    assert (await kubectl.run("get", "wd", "-l", "x=y", "-o", "name")).strip().endswith("/a")


async def test_edit(kubectl: Kubectl) -> None:
    await kubectl.apply(widget())
    assert "edited" in await kubectl.run("edit", "wd", "a", KUBE_EDITOR="sed -i s/size:.3/size:\\ 6/")
    assert (await get(kubectl.api, widgets(kubectl.namespace, "a")))["spec"]["size"] == 6


async def test_diff(kubectl: Kubectl) -> None:
    await kubectl.apply(widget())
    printed = await kubectl.run("diff", "-f", "-", stdin=[widget(size=4)], status=1)
    assert "-  size: 3" in printed
    assert "+  size: 4" in printed
    assert await kubectl.run("diff", "-f", "-", stdin=[widget()]) == ""


async def test_wait_and_delete(kubectl: Kubectl) -> None:
    await kubectl.apply(widget())
    path = widgets(kubectl.namespace, "a")
    waiting = asyncio.create_task(kubectl.run("wait", "wd/a", "--for=condition=Ready", "--timeout=20s"))
    await asyncio.sleep(0.3)
    status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await kubectl.api.ask("PATCH", path + "/status", status, content=MERGE)
    assert "condition met" in await waiting
    waiting = asyncio.create_task(kubectl.run("wait", "wd/a", "--for=delete", "--timeout=20s"))
    await asyncio.sleep(0.3)
    assert "deleted" in await kubectl.run("delete", "wd", "a")
    await waiting
    assert "NotFound" in await kubectl.run("get", "wd", "a", status=1)


async def test_events_are_listed_and_described(kubectl: Kubectl) -> None:
    await kubectl.apply(widget())
    uid = (await get(kubectl.api, widgets(kubectl.namespace, "a")))["metadata"]["uid"]
    about = {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "name": "a",
        "namespace": kubectl.namespace,
        "uid": uid,
    }
    event = {
        "metadata": {"generateName": "a."},
        "involvedObject": about,
        "reason": "Granted",
        "message": "epoch 4",
        "type": "Normal",
        "firstTimestamp": "2026-01-02T03:04:05Z",
        "lastTimestamp": "2026-01-02T03:04:05Z",
        "count": 1,
        "source": {"component": "operator"},
    }
    await create(kubectl.api, f"/api/v1/namespaces/{kubectl.namespace}/events", event)
    lines = (await kubectl.run("get", "events")).splitlines()
    assert lines[0].split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    assert lines[1].split()[1:] == ["Normal", "Granted", "widget/a", "epoch", "4"]
    assert "epoch 4" in await kubectl.run("describe", "wd", "a")
    assert "epoch 4" in await kubectl.run("events", "--for", "widget/a")


async def test_resources_are_listed_and_explained(kubectl: Kubectl) -> None:
    printed = await kubectl.run("api-resources", "--api-group", GROUP)
    assert [line.split() for line in printed.splitlines()[1:]] == [
        ["widgets", "wd", f"{GROUP}/v1", "true", "Widget"]
    ]
    assert "<integer>" in await kubectl.run("explain", "widgets.spec.size")
    assert "leaseTransitions" in await kubectl.run("explain", "leases.spec")
    assert "Server Version" in await kubectl.run("version")


async def test_a_pod_is_shown_and_deleted(kubectl: Kubectl) -> None:
    await create(kubectl.api, pods(kubectl.namespace), pod())
    lines = (await kubectl.run("get", "pods")).splitlines()
    assert lines[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert lines[1].split()[:4] == ["a", "0/1", "Pending", "0"]
    assert "Image:" in await kubectl.run("describe", "pod", "a")
    assert "deleted" in await kubectl.run("delete", "pod", "a", "--force", "--grace-period=0")


async def test_leases_and_statefulsets_are_shown(kubectl: Kubectl) -> None:
    await create(kubectl.api, leases(kubectl.namespace), lease())
    assert (await kubectl.run("get", "leases")).splitlines()[1].split()[:2] == ["a", "me"]
    assert "Holder Identity:" in await kubectl.run("describe", "lease", "a")
    await kubectl.apply(stateful_set(replicas=2))
    assert (await kubectl.run("get", "sts")).splitlines()[1].split()[:2] == ["a", "0/2"]
    assert "scaled" in await kubectl.run("scale", "sts/a", "--replicas=3")
    assert "Replicas:" in await kubectl.run("describe", "sts", "a")
    everything = await kubectl.run("get", "all")
    assert "statefulset.apps/a" in everything


async def test_create_from_arguments(kubectl: Kubectl) -> None:
    assert "created" in await kubectl.run("create", "configmap", "m", "--from-literal=a=b", "--from-literal=c=")
    assert json.loads(await kubectl.run("get", "cm", "m", "-o", "json"))["data"] == {"a": "b", "c": ""}
    assert "created" in await kubectl.run("create", "secret", "generic", "s", "--from-literal=a=b")
    assert json.loads(await kubectl.run("get", "secret", "s", "-o", "json"))["data"] == {"a": "Yg=="}
    assert "created" in await kubectl.run("create", "serviceaccount", "robot")
    assert (await kubectl.run("create", "token", "robot", "--duration=1h")).strip()
    assert (await kubectl.run("auth", "can-i", "create", "leases")).strip() == "yes"
    name = f"{kubectl.namespace}-more"
    assert "created" in await kubectl.run("create", "namespace", name)
    assert (await get(kubectl.api, f"/api/v1/namespaces/{name}"))["status"]["phase"] == "Active"


async def test_the_log_of_a_pod_is_shown(kubectl: Kubectl) -> None:
    if kubectl.api.embedded is None:
        pytest.skip("a bare control plane has no kubelet to ask for logs")

    async def logs(namespace: str, name: str, **options: Any) -> AsyncIterator[bytes]:
        yield f"{namespace}/{name} {options['tail_lines']} {options['follow']}\n".encode()

    kubectl.api.embedded.pod_logs = logs
    await create(kubectl.api, pods(kubectl.namespace), pod())
    assert await kubectl.run("logs", "a", "--tail=5", "-f") == f"{kubectl.namespace}/a 5 True\n"


async def test_the_crds_and_samples_of_the_project_apply(kubectl: Kubectl) -> None:
    kubectl.namespace = "default"
    await kubectl.run("apply", "-k", str(ROOT / "crds"))
    names = [f"crd/{name}.fencekv.io" for name in ("kvnamespaces", "kvtables", "kvpartitions")]
    await kubectl.run("wait", "--for=condition=Established", *names, "--timeout=20s")
    printed = await kubectl.run("apply", "-k", str(ROOT / "manifests" / "samples"))
    assert "created" in printed
    assert "unchanged" in await kubectl.run("apply", "-k", str(ROOT / "manifests" / "samples"))
