"""The support bundle: what is in it, what never is, and how much."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from background import in_background
from cli_cluster import NAMESPACE, cluster, sample, shard_pod
from click.testing import CliRunner

from fencekv.cli import bundle as bundle_module
from fencekv.cli.bundle import Bundle
from fencekv.cli.kubectl import main
from fencekv.cli.redact import REDACTED, redacted, redacted_text
from fencekv.kube import CONFIG_MAPS, PODS, HttpKube, Resource

SECRETS = Resource("", "v1", "secrets", "Secret")
SECRET = "hunter2hunter2"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzaGFyZCJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIAABCDEFGHIJKLMNOP:{SECRET}@bucket/prefix",
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}",
        f"token {TOKEN} was refused",
        f"password={SECRET}",
        f'"secret": "{SECRET}"',
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"--api-key {SECRET}x".replace("key ", "key="),
        f"https://host/path?sig={SECRET}&x=1",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
    ],
)
def test_credentials_are_taken_out_of_texts(text: str) -> None:
    cleaned = redacted_text(text)
    assert REDACTED in cleaned
    assert SECRET not in cleaned
    assert TOKEN not in cleaned
    assert "AKIA" not in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "orders-0: owner with epoch 4",
        "GET http://127.0.0.1:7070/v1/sample/orders/keys/order-17?prefix=a",
        'fencekv_requests_total{outcome="ok",route="put"} 2.0',
        "session sample-0/uid/nonce is over: ContainerTerminated",
        "renewal 412: 409 Conflict",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redacted_text(text) == text


def test_objects_lose_credentials_by_name_and_by_form_and_copies_of_themselves() -> None:
    item = {
        "metadata": {
            "name": "a",
            "managedFields": [{"manager": "kubectl"}],
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": f'{{"x": "{SECRET}"}}',
                "example.com/api-key": SECRET,
                "fencekv.io/renewal": "9",
            },
        },
        "spec": {
            "objectStore": {"url": f"s3://user:{SECRET}@bucket", "credentialsSecret": "store-credentials"},
            "containers": [
                {"env": [{"name": "DB_PASSWORD", "value": SECRET}, {"name": "FENCEKV_DATA", "value": "/data"}]},
                {"env": [{"name": "B", "valueFrom": {"secretKeyRef": {"name": "store", "key": "password"}}}]},
            ],
            "automountServiceAccountToken": False,
        },
        "status": {"token": "4.17"},
    }
    cleaned = redacted(item)
    assert SECRET not in json.dumps(cleaned)
    assert "managedFields" not in cleaned["metadata"]
    assert cleaned["metadata"]["annotations"]["fencekv.io/renewal"] == "9"
    assert cleaned["spec"]["objectStore"]["credentialsSecret"] == "store-credentials"
    first, second = (container["env"] for container in cleaned["spec"]["containers"])
    assert first == [{"name": "DB_PASSWORD", "value": REDACTED}, {"name": "FENCEKV_DATA", "value": "/data"}]
    assert second[0]["valueFrom"]["secretKeyRef"] == {"name": "store", "key": "password"}
    assert cleaned["spec"]["automountServiceAccountToken"] is False
    assert cleaned["status"] == {"token": "4.17"}


def test_a_bundle_is_bounded_and_says_what_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "FILE_BYTES_MAX", 100)
    monkeypatch.setattr(bundle_module, "BUNDLE_BYTES_MAX", 150)
    monkeypatch.setattr(bundle_module, "OBJECTS_MAX", 2)
    made = Bundle()
    made.add_text("a.log", b"x" * 200 + b"the end")
    made.add_text("b.log", b"y" * 200)
    made.add_objects("pods", [{"n": number} for number in range(3)])
    assert made.files["a.log"].endswith(b"the end")
    assert [len(data) for data in made.files.values()] == [100, 50, 0]
    assert made.notes[:2] == ["a.log: 100 of 207 bytes", "b.log: 50 of 200 bytes"]
    assert "pods: the first 2 of 3 objects" in made.notes


@pytest.mark.parametrize("kind", [".zip", ".tar.gz", ".tgz"])
def test_the_same_files_give_the_same_archive(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> bytes:
        made = Bundle()
        made.add_text("b.log", b"b")
        made.add_text("a.log", b"a")
        return made.archive(kind, about={})

    assert set(contents(kind, make())) == {"a.log", "b.log", "manifest.json"}
    first = make()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert make() == first


def contents(kind: str, data: bytes) -> dict[str, bytes]:
    if kind == ".zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name.removeprefix("fencekv-report/"): archive.read(name) for name in archive.namelist()}
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.removeprefix("fencekv-report/")] = file.read()
    return found


async def logs(
    _namespace: str, pod: str, *, container: str, previous: bool, tail_lines: int | None, follow: bool
) -> AsyncIterator[bytes]:
    yield f"{pod} {container} previous={previous} tail={tail_lines}\nAuthorization: Bearer {SECRET}\n".encode()


async def secrets_too(kube: HttpKube) -> None:
    """Things that a bundle must not carry."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": {"k": SECRET}}
    await kube.create(SECRETS, NAMESPACE, secret)
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": SECRET}}
    await kube.create(CONFIG_MAPS, NAMESPACE, held)
    status = {
        "status": {
            "containerStatuses": [
                {"name": "shard", "restartCount": 2, "image": "i", "imageID": "i", "ready": True, "state": {}}
            ]
        }
    }
    await kube.patch(PODS, NAMESPACE, "sample-1", status, subresource="status")


@pytest.fixture(name="found", scope="module", params=["report.zip", "report.tar.gz"])
def make_report(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("report")
    objects = [each for each in sample() if each[1]["metadata"]["name"] != "sample-0"]
    objects.append(shard_pod("sample-0", DB_PASSWORD=SECRET, FENCEKV_DATA="/data"))
    file = folder / request.param
    ready = {"done": False}

    async def act(kube: HttpKube) -> None:
        await secrets_too(kube)
        ready["done"] = True

    with in_background(cluster(folder, objects, acts=act, logs=logs)) as kubeconfig:
        while not ready["done"]:
            CliRunner().invoke(main, ["status", "--kubeconfig", kubeconfig])
        result = CliRunner().invoke(main, ["report", "sample", "-o", str(file), "--kubeconfig", kubeconfig])
    assert result.exit_code == 0, result.stderr
    return contents(Path(request.param).name.removeprefix("report"), file.read_bytes())


def test_a_report_holds_what_an_expert_asks_for(found: dict[str, bytes]) -> None:
    for kind in ("kvnamespaces", "kvtables", "kvpartitions", "leases", "pods"):
        assert list(yaml.safe_load_all(found[f"{kind}.yaml"])), kind
    spaces = [each["metadata"]["name"] for each in yaml.safe_load_all(found["kvnamespaces.yaml"])]
    assert spaces == ["sample"], "the one that was named"
    assert b"tail=5000" in found["shards/sample-0/shard.log"]
    assert b"previous=True" in found["shards/sample-1/shard.previous.log"]
    assert "shards/sample-0/shard.previous.log" not in found, "it never restarted"
    manifest = json.loads(found["manifest.json"])
    assert manifest["kvNamespace"] == "sample"
    assert manifest["fencekv"]
    assert any("shards/sample-0/metrics.txt: left out" in note for note in manifest["notes"]), "no shard runs here"


def test_a_report_holds_no_secret(found: dict[str, bytes]) -> None:
    for name, data in found.items():
        assert SECRET.encode() not in data, name
        assert b"kind: Secret" not in data, name
        assert b"kind: ConfigMap" not in data, name
    assert REDACTED.encode() in found["shards/sample-0/shard.log"]
    assert b"/data" in found["pods.yaml"]
