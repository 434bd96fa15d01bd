"""`kubectl fencekv` on an API server: what it prints, what it orders, and with which exit status it ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from background import in_background
from cli_cluster import NAMESPACE, cluster, condition, partition, sample
from click.testing import CliRunner, Result

from fencekv import drill_history, leases
from fencekv.cli import kubectl, observe, operate, overview
from fencekv.cli import main as cli
from fencekv.cli.overview import without_renewals
from fencekv.cli.reach import Reach
from fencekv.cli.status import Cluster
from fencekv.kube import CONFIG_MAPS, KV_OPERATIONS, KV_PARTITIONS, KV_TABLES, LEASES, HttpKube, Resource, Unclear

Object = dict[str, Any]
Run = Callable[..., Result]
Objects = Sequence[tuple[Resource, Object]]
PROGRAM = [sys.executable, "-c", "from fencekv.cli.kubectl import main; main()"]


@contextlib.contextmanager
def running(
    folder: Path, objects: Objects, acts: Callable[[HttpKube], Awaitable[None]] | None = None
) -> Iterator[Run]:
    with in_background(cluster(folder, objects, acts=acts)) as kubeconfig:

        def run(*arguments: str) -> Result:
            return CliRunner().invoke(kubectl.main, [*arguments, "--kubeconfig", kubeconfig])

        yield run


@pytest.fixture(name="run", scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """For tests that change nothing that another one looks at."""
    with running(tmp_path_factory.mktemp("cluster"), sample()) as run:
        yield run


# -- status


@pytest.mark.parametrize(
    ("name", "partitions"),
    [("", 2), ("sample", 2), ("other", 0), ("orders", 2), ("orders-1", 1)],
)
def test_status_of_everything_a_namespace_a_table_or_a_partition(run: Run, name: str, partitions: int) -> None:
    result = run("status", *([name] if name else []), "-o", "yaml")
    assert result.exit_code == 0, result.stderr
    document = yaml.safe_load(result.stdout)
    assert len(document["partitions"]) == partitions
    spaces = {space["name"] for space in document["namespaces"]}
    assert spaces == {"": {"sample", "other"}, "other": {"other"}}.get(name, {"sample"})
    assert document == json.loads(run("status", *([name] if name else []), "-o", "json").stdout)


def test_status_of_what_does_not_exist_is_the_answer_no(run: Run) -> None:
    result = run("status", "nothing")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing does not exist" in result.stderr


def test_status_is_shown_again_when_something_changes_and_not_when_sessions_renew(tmp_path: Path) -> None:
    change = asyncio.Event()

    async def renew_and_change(kube: HttpKube) -> None:
        number = 1
        while True:
            number += 1
            body = {"metadata": {"annotations": {leases.RENEWAL: str(number)}}}
            await kube.patch(LEASES, NAMESPACE, "session-sample-1", body)
            if change.is_set():
                status = {"status": {"phase": "Blocked"}}
                await kube.patch(KV_PARTITIONS, NAMESPACE, "orders-1", status, subresource="status")
            await asyncio.sleep(0.02)

    # A shell ignores it for what it runs in the background, and so would every process from here on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with in_background(cluster(tmp_path, sample(), acts=renew_and_change)) as kubeconfig:
        command = [*PROGRAM, "status", "orders-1", "--watch", "--interval", "0.2", "-o", "yaml"]
        process = subprocess.Popen(
            [*command, "--kubeconfig", kubeconfig], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        first = _until(process.stdout, "---", stop="  conditions: []")
        change.set()
        second = _until(process.stdout, "never", stop="  conditions: []")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()
    assert "phase: Ready" in first
    assert "phase: Blocked" in second
    assert second.count("partitions:") == 2, "one document: its list, and the table's number"


def test_a_renewal_alone_is_no_change() -> None:
    def document(**shard: object) -> Object:
        return {"namespaces": [{"name": "s", "shards": [{"pod": "s-0", **shard}]}], "tables": []}

    first = without_renewals(document(renewal=1, state="Live"))
    assert without_renewals(document(renewal=2, state="Live")) == first
    assert without_renewals(document(renewal=2, state="Fenced")) != first


def test_watching_outlives_an_api_server_that_does_not_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[type[BaseException] | None] = [None, Unclear, None, KeyboardInterrupt]

    async def read(cluster: Reach) -> Cluster:
        trouble = looks.pop(0)
        if trouble is not None:
            raise trouble("no answer")
        return Cluster()

    monkeypatch.setattr(overview, "read", read)
    result = run("status", "--watch", "--interval", "0.2")
    assert (result.exit_code, looks) == (130, [])
    assert "no answer" in result.stderr
    assert result.stdout.count("SHARD") == 1
    looks.append(Unclear)
    assert run("status", "--watch").exit_code == 3, "the first look must succeed"


def _until(lines: Any, end: str, *, stop: str) -> str:
    """What is printed up to the end of the partitions, which come last."""
    text, seen = "", False
    for line in lines:
        text += line
        seen = seen or line.startswith("partitions:")
        if line.startswith(end) or (seen and line.startswith(stop)):
            return text
    raise AssertionError(text)


# -- why


async def renewing(kube: HttpKube, *pods: str) -> None:
    number = 1
    while True:
        number += 1
        for pod in pods:
            body = {"metadata": {"annotations": {leases.RENEWAL: str(number)}}}
            await kube.patch(LEASES, NAMESPACE, f"session-{pod}", body)
        await asyncio.sleep(0.02)


def test_why_of_what_is_served_is_one_look_and_status_0(run: Run) -> None:
    result = run("why", "orders-0", "-o", "json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["blocked"]) == (0, False)
    assert [cause["state"] for cause in document["causes"]] == ["Serving"]


def test_why_tells_who_renewed_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "LOOK_SECONDS", 0.3)
    waiting = condition("Ready", False, "Waiting", "sample-0 has not been heard for 3 s")
    objects = [each for each in sample() if each[1]["metadata"]["name"] != "orders-0"]
    objects.insert(3, partition(0, waiting))

    async def others(kube: HttpKube) -> None:
        await renewing(kube, "sample-1", "sample-2")

    with running(tmp_path, objects, others) as run:
        result = run("why", "orders-0")
    assert result.exit_code == 1, result.stderr
    lines = result.stdout.splitlines()
    assert lines[2].startswith("blocked: OwnerSilent [gate 1")
    assert "sample-0 did not renew its session" in lines[3]
    assert "What to do: wait" in lines[4]
    assert "session-sample-1" not in result.stdout


def test_why_of_a_partition_that_is_not_there_says_what_its_table_says(tmp_path: Path) -> None:
    stalled = condition("Stalled", True, "QuotaExceeded", "9 of 8 partitions")
    objects = [each for each in sample() if each[0] is not KV_TABLES]
    table = next(body for resource, body in sample() if resource is KV_TABLES)
    table["status"]["conditions"].append(stalled)
    with running(tmp_path, [*objects, (KV_TABLES, table)]) as run:
        result = run("why", "orders-9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "orders-9 does not exist; KVTable orders: QuotaExceeded: 9 of 8 partitions" in result.stderr


# -- promote and drill


def carrying_out(*steps: Object, seen: list[Object]) -> Callable[[HttpKube], Awaitable[None]]:
    """An operator that takes the first KVOperation through these statuses."""

    async def act(kube: HttpKube) -> None:
        while not (found := (await kube.list(KV_OPERATIONS, NAMESPACE)).items):
            await asyncio.sleep(0.02)
        seen.append(found[0])
        name = found[0]["metadata"]["name"]
        for step in steps:
            await kube.patch(KV_OPERATIONS, NAMESPACE, name, {"status": step}, subresource="status")
            await asyncio.sleep(0.1)

    return act


MOVED = {"epochBefore": 4, "epochAfter": 5, "owner": "sample-1", "verdict": "Moved"}
RUNNING = {"phase": "Running", "step": "Asking", "message": "sample-0 is asked to let it go"}
SUCCEEDED = {"phase": "Succeeded", "step": "Done", "message": "sample-1 owns it", "result": MOVED}
FAILED = {"phase": "Failed", "step": "Done", "message": "sample-1 is not in sync"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "LOOK_SECONDS", 0.02)


@pytest.mark.parametrize(
    ("arguments", "spec"),
    [
        ([], {"type": "switchover", "table": "orders", "partition": "orders-1"}),
        (
            ["--to", "sample-1"],
            {"type": "switchover", "table": "orders", "partition": "orders-1", "switchover": {"to": "sample-1"}},
        ),
    ],
)
def test_promote_orders_a_switchover_and_waits(tmp_path: Path, arguments: list[str], spec: Object) -> None:
    seen: list[Object] = []
    with running(tmp_path, sample(), carrying_out(RUNNING, SUCCEEDED, seen=seen)) as run:
        result = run("promote", "orders-1", *arguments, "-o", "json")
    assert result.exit_code == 0, result.stderr
    ordered = seen[0]["spec"]
    assert {key: ordered[key] for key in spec} == spec
    assert json.loads(result.stdout)["status"]["result"] == MOVED
    assert "sample-0 is asked to let it go" in result.stderr


def test_promote_that_fails_is_the_answer_no_and_says_why(tmp_path: Path) -> None:
    with running(tmp_path, sample(), carrying_out(RUNNING, FAILED, seen=[])) as run:
        result = run("promote", "orders-1")
    assert result.exit_code == 1
    assert "sample-1 is not in sync" in result.stderr
    assert ["phase", "Failed"] in [line.split() for line in result.stdout.splitlines()]


def test_an_order_that_is_not_over_in_time_goes_on_and_is_named(run: Run) -> None:
    result = run("promote", "orders-1", "--timeout", "1")
    assert result.exit_code == 3
    assert "no operator has begun it" in result.stderr
    assert "switchover-orders-1-" in result.stderr
    assert run("promote", "orders-1", "--no-wait").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["promote", "orders-7"], 1),
        (["promote", "orders-0", "--to", "sample-1", "--accept-loss", "4"], 2),
        (["promote", "orders-0", "--to", "NOT A POD"], 2),
        (["drill", "nothing"], 1),
        (["drill", "orders", "--fault", "earthquake"], 2),
        (["drill", "orders", "--history", "x", "--no-wait"], 2),
        (["report", "-o", "bundle.rar"], 2),
        (["report", "nothing"], 1),
    ],
)
def test_what_cannot_be_ordered(run: Run, arguments: list[str], status: int, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        assert run(*arguments).exit_code == status


def test_a_drill_of_a_table_saves_its_history(tmp_path: Path) -> None:
    drill = drill_history.DrillHistory(head={"operation": "d"})
    result = {"rtoSeconds": 1.5, "writesAcknowledged": 10, "lost": 0, "staleAcknowledged": 0, "verdict": "Passed"}
    seen: list[Object] = []
    done = {"phase": "Succeeded", "partition": "orders-1", "result": result, "history": "d-history"}
    carry = carrying_out(RUNNING, done, seen=seen)

    async def act(kube: HttpKube) -> None:
        data = base64.b64encode(drill_history.to_bytes(drill)).decode()
        held = {"metadata": {"name": "d-history"}, "binaryData": {operate.HISTORY_KEY: data}}
        await kube.create(CONFIG_MAPS, NAMESPACE, {"apiVersion": "v1", "kind": "ConfigMap", **held})
        await carry(kube)

    file = tmp_path / "history"
    with running(tmp_path, sample(), act) as run:
        told = run("drill", "orders", "--fault", "freeze", "--rto", "7", "--history", str(file))
    assert told.exit_code == 0, told.stderr
    assert seen[0]["spec"]["drill"] == {"fault": "freeze", "putsPerSecond": 200, "rtoSecondsMax": 7}
    assert "partition" not in seen[0]["spec"]
    rows = [line.split() for line in told.stdout.splitlines()]
    assert ["about", "orders-1"] in rows
    assert ["rtoSeconds", "1.5"] in rows
    assert drill_history.from_bytes(file.read_bytes()).head == {"operation": "d"}
    assert CliRunner().invoke(cli.main, ["check-history", str(file)]).exit_code in {0, 1}


# -- a loss


LOST = f"no in-sync replica is reachable (missing: sample-0); to accept the loss annotate: {leases.ACCEPT_LOSS}=4"


def lossy() -> Objects:
    degraded = (condition("Ready", False, "Degraded", LOST), condition("Degraded", True, "NoCandidate", LOST))
    objects = [each for each in sample() if each[1]["metadata"]["name"] != "orders-0"]
    objects.insert(3, partition(0, *degraded))
    return objects


def test_a_loss_is_accepted_for_the_epoch_that_is_named_and_no_other(tmp_path: Path) -> None:
    async def operator(kube: HttpKube) -> None:
        while True:
            item = await kube.get(KV_PARTITIONS, NAMESPACE, "orders-0")
            if (item["metadata"].get("annotations") or {}).get(leases.ACCEPT_LOSS) == "4":
                status = {"epoch": 5, "owner": "sample-2", "conditions": [condition("Ready", True, "Serving")]}
                await kube.patch(KV_PARTITIONS, NAMESPACE, "orders-0", {"status": status}, subresource="status")
                return
            await asyncio.sleep(0.02)

    with running(tmp_path, lossy(), operator) as run:
        for wrong in ("3", "5"):
            refused = run("promote", "orders-0", "--accept-loss", wrong)
            assert refused.exit_code == 1
            assert f"can be accepted is 4, not {wrong}: nothing was done" in refused.stderr
        assert json.loads(run("status", "orders-0", "-o", "json").stdout)["partitions"][0]["conditions"]
        accepted = run("promote", "orders-0", "--accept-loss", "4", "-o", "json")
    assert accepted.exit_code == 0, accepted.stderr
    assert json.loads(accepted.stdout) == {"partition": "orders-0", "owner": "sample-2", "epoch": 5}


def test_where_nothing_is_lost_no_loss_is_accepted(run: Run) -> None:
    refused = run("promote", "orders-0", "--accept-loss", "4")
    assert refused.exit_code == 1
    assert "there is no loss to accept" in refused.stderr


# -- the program itself


def test_every_command_is_listed_and_explains_itself() -> None:
    listing = CliRunner().invoke(kubectl.main, ["--help"])
    for name in [*kubectl.COMMANDS, "version"]:
        assert name in listing.stdout
        helped = CliRunner().invoke(kubectl.main, [name, "--help"])
        assert (helped.exit_code, "Usage:" in helped.stdout) == (0, True)


def test_commands_of_other_packages_come_in_and_hide_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plug:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> click.Command:
            return click.Command(self.name, callback=lambda: click.echo(f"plugged {self.name}"))

    monkeypatch.setattr(kubectl, "_plug_ins", lambda: {name: Plug(name) for name in ("planned", "status")})
    assert CliRunner().invoke(kubectl.main, ["planned"]).stdout == "plugged planned\n"
    assert "Show namespaces" in CliRunner().invoke(kubectl.main, ["status", "--help"]).stdout


def test_kubectl_is_told_completions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-fencekv", "pro"])
    kubectl.complete()
    promote, files = capsys.readouterr().out.splitlines()
    assert (promote.split("\t")[0], files) == ("promote", ":4")
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-fencekv", "drill", "--fault", "cut"])
    kubectl.complete()
    assert capsys.readouterr().out.splitlines() == ["cutFromAPI", "cutFromPeers", ":4"]
