"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from background import in_background, kubernetes_lists
from click.testing import CliRunner, Result
from fake_node import FakeNode, serving
from scripted_shard import closed_port

from fencekv import leases
from fencekv.cli import main as cli
from fencekv.cli.kubectl import main as kubectl
from fencekv.errors import Lost, Unknown
from fencekv.partitioning import HashPartitioning

Run = Callable[..., Result]


@pytest.fixture(name="node")
def make_node() -> FakeNode:
    node = FakeNode()
    node.add_table("orders")
    node.add_table("wide", partitioning=HashPartitioning(3))
    return node


@pytest.fixture(name="address")
def start(node: FakeNode) -> Iterator[str]:
    with in_background(serving(node)) as [shard]:
        yield f"127.0.0.1:{shard.port}"


@pytest.fixture(name="run")
def make_run(address: str) -> Run:
    def run(*arguments: str, stdin: str | bytes | None = None, **environment: str) -> Result:
        named = {"FENCEKV_ENDPOINT": address, "FENCEKV_NAMESPACE": "sample", **environment}
        return CliRunner().invoke(cli.main, list(arguments), input=stdin, env=named)

    return run


def output(result: Result) -> Any:
    assert result.exit_code in {0, 1}, result.output
    return json.loads(result.stdout)


def test_put_get_delete(run: Run) -> None:
    done = run("put", "orders", "a/b", "hello")
    assert (done.exit_code, done.stdout.split()[-4:]) == (0, ["a/b", "1.0", "1.1", "orders-0"])
    got = run("get", "orders", "a/b")
    assert (got.exit_code, got.stdout) == (0, "hello")
    assert run("get", "orders", "a/b", "-o", "table").stdout.split()[-3:] == ["a/b", "1.0", "hello"]
    assert output(run("get", "orders", "a/b", "-o", "json")) == {
        "key": "a/b",
        "value": "hello",
        "version": "1.0",
        "token": "1.1",
    }
    assert output(run("delete", "orders", "a/b", "-o", "json"))["existed"] is True


def test_the_transport_is_chosen_by_option_and_environment(run: Run) -> None:
    for transport in ("frames", "http"):
        assert run("put", "orders", "k", "v", "--transport", transport).exit_code == 0
        assert run("get", "orders", "k", FENCEKV_TRANSPORT=transport).stdout == "v"
    assert run("get", "orders", "k", "--transport", "pigeons").exit_code == 2
    wrong = run("get", "orders", "k", FENCEKV_TRANSPORT="pigeons")
    assert (wrong.exit_code, "pigeons" in wrong.stderr) == (2, True)


def test_the_answer_no_is_exit_status_1(run: Run) -> None:
    absent = run("get", "orders", "k")
    assert (absent.exit_code, absent.stdout) == (1, "")
    assert absent.stderr == "fencekv: NotFound: key 'k' does not exist in orders\n"
    gone = run("delete", "orders", "k")
    assert (gone.exit_code, gone.stdout.split()[4:6]) == (1, ["k", "no"])
    run("put", "orders", "k", "1")
    refused = run("put", "orders", "k", "2", "--if-absent", "-o", "json")
    assert refused.exit_code == 1
    problem = json.loads(refused.stderr)
    assert (problem["title"], problem["version"]) == ("Conflict", "1.0")
    assert run("put", "orders", "k", "2", "--if-version", "1.0").exit_code == 0
    assert run("history", "orders", "absent").exit_code == 1


def test_values_from_standard_input_and_from_a_file_are_taken_as_they_are(run: Run, tmp_path: Path) -> None:
    run("put", "orders", "k", "-", stdin=b"\x00\xff\n")
    assert run("get", "orders", "k").stdout_bytes == b"\x00\xff\n"
    assert output(run("get", "orders", "k", "-o", "json"))["base64"] == "AP8K"
    file = tmp_path / "value"
    file.write_bytes(b"from a file\n")
    run("put", "orders", "k", "--file", str(file))
    assert run("get", "orders", "k").stdout_bytes == b"from a file\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["put", "orders", "k"],
        ["put", "orders", "k", "v", "--file", "/dev/null"],
        ["put", "orders", "k", "v", "--if-absent", "--if-version", "1.0"],
        ["put", "orders", "k", "v", "--if-version", "seven"],
        ["put", "orders", "k", "v", "--durability", "durable"],
        ["get", "orders", ""],
        ["get", "orders", "k", "--min-token", "7"],
        ["get", "nothing", "k"],
        ["get", "orders", "k", "--timeout", "0"],
        ["get", "orders", "k", "--endpoint", "nonsense"],
        ["list", "orders", "--limit", "0"],
        ["txn", "orders"],
        ["txn", "orders", "--put", "no-equals-sign"],
        ["txn", "orders", "-", "--put", "a=b"],
        ["txn", "orders", "/nonexistent/document"],
        ["frobnicate"],
        ["completion", "tcsh"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_status_2_with_one_clear_message(
    run: Run, node: FakeNode, arguments: list[str]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert [call for call in node.calls if call[1] != "0"] == []


@pytest.mark.parametrize("form", ["table", "json"])
def test_unavailable_is_exit_status_3(run: Run, form: str) -> None:
    nobody = {"FENCEKV_ENDPOINT": f"127.0.0.1:{closed_port()}"}
    result = run("get", "orders", "k", "--timeout", "0.1", "-o", form, **nobody)
    assert (result.exit_code, result.stdout) == (3, "")
    [line] = result.stderr.splitlines()
    assert (
        line.startswith("fencekv: Unavailable: ")
        if form == "table"
        else json.loads(line)["title"] == "Unavailable"
    )


def test_other_errors_have_their_exit_status(run: Run, node: FakeNode) -> None:
    node.replicas["orders", 0].script = [Lost("gone")]
    assert run("get", "orders", "k").exit_code == 1
    node.replicas["orders", 0].script = [Unknown("?")] * 50
    assert run("put", "orders", "k", "v", "--timeout", "0.1").exit_code == 3


def test_list(run: Run) -> None:
    for key in ("a1", "a2", "a3", "b1"):
        run("put", "wide", key, f"value\n{key}")
    shown = run("list", "wide", "--prefix", "a", "--limit", "2")
    assert shown.stdout.split()[:3] == ["KEY", "VERSION", "VALUE"]
    assert "value\\na1" in shown.stdout
    assert ("a3" in shown.stdout, "there is more" in shown.stderr) == (False, True)
    page = output(run("list", "wide", "--limit", "3", "-o", "json"))
    assert [item["key"] for item in page["items"]] == ["a1", "a2", "a3"]
    rest = output(run("list", "wide", "--cursor", page["cursor"], "-o", "json"))
    assert ([item["key"] for item in rest["items"]], rest["cursor"]) == (["b1"], None)
    everything = output(run("list", "wide", "--all", "--start", "a2", "--end", "b", "-o", "json"))
    assert [item["key"] for item in everything["items"]] == ["a2", "a3"]


def test_a_piped_table_is_never_cut(run: Run) -> None:
    key = "k" * 300
    run("put", "orders", key, "v" * 50)
    assert f"{key}  " in run("list", "orders").stdout
    assert "[bold]" in run("put", "orders", "[bold]", "[/bold]").stdout


def test_txn_from_options_and_from_a_document(run: Run, tmp_path: Path) -> None:
    first = output(run("txn", "orders", "--if-absent", "a", "--put", "a=1=2", "--get", "a", "-o", "json"))
    assert first["results"] == [{"version": "1.0"}, {"key": "a", "found": True, "value": "1=2", "version": "1.0"}]
    failed = run("txn", "orders", "--if-absent", "a", "--put", "a=2", "-o", "json")
    assert (failed.exit_code, output(failed)["succeeded"]) == (1, False)
    assert run("txn", "orders", "--if-exists", "a", "--if-version", "a=1.0", "--delete", "a").exit_code == 0
    document = {
        "compare": [{"key": "a", "target": "exists", "op": "==", "exists": False}],
        "then": [{"put": {"key": "a", "base64": "AP8="}}, {"get": {"key": "a"}}],
        "else": [],
    }
    answer = output(run("txn", "orders", "-", "-o", "json", stdin=json.dumps(document)))
    assert answer["results"][1]["base64"] == "AP8="
    file = tmp_path / "txn.json"
    file.write_text('{"then": [{"get": {"key": "a"}}]}')
    assert "AP8=" in run("txn", "orders", str(file)).stdout
    file.write_text('{"then": [{"gett": {"key": "a"}}]}')
    wrong = run("txn", "orders", str(file), "-o", "json")
    assert (wrong.exit_code, json.loads(wrong.stderr)["field"]) == (2, "then[0].gett")


def test_history_and_route(run: Run, node: FakeNode) -> None:
    run("put", "orders", "k", "1")
    run("delete", "orders", "k")
    assert output(run("history", "orders", "k", "-o", "json"))["items"] == [
        {"version": "1.1", "deleted": True},
        {"version": "1.0", "value": "1"},
    ]
    assert "(deleted)" in run("history", "orders", "k").stdout
    assert "there is more" in run("history", "orders", "k", "--limit", "1").stderr
    assert [entry["index"] for entry in output(run("route", "wide", "-o", "json"))["partitions"]] == [0, 1, 2]
    assert len(output(run("route", "wide", "k", "-o", "json"))["partitions"]) == 1
    node.point("orders", 0, owner="", http="")
    assert run("route", "orders").exit_code == 1


def test_an_endpoint_without_namespace_says_what_is_missing(run: Run) -> None:
    result = run("get", "orders", "k", FENCEKV_NAMESPACE="")
    assert result.exit_code == 2
    assert "namespace" in result.stderr


# -- through Kubernetes


def session_lease(pod: str, http: str, *, over: bool = False) -> dict[str, Any]:
    session = leases.Session(pod, "uid", "nonce")
    lease = leases.new_session_lease(
        session=session,
        kvns="sample",
        namespace="default",
        valid_seconds=4,
        renewal=5,
        http=http,
        peer="",
        unix_seconds=0.0,
    )
    lease["metadata"] |= {"uid": pod, "resourceVersion": "1"}
    return leases.released_session(lease, session) if over else lease


def partition_lease(name: str, **granted: Any) -> dict[str, Any]:
    lease = leases.new_partition_lease(
        partition=name, partition_uid="u", table="orders", kvns="sample", namespace="default"
    )
    lease["metadata"] |= {"uid": name, "resourceVersion": "1"}
    if not granted:
        return lease
    members = ("sample-0/a", "sample-1/b")
    return leases.granted(
        lease, **granted, in_sync=members, set_version=1, http="h:1", peer="p:1", unix_seconds=0.0
    )


def custom(name: str, spec: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec, "status": status}


@pytest.fixture(name="kubeconfig")
def make_kubeconfig(address: str, tmp_path: Path) -> Iterator[str]:
    owner = leases.Session("sample-0", "uid", "nonce")
    waiting = {"type": "Ready", "status": "False", "reason": "NoOwner", "message": "sample-2 is missing"}
    partitions = [
        custom(f"orders-{index}", {"table": "orders", "index": index, "namespace": "sample"}, **status)
        for index, status in enumerate(
            [{"phase": "Ready", "token": "4.7", "lag": 0}, {"phase": "Degraded", "conditions": [waiting]}, {}]
        )
    ]
    objects = {
        "kvnamespaces": [custom("sample", {}, conditions=[{"type": "Ready", "status": "True"}])],
        "kvtables": [custom("orders", {"namespace": "sample", "replicas": 2}, partitions=3, readyPartitions=1)],
        "kvpartitions": partitions,
        "leases": [
            session_lease("sample-0", address),
            session_lease("sample-1", "127.0.0.1:1", over=True),
            partition_lease("orders-0", session=owner, epoch=4),
            partition_lease("orders-1"),
        ],
    }
    with in_background(kubernetes_lists(objects)) as server:
        file = tmp_path / "kubeconfig"
        file.write_text(
            f"current-context: c\nclusters: [{{name: k, cluster: {{server: '{server}'}}}}]\n"
            "contexts: [{name: c, context: {cluster: k, namespace: default}}]\n"
        )
        yield str(file)


def test_shards_are_found_through_the_leases_of_those_that_live(kubeconfig: str, run: Run) -> None:
    result = run("put", "orders", "k", "v", "--kubeconfig", kubeconfig, FENCEKV_ENDPOINT="", FENCEKV_NAMESPACE="")
    assert result.exit_code == 0, result.stderr
    missing = run(
        "get", "orders", "k", "-n", "other", "--timeout", "2", "--kubeconfig", kubeconfig, FENCEKV_ENDPOINT=""
    )
    assert missing.exit_code == 3
    assert "no shard of other is known" in missing.stderr


def test_no_cluster_at_all_is_wrong_usage_and_says_what_to_set(run: Run, tmp_path: Path) -> None:
    nowhere = {"FENCEKV_ENDPOINT": "", "KUBECONFIG": str(tmp_path / "nothing")}
    result = run("get", "orders", "k", **nowhere)
    assert (result.exit_code, "nothing" in result.stderr) == (2, True)


def test_kubectl_status_shows_who_owns_what(kubeconfig: str) -> None:
    result = CliRunner().invoke(kubectl, ["status", "--kubeconfig", kubeconfig])
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["orders-0", "4", "sample-0", "sample-0,sample-1", "4.7", "0", "Ready", "Present"] in lines
    assert ["orders-1", "0", "-", "-", "-", "-", "Degraded", "Present"] in lines
    assert ["orders-2", "-", "-", "-", "-", "-", "-", "Missing"] in lines
    assert ["sample", "sample-1", "Released", "127.0.0.1:1", "5"] in lines
    assert "orders-1: NotReady (NoOwner): sample-2 is missing" in result.stdout


def test_kubectl_status_of_one_table_as_json(kubeconfig: str) -> None:
    result = CliRunner().invoke(kubectl, ["status", "orders", "-o", "json", "--kubeconfig", kubeconfig])
    document = json.loads(result.stdout)
    assert [entry["name"] for entry in document["tables"]] == ["orders"]
    assert [entry["epoch"] for entry in document["partitions"]] == [4, 0, None]
    assert document["partitions"][0]["inSync"] == ["sample-0", "sample-1"]
    absent = CliRunner().invoke(kubectl, ["status", "nothing", "--kubeconfig", kubeconfig])
    assert (absent.exit_code, absent.stdout) == (1, "")
    assert "nothing does not exist" in absent.stderr


def test_kubectl_status_without_an_api_server_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(
        f"current-context: c\nclusters: [{{name: k, cluster: {{server: 'http://127.0.0.1:{closed_port()}'}}}}]\n"
        "contexts: [{name: c, context: {cluster: k}}]\n"
    )
    assert CliRunner().invoke(kubectl, ["status", "--kubeconfig", str(file)]).exit_code == 3


# -- the program itself


def test_every_command_is_listed_and_explains_itself() -> None:
    listing = CliRunner().invoke(cli.main, ["--help"])
    for name in [*cli.COMMANDS, "version"]:
        assert name in listing.stdout
        helped = CliRunner().invoke(cli.main, [name, "--help"])
        assert (helped.exit_code, "Usage:" in helped.stdout) == (0, True)


def test_the_version_is_told(run: Run) -> None:
    assert json.loads(run("version", "-o", "json").stdout)["version"] == run("version").stdout.strip()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(run: Run, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # For bash, click looks at the version of the bash that is installed, which tests must not depend on.
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", staticmethod(lambda: None))
    assert "_FENCEKV_COMPLETE" in run("completion", shell).stdout


def test_commands_and_options_are_completed() -> None:
    environment = {"_FENCEKV_COMPLETE": "bash_complete", "COMP_WORDS": "fencekv p", "COMP_CWORD": "1"}
    result = CliRunner().invoke(cli.main, [], prog_name="fencekv", env=environment)
    assert "put" in result.stdout


def test_a_plug_in_that_cannot_be_loaded_takes_no_other_command_down(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "broken"

        def load(self) -> click.Command:
            raise ImportError("no such module")

    class Hiding(Broken):
        name = "get"

    monkeypatch.setattr(cli, "_plug_ins", lambda: {"broken": Broken(), "get": Hiding()})
    assert "no such module" in CliRunner().invoke(cli.main, ["--help"]).stdout
    result = CliRunner().invoke(cli.main, ["broken", "x"])
    assert (result.exit_code, "no such module" in result.stderr) == (3, True)
    assert "Print the value" in CliRunner().invoke(cli.main, ["get", "--help"]).stdout


def test_help_is_fast_because_it_imports_little() -> None:
    code = "import sys, fencekv.cli.main as m; print(int('aiohttp' in sys.modules or 'rich' in sys.modules))"
    started = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert shown.stdout.strip() == "0"
    # Generous, for machines under load; it takes a tenth of that.
    assert time.monotonic() - started < 4
