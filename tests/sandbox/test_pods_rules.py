"""The pod runner's pure decisions: what comes next for a StatefulSet, what a container gets, what is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from podlab import SLEEP, stateful_set

from fencekv_sandbox.pods import Backoff, environment, statefulset
from fencekv_sandbox.pods.addresses import Address, Addresses
from fencekv_sandbox.pods.environment import NotProvided
from fencekv_sandbox.pods.logs import read_log
from fencekv_sandbox.pods.probes import Probe, Streak
from fencekv_sandbox.pods.statefulset import CreateClaim, CreatePod, DeletePod
from fencekv_sandbox.pods.status import ContainerView, Terminated, pod_status

Object = dict[str, Any]
ADDRESS = Address(ip="127.77.0.2")


def node(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}}


NODES = [node("node-0"), node("node-1"), node("node-2", disk="fast")]


def set_of(replicas: int, *, parallel: bool = True, **container: Any) -> Object:
    made = stateful_set("s", SLEEP, replicas=replicas, parallel=parallel, **container)
    made["metadata"]["uid"] = "set-uid"
    return made


def made_pods(set_: Object, *, ready: tuple[bool, ...]) -> list[Object]:
    pods = []
    for ordinal, good in enumerate(ready):
        pod = statefulset.build_pod(set_, f"s-{ordinal}", node=f"node-{ordinal % 3}")
        pod["metadata"]["uid"] = f"uid-{ordinal}"
        pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(good)}]}
        pods.append(pod)
    return pods


def steps(set_: Object, pods: list[Object], *, nodes: list[Object] = NODES) -> list[str]:
    """The plan in words."""
    claims = {f"data-{pod['metadata']['name']}": {} for pod in pods}
    words = []
    for action in statefulset.plan(set_, pods, claims=claims, nodes=nodes):
        match action:
            case CreateClaim(body=body):
                words.append(f"claim {body['metadata']['name']}")
            case CreatePod(body=body):
                words.append(f"create {body['metadata']['name']} on {body['spec'].get('nodeName')}")
            case DeletePod(name=name, uid=uid):
                words.append(f"delete {name} {uid}")
    return words


def test_parallel_makes_all_missing_pods_at_once_claims_first_and_spreads_them() -> None:
    assert steps(set_of(3), []) == [
        *("claim data-s-0", "create s-0 on node-0"),
        *("claim data-s-1", "create s-1 on node-1"),
        *("claim data-s-2", "create s-2 on node-2"),
    ]


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        ((), ["claim data-s-0", "create s-0 on node-0"]),
        ((False,), []),
        ((True,), ["claim data-s-1", "create s-1 on node-1"]),
        ((True, True, True), []),
    ],
)
def test_ordered_makes_one_pod_at_a_time_and_waits_for_it(ready: tuple[bool, ...], expected: list[str]) -> None:
    set_ = set_of(3, parallel=False)
    assert steps(set_, made_pods(set_, ready=ready)) == expected


@pytest.mark.parametrize(
    ("parallel", "expected"), [(True, ["delete s-2 uid-2", "delete s-1 uid-1"]), (False, ["delete s-2 uid-2"])]
)
def test_scaling_down_takes_the_highest_first(parallel: bool, expected: list[str]) -> None:
    set_ = set_of(1, parallel=parallel)
    assert steps(set_, made_pods(set_, ready=(True, True, True))) == expected


def test_a_pod_that_is_being_deleted_is_neither_deleted_again_nor_replaced_yet() -> None:
    set_ = set_of(1)
    pods = made_pods(set_, ready=(True, True))
    pods[1]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert steps(set_, pods) == []


def test_an_ended_pod_is_replaced() -> None:
    set_ = set_of(1)
    pods = made_pods(set_, ready=(False,))
    pods[0]["status"]["phase"] = "Failed"
    assert steps(set_, pods) == ["delete s-0 uid-0"]


def test_a_rolling_update_goes_from_the_top_one_pod_at_a_time() -> None:
    old = set_of(3)
    pods = made_pods(old, ready=(True, True, True))
    new = set_of(3)
    new["spec"]["template"]["metadata"]["annotations"] = {"changed": "yes"}
    assert steps(new, pods) == ["delete s-2 uid-2"]
    pods[2] = made_pods(new, ready=(True, True, False))[2]
    assert steps(new, pods) == []
    pods[2] = made_pods(new, ready=(True, True, True))[2]
    assert steps(new, pods) == ["delete s-1 uid-1"]
    new["spec"]["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}
    assert steps(new, pods) == []
    new["spec"]["updateStrategy"] = {"type": "OnDelete"}
    assert steps(new, pods) == []


def test_a_node_selector_chooses_and_a_pod_without_node_is_made_anew_when_one_fits() -> None:
    set_ = set_of(1)
    set_["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "fast"}
    assert steps(set_, [])[1] == "create s-0 on node-2"
    assert steps(set_, [], nodes=NODES[:2])[1] == "create s-0 on None"
    homeless = statefulset.build_pod(set_, "s-0", node=None)
    homeless["metadata"]["uid"] = "uid-0"
    assert steps(set_, [homeless], nodes=NODES[:2]) == []
    assert steps(set_, [homeless]) == ["delete s-0 uid-0"]


def test_a_cordoned_node_takes_no_pods() -> None:
    cordoned = {**node("node-0"), "spec": {"unschedulable": True}}
    assert statefulset.choose_node(set_of(1), [], [cordoned, *NODES[1:]]) == "node-1"


def test_back_off_grows_from_the_second_restart_on_and_ends_after_a_long_run() -> None:
    backoff, row, delays = Backoff(), 0, []
    for ran in (1, 1, 1, 1, 1, 1, 1, 1, 700, 1):
        delay, row = backoff.after(restarts_in_row=row, ran_seconds=ran)
        delays.append(delay)
    assert delays == [0, 10, 20, 40, 80, 160, 300, 300, 0, 10]


def test_readiness_needs_as_many_answers_in_a_row_as_its_thresholds_say() -> None:
    probe = Probe(
        url=None,
        host="",
        port=0,
        headers=(),
        delay_seconds=0,
        period_seconds=1,
        timeout_seconds=1,
        failures=3,
        successes=1,
    )
    streak = Streak()
    answers = [True, False, False, True, False, False, False, False]
    assert [streak.take(good, probe) for good in answers] == [
        True, False, False, False, False, False, True, False
    ]  # fmt: skip


def pod_with(**container: Any) -> Object:
    pod = statefulset.build_pod(set_of(1, **container), "s-0", node="node-0")
    pod["metadata"]["uid"] = "uid-0"
    return pod


def test_the_runner_has_the_last_word_on_folders_and_ports() -> None:
    pod = pod_with(env=[{"name": "FENCEKV_DATA", "value": "/data"}, {"name": "P", "value": "$(FENCEKV_DATA)/p"}])
    found = environment.variables(
        pod, address=ADDRESS, overrides={"FENCEKV_DATA": "/here"}, inherited={"PATH": "/bin", "SECRET": "x"}
    )
    assert found == {"PATH": "/bin", "HOSTNAME": "s-0", "FENCEKV_DATA": "/here", "P": "/here/p"}


def test_where_pods_share_an_address_probes_follow_the_moved_ports() -> None:
    moved = Address(ip="127.0.0.1", http_port=21001, peer_port=21002)
    ports = [{"name": "http", "containerPort": 7070}, {"name": "other", "containerPort": 9000}]
    pod = pod_with(ports=ports)
    assert environment.port_overrides(moved) == {"FENCEKV_HTTP_PORT": "21001", "FENCEKV_PEER_PORT": "21002"}
    asked: list[int | str] = ["http", 7070, 7071, "other", 1234]
    assert [environment.probe_port(pod, port, address=moved) for port in asked] == [
        21001,
        21001,
        21002,
        9000,
        1234,
    ]
    assert environment.probe_port(pod, "http", address=ADDRESS) == 7070


def without_command(pod: Object) -> None:
    del pod["spec"]["containers"][0]["command"]


def with_second_container(pod: Object) -> None:
    pod["spec"]["containers"] *= 2


def with_init_container(pod: Object) -> None:
    pod["spec"]["initContainers"] = [{}]


def with_env_from(pod: Object) -> None:
    pod["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": "c"}}]


@pytest.mark.parametrize(
    "change",
    [without_command, with_second_container, with_init_container, with_env_from],
    ids=lambda f: f.__name__,
)
def test_nothing_that_a_pod_asks_for_is_silently_left_out(change: Callable[[Object], None]) -> None:
    pod = pod_with()
    change(pod)

    def launch() -> None:
        environment.variables(pod, address=ADDRESS, overrides={}, inherited={})
        environment.command_of(pod, commands={}, environment={})

    with pytest.raises(NotProvided):
        launch()


def view(**changes: Any) -> ContainerView:
    return ContainerView(name="main", image="none", **changes)


def reported(pod: Object, seen: ContainerView, now: str) -> Object:
    return pod_status(pod, seen, ip="127.77.0.2", host_ip="127.0.0.1", start_time="start", now=now)


def test_a_condition_keeps_its_time_until_its_status_changes_and_foreign_ones_stay() -> None:
    pod = pod_with()
    pod["status"] = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}
    pod["status"] = reported(pod, view(running_since="start"), "one")
    pod["status"] = reported(pod, view(running_since="start"), "two")
    found = {c["type"]: c for c in pod["status"]["conditions"]}
    assert found["DisruptionTarget"] == {"type": "DisruptionTarget", "status": "True"}
    assert (found["Ready"]["status"], found["Ready"]["lastTransitionTime"]) == ("False", "one")
    pod["status"] = reported(pod, view(running_since="start", ready=True), "three")
    assert [c for c in pod["status"]["conditions"] if c["type"] == "Ready"] == [
        {"type": "Ready", "status": "True", "lastTransitionTime": "three"}
    ]


@pytest.mark.parametrize(
    ("exit_status", "expected"),
    [
        (0, {"exitCode": 0, "reason": "Completed"}),
        (70, {"exitCode": 70, "reason": "Error"}),
        (-9, {"exitCode": 137, "reason": "Error", "signal": 9}),
        (None, {"exitCode": 255, "reason": "Unknown"}),
    ],
)
def test_how_a_container_ended_is_said_as_a_kubelet_says_it(exit_status: int | None, expected: Object) -> None:
    ended = Terminated(
        container="process://c", exit_status=exit_status, message="s", started_at="a", finished_at="b"
    )
    always = {"containerID": "process://c", "startedAt": "a", "finishedAt": "b", "message": "s"}
    assert ended.as_object() == {**always, **expected}


def test_addresses_keep_to_names_and_two_runners_never_share_one(tmp_path: Path) -> None:
    one = Addresses(tmp_path / "one.json", single=False)
    two = Addresses(tmp_path / "two.json", single=False)
    first, second = one.of("default", "a-0"), one.of("default", "a-1")
    assert len({first.ip, second.ip, two.of("default", "a-0").ip}) == 3
    one.close()
    again = Addresses(tmp_path / "one.json", single=False)
    assert (again.of("default", "a-1"), again.of("default", "a-0")) == (second, first)
    again.close()
    two.close()


def test_on_one_address_ports_tell_pods_apart_over_several_blocks(tmp_path: Path) -> None:
    addresses = Addresses(tmp_path / "addresses.json", single=True)
    found = [addresses.of("default", f"a-{ordinal}") for ordinal in range(60)]
    addresses.close()
    assert {address.ip for address in found} == {"127.0.0.1"}
    assert len({port for a in found for port in (a.http_port, a.peer_port)}) == 120


@pytest.mark.parametrize(("tail", "expected"), [(None, b"1\n2\n3\n"), (2, b"2\n3\n"), (0, b""), (9, b"1\n2\n3\n")])
async def test_the_last_lines_of_a_log(tmp_path: Path, tail: int | None, expected: bytes) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(b"1\n2\n3\n")
    assert b"".join([part async for part in read_log(log, tail_lines=tail, grows=None)]) == expected


async def test_a_followed_log_ends_with_its_container_and_lacks_nothing(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    log.write_bytes(b"first\n")
    living = [True]
    parts: list[bytes] = []

    async def follow() -> None:
        async for part in read_log(log, tail_lines=None, grows=lambda: living[0]):
            parts.append(part)
            if part == b"first\n":
                with log.open("ab") as file:
                    file.write(b"last\n")
                living[0] = False

    await asyncio.wait_for(follow(), 5)
    assert parts == [b"first\n", b"last\n"]
