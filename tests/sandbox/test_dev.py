"""`fencekv dev` and the sandbox under it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from apiservers import Api
from podlab import eventually, is_true, stateful_set

from fencekv.access import Access
from fencekv.client import Table
from fencekv.errors import Unavailable
from fencekv.kube import CRDS, KV_TABLES, PODS, STATEFUL_SETS, HttpKube
from fencekv.results import Entry, Written
from fencekv.token import Token, Version
from fencekv_sandbox import applying, assets
from fencekv_sandbox.dev.drill import Outcome, Writers, missing
from fencekv_sandbox.dev.show import _samples
from fencekv_sandbox.operators import OperatorProcess
from fencekv_sandbox.pods import FolderInUse, processes
from fencekv_sandbox.sandbox import NotReady, Sandbox, is_ready

Object = dict[str, Any]

DEV = [sys.executable, "-c", "from fencekv.cli.main import main; main()", "dev"]
MEMBERS = {
    "ready_seconds",
    "failover_seconds",
    "epoch_before",
    "epoch_after",
    "owner_before",
    "owner_after",
    "acknowledged",
    "lost",
}


# The command


@pytest.mark.slow
def test_dev_shows_a_failover_and_a_later_start_goes_on_with_the_same_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = subprocess.run(
        [*DEV, "--exit", "-o", "json", "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert first.returncode == 0, first.stderr
    shown = json.loads(first.stdout)
    assert set(shown) == MEMBERS
    assert shown["lost"] == 0
    assert shown["acknowledged"] > 0
    assert shown["epoch_after"] > shown["epoch_before"] >= 1
    assert shown["failover_seconds"] < shown["ready_seconds"] + 60
    assert processes.left_over(str(data)) == []

    with subprocess.Popen(
        [*DEV, "--data", str(data)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as again:
        text = read_until(again, "Ctrl-C")
        assert "none lost" in text
        assert "hello" in text
        assert str(data / "kubeconfig") in text
        assert processes.left_over(str(data))
        again.send_signal(signal.SIGINT)
        assert again.wait(30) == 0
    assert processes.left_over(str(data)) == []


@pytest.mark.slow
def test_nothing_outlives_a_dev_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*DEV, "--data", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as dev:
        read_until(dev, "put greeting")
        assert len(processes.left_over(str(tmp_path))) >= 6  # a supervisor and a process for each shard
        dev.kill()
    for _ in range(250):
        if not processes.left_over(str(tmp_path)):
            return
        signal.sigtimedwait([], 0.02)
    raise AssertionError(processes.left_over(str(tmp_path)))


def test_a_port_that_is_taken_is_an_error_in_one_line(tmp_path: Path, apiserver: Api) -> None:
    port = apiserver.url.rsplit(":", 1)[1]
    done = subprocess.run(
        [*DEV, "--port", port, "--data", str(tmp_path / "data"), "--exit"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert port in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("shards", "replicas", "durability"), [(1, 0, "standard"), (2, 1, "replicated"), (5, 2, "replicated")]
)
def test_the_sample_fits_the_number_of_shards(shards: int, replicas: int, durability: str) -> None:
    namespace, table = _samples(shards)
    assert namespace["spec"]["shards"]["replicas"] == shards
    assert (table["spec"]["replicas"], table["spec"]["durability"]) == (replicas, durability)


# The drill


class FakeTable:
    """A table that acknowledges; under an epoch that can be raised, and with a memory that can be lost."""

    def __init__(self) -> None:
        self.epoch, self.down = 1, False
        self.kept: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> Written:
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("down")
        self.kept[key] = value
        number = len(self.kept)
        return Written(version=Version(self.epoch, number), token=Token(self.epoch, number), partition="t-0")

    async def get(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        if key not in self.kept:
            return None
        return Entry(key=key, value=self.kept[key], version=Version(1, 0), token=None)


async def test_the_drill_counts_what_was_acknowledged_and_finds_what_was_lost() -> None:
    table = FakeTable()
    writers = Writers(cast(Table, table), prefix="p", clock=asyncio.get_running_loop().time)
    task = asyncio.create_task(writers.run(0))
    await eventually(lambda: some(len(writers.acknowledged) > 2), what="writes")
    table.down = True
    before = dict(writers.acknowledged)
    await asyncio.sleep(0.05)
    assert writers.acknowledged == before
    waiting = asyncio.create_task(writers.first_above(1))
    table.epoch, table.down = 2, False
    assert await asyncio.wait_for(waiting, 5) == writers.epochs[2]
    task.cancel()
    assert await missing(cast(Table, table), writers.acknowledged) == []
    del table.kept["p/0-0"]
    table.kept["p/0-1"] = b"other"
    assert sorted(await missing(cast(Table, table), writers.acknowledged)) == ["p/0-0", "p/0-1"]


@pytest.mark.parametrize(("lost", "after", "good"), [(0, 2, True), (1, 2, False), (0, 1, False)])
def test_a_drill_is_good_only_with_a_failover_and_without_loss(lost: int, after: int, good: bool) -> None:
    outcome = Outcome(
        ready_seconds=1.0,
        failover_seconds=1.0,
        epoch_before=1,
        epoch_after=after,
        owner_before="a",
        owner_after="b",
        acknowledged=9,
        lost=lost,
    )
    assert outcome.is_good is good
    assert set(outcome.document()) == MEMBERS


# Applying


async def test_apply_creates_updates_and_leaves_alone_what_says_it_already(access: Access) -> None:
    async with HttpKube(access, user_agent="test") as kube:
        await applying.apply_definitions(kube, assets.crds())
        await applying.apply_definitions(kube, assets.crds())
        made = await applying.apply(kube, assets.samples(), namespace="default")
        again = await applying.apply(kube, assets.samples(), namespace="default")
        assert versions(made) == versions(again)

        patch = {"metadata": {"finalizers": ["example.com/kept"], "labels": {"mine": "kept"}}}
        await kube.patch(KV_TABLES, "default", "orders", patch)
        changed = assets.samples()
        changed[1]["spec"]["replicas"] = 1
        table = (await applying.apply(kube, changed, namespace="default"))[1]
        assert table["spec"]["replicas"] == 1
        assert table["metadata"]["finalizers"] == ["example.com/kept"]
        assert table["metadata"]["labels"] == {"mine": "kept"}
        await kube.patch(KV_TABLES, "default", "orders", {"metadata": {"finalizers": None}})


def test_a_kind_that_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match="v1 Teapot"):
        applying.resource_of({"apiVersion": "v1", "kind": "Teapot"})


# The sandbox


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[Sandbox]:
    """A sandbox without operators, on the embedded server."""
    async with Sandbox(data=tmp_path, operators=0, relist_seconds=0.2) as sandbox:
        yield sandbox


async def test_a_sandbox_serves_the_definitions_and_the_logs_of_its_pods(bare: Sandbox) -> None:
    assert len((await bare.kube.list(CRDS, None)).items) == len(assets.crds()) == 4
    await bare.apply(stateful_set("talk", "print('a word', flush=True); import time; time.sleep(600)"))
    await eventually(lambda: log_of(bare, "talk-0"), what="log")
    assert bare.pod("talk-0").is_running


async def test_only_one_sandbox_works_in_a_folder(bare: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(FolderInUse, match="another sandbox"):
        async with Sandbox(data=tmp_path, operators=0):
            pass
    assert (await bare.kube.list(CRDS, None)).items


async def test_a_later_sandbox_has_the_same_objects_port_and_volumes(tmp_path: Path) -> None:
    async with Sandbox(data=tmp_path, operators=0, relist_seconds=0.2) as sandbox:
        assert sandbox.server is not None
        port = sandbox.server.port
        await sandbox.apply(stateful_set("kept", "import time; time.sleep(600)"))
        await eventually(lambda: ready(sandbox, "kept-0"), what="kept-0 runs")
        (sandbox.pod("kept-0").volume / "file").write_text("x")
        uid = sandbox.pod("kept-0").uid
    async with Sandbox(data=tmp_path, operators=0, relist_seconds=0.2) as sandbox:
        assert sandbox.server is not None
        assert sandbox.server.port == port
        await eventually(lambda: some(sandbox.pod("kept-0").is_running), what="kept-0 runs again")
        assert sandbox.pod("kept-0").uid == uid
        assert (sandbox.pod("kept-0").volume / "file").read_text() == "x"
        assert await sandbox.kube.get(STATEFUL_SETS, "default", "kept")


async def test_a_sandbox_runs_on_another_api_server(apiserver: Api, tmp_path: Path) -> None:
    async with Sandbox(
        data=tmp_path / "data", kubeconfig=apiserver.kubeconfig, operators=0, relist_seconds=0.2
    ) as sandbox:
        assert sandbox.server is None
        await sandbox.apply(stateful_set("there", "import time; time.sleep(600)"))
        await eventually(lambda: ready(sandbox, "there-0"), what="there-0 runs")


async def test_what_does_not_become_ready_says_how_things_stand(bare: Sandbox) -> None:
    await bare.apply(assets.samples())
    with pytest.raises(NotReady, match=r"orders is not Ready after 0\.2 s"):
        await bare.wait_ready("orders", seconds=0.2)


async def test_an_operator_that_ended_is_noticed_with_its_last_words(bare: Sandbox, tmp_path: Path) -> None:
    ended = OperatorProcess(number=0, kubeconfig=tmp_path / "none", data=tmp_path)
    bare.operators.append(ended)
    ended.start()
    await eventually(lambda: some(ended.exit_status is not None), what="the operator's end")
    with pytest.raises(NotReady, match="the operator ended with status 3"):
        await bare.wait_ready("orders", seconds=5)


@pytest.mark.parametrize(
    ("generation", "observed", "status", "expected"),
    [(2, 2, "True", True), (2, 1, "True", False), (2, 2, "False", False), (2, 2, "Unknown", False)],
)
def test_ready_means_ready_as_specified_now(generation: int, observed: int, status: str, expected: bool) -> None:
    conditions = [{"type": "Ready", "status": status}]
    obj = {
        "metadata": {"generation": generation},
        "status": {"observedGeneration": observed, "conditions": conditions},
    }
    assert is_ready(obj) is expected


# What is waited for


async def some(found: bool) -> bool:
    return found


async def ready(sandbox: Sandbox, name: str) -> bool:
    pods = (await sandbox.kube.list(PODS, "default")).items
    return any(pod["metadata"]["name"] == name and is_true(pod, "Ready") for pod in pods)


async def log_of(sandbox: Sandbox, pod: str) -> bool:
    import aiohttp

    path = PODS.path("default", pod, "log")
    async with (
        aiohttp.ClientSession() as session,
        session.get(sandbox.kube.access.server + path, params={"tailLines": "1"}) as answer,
    ):
        return answer.status == 200 and await answer.text() == "a word\n"


def versions(objects: list[Object]) -> list[str]:
    return [obj["metadata"]["resourceVersion"] for obj in objects]


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"{words!r} never came:\n{''.join(lines)}\n{os.environ.get('PATH')}")
