"""The pod runner on an API server: what a StatefulSet controller, a scheduler and a kubelet do, and its faults."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from podlab import (
    FAMILY,
    SLEEP,
    WEB,
    Lab,
    alive,
    container_status,
    ended_times,
    eventually,
    folder_gone,
    gone,
    in_state,
    is_true,
    not_ready,
    phase_is,
    printed,
    restarted,
    settled,
    started,
    stateful_set,
    termination_of,
    unscheduled,
    wait_until_gone,
    waiting_for,
)

from fencekv.access import Access
from fencekv.kube import CLAIMS, PODS, STATEFUL_SETS, HttpKube, Resource
from fencekv_sandbox.pods import Backoff, FolderInUse, NotRunning, PodRunner, processes

Object = dict[str, Any]

NODES = Resource("", "v1", "nodes", "Node")
TICK = 0.2
CLOSE_FAMILY = FAMILY.replace("STRAY", "False")
STRAY_FAMILY = FAMILY.replace("STRAY", "True")


@pytest.fixture
async def kube(access: Access) -> AsyncIterator[HttpKube]:
    async with HttpKube(access, user_agent="test") as kube:
        yield kube


@pytest.fixture
async def runner(kube: HttpKube, access: Access, tmp_path: Path) -> AsyncIterator[PodRunner]:
    async with open_runner(kube, access, tmp_path) as runner:
        yield runner
    assert processes.left_over(str(tmp_path.resolve())) == []


@pytest.fixture
def lab(kube: HttpKube) -> Lab:
    return Lab(kube)


def open_runner(kube: HttpKube, access: Access, data: Path, **options: Any) -> PodRunner:
    options.setdefault("backoff", Backoff(seconds=0.5, seconds_max=1.0))
    return PodRunner(kube, access, data=data, relist_seconds=TICK, **options)


async def test_a_pod_runs_with_what_a_kubelet_and_a_statefulset_controller_give_it(
    lab: Lab, runner: PodRunner, tmp_path: Path
) -> None:
    program = "import json, os; print(json.dumps(dict(os.environ)), flush=True); " + SLEEP
    set_ = await lab.apply(stateful_set("one", program))
    pod = await lab.running("one-0")

    environment = await eventually(lambda: printed(runner, "one-0"), what="output")
    status = pod["status"]
    assert environment["FENCEKV_POD"] == "one-0"
    assert environment["FENCEKV_POD_UID"] == pod["metadata"]["uid"]
    assert environment["FENCEKV_NS"] == "default"
    assert environment["FENCEKV_POD_IP"] == status["podIP"] == status["podIPs"][0]["ip"]
    assert environment["GREETING"] == "hello one-0, $(FENCEKV_POD) $(UNKNOWN)"
    assert environment["FENCEKV_DATA"] == str(tmp_path / "volumes/default/data-one-0")
    assert environment["FENCEKV_SANDBOX"] == "1"
    account = Path(environment["FENCEKV_SERVICEACCOUNT"])
    assert (account / "namespace").read_text() == "default"
    assert (account / "token").read_text()

    metadata = pod["metadata"]
    assert metadata["ownerReferences"][0]["uid"] == set_["metadata"]["uid"]
    assert metadata["labels"]["statefulset.kubernetes.io/pod-name"] == "one-0"
    assert metadata["labels"]["controller-revision-hash"].startswith("one-")
    assert all(is_true(pod, kind) for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready"))
    assert status["phase"] == "Running"
    assert status["hostIP"] == "127.0.0.1"
    assert "running" in container_status(pod)["state"]
    assert container_status(pod)["restartCount"] == 0
    claim = await lab.kube.get(CLAIMS, "default", "data-one-0")
    assert claim["status"]["phase"] == "Bound"


async def test_a_service_account_opens_the_api_server_to_the_pod(
    lab: Lab, runner: PodRunner, access: Access
) -> None:
    program = """
import json, os, ssl, urllib.request
account = os.environ["FENCEKV_SERVICEACCOUNT"]
authority = account + "/ca.crt"
secure = os.path.exists(authority)
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
request = urllib.request.Request(f"{'https' if secure else 'http'}://{host}:{port}/version")
request.add_header("Authorization", "Bearer " + open(account + "/token").read())
context = ssl.create_default_context(cafile=authority) if secure else None
answer = urllib.request.urlopen(request, context=context)
print(json.dumps({"status": answer.status, "secure": secure}), flush=True)
"""
    await lab.apply(stateful_set("sa", program + SLEEP))
    found = await eventually(lambda: printed(runner, "sa-0"), what="output")
    assert found == {"status": 200, "secure": access.tls is not None}


async def test_parallel_pods_are_spread_over_nodes_and_have_addresses_of_their_own(
    lab: Lab, runner: PodRunner
) -> None:
    await lab.apply(stateful_set("many", SLEEP, replicas=3))
    pods = [await lab.running(f"many-{ordinal}") for ordinal in range(3)]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-0", "node-1", "node-2"}
    assert len({pod["status"]["podIP"] for pod in pods}) == 3
    nodes = (await lab.kube.list(NODES, None)).items
    zones = {node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in nodes}
    assert zones >= {"zone-a", "zone-b", "zone-c"}

    set_ = await eventually(lambda: settled(lab, "many", ready=3), what="status of the set")
    assert set_["status"]["replicas"] == 3
    assert set_["status"]["observedGeneration"] == set_["metadata"]["generation"]


async def test_scaling_down_takes_the_highest_and_scaling_up_finds_its_volume_again(
    lab: Lab, runner: PodRunner, tmp_path: Path
) -> None:
    await lab.apply(stateful_set("scaled", SLEEP, replicas=2))
    before = await lab.running("scaled-1")
    await lab.running("scaled-0")
    (tmp_path / "volumes/default/data-scaled-1/kept").write_text("x")

    await lab.scale("scaled", 1)
    await eventually(lambda: gone(lab, "scaled-1"), what="scaled-1 is gone")
    assert await lab.pod("scaled-0")
    await lab.scale("scaled", 2)
    after = await lab.running("scaled-1")
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["status"]["podIP"] == before["status"]["podIP"]
    assert (runner.pod("scaled-1").volume / "kept").exists()


async def test_ordered_pods_start_one_after_another(lab: Lab, runner: PodRunner) -> None:
    probe = {"httpGet": {"path": "/readyz", "port": 7070}, "periodSeconds": 1}
    refuse = WEB.replace('os.path.exists(data + ("/unready"', 'not os.path.exists(data + ("/ready"')
    await lab.apply(stateful_set("ordered", refuse, replicas=2, parallel=False, readinessProbe=probe))
    await eventually(lambda: phase_is(lab, "ordered-0", "Running"), what="the first runs")
    await asyncio.sleep(2 * TICK)
    assert await lab.pod("ordered-1") is None
    (runner.pod("ordered-0").volume / "ready").touch()
    await eventually(lambda: phase_is(lab, "ordered-1", "Running"), what="the second runs")


async def test_a_deleted_pod_gets_its_grace_and_comes_back_with_another_uid(lab: Lab, runner: PodRunner) -> None:
    await lab.apply(stateful_set("polite", CLOSE_FAMILY))
    before = await lab.running("polite-0")
    await started(runner, "polite-0")
    log = runner.pod("polite-0").log
    seen = asyncio.create_task(termination_of(lab, before))
    await lab.kube.delete(PODS, "default", "polite-0")
    after = await lab.running("polite-0", other_than=before["metadata"]["uid"])
    ended = await seen
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")
    assert ended["message"] == "session of polite-0"
    assert "asked to end" in log.read_text()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


async def test_a_pod_that_ignores_its_grace_is_killed(lab: Lab, runner: PodRunner) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True); " + SLEEP
    await lab.apply(stateful_set("stubborn", stubborn, grace=1))
    before = await lab.running("stubborn-0")
    await eventually(lambda: printed(runner, "stubborn-0", empty=True), what="output")
    seen = asyncio.create_task(termination_of(lab, before))
    await lab.kube.delete(PODS, "default", "stubborn-0")
    ended = await seen
    assert (ended["exitCode"], ended["signal"], ended["reason"]) == (137, 9, "Error")


async def test_a_pod_deleted_by_force_is_killed_soon_and_follows_itself_only_then(
    lab: Lab, runner: PodRunner
) -> None:
    await lab.apply(stateful_set("forced", STRAY_FAMILY))
    before = await lab.running("forced-0")
    await started(runner, "forced-0")
    old = runner.pod("forced-0").pids()
    assert len(old) == 2
    await lab.kube.delete(PODS, "default", "forced-0", options={"gracePeriodSeconds": 0})
    await lab.running("forced-0", other_than=before["metadata"]["uid"])
    assert not alive(old)


async def test_a_container_that_was_killed_is_reported_with_its_message_and_started_again(
    lab: Lab, runner: PodRunner
) -> None:
    await lab.apply(stateful_set("killed", CLOSE_FAMILY))
    await lab.running("killed-0")
    await started(runner, "killed-0")
    first = runner.pod("killed-0").kill("all")
    again = await eventually(lambda: restarted(lab, "killed-0", 1), what="restart")
    last = container_status(again)["lastState"]["terminated"]
    assert last["message"] == "session of killed-0"
    assert (last["exitCode"], last["reason"], last["signal"]) == (137, "Error", 9)
    assert last["containerID"] != container_status(again)["containerID"]
    assert not alive(first)
    assert runner.log_path("default", "killed-0") != runner.log_path("default", "killed-0", previous=True)


async def test_the_end_of_the_first_process_ends_the_others_even_those_that_left_its_session(
    lab: Lab, runner: PodRunner
) -> None:
    await lab.apply(stateful_set("stray", STRAY_FAMILY))
    await lab.running("stray-0")
    await started(runner, "stray-0")
    handle = runner.pod("stray-0")
    (child,) = handle.children()
    assert os.getsid(child) != handle.supervisor
    handle.kill("supervisor")
    await eventually(lambda: restarted(lab, "stray-0", 1), what="restart")
    assert not alive([child])


async def test_an_end_of_a_child_is_the_supervisors_matter(lab: Lab, runner: PodRunner) -> None:
    await lab.apply(stateful_set("child", CLOSE_FAMILY))
    await lab.running("child-0")
    await started(runner, "child-0")
    runner.pod("child-0").kill("child")
    again = await eventually(lambda: restarted(lab, "child-0", 1), what="restart")
    assert container_status(again)["lastState"]["terminated"]["exitCode"] == 7


async def test_a_termination_is_reported_on_the_relist_and_not_before(
    kube: HttpKube, access: Access, lab: Lab, tmp_path: Path
) -> None:
    async with PodRunner(kube, access, data=tmp_path, backoff=Backoff(seconds=0.0)) as runner:
        await lab.apply(stateful_set("tick", SLEEP, replicas=1))
        await lab.running("tick-0")
        loop, waits = asyncio.get_running_loop(), []
        for count in (1, 2):
            began = loop.time()
            runner.pod("tick-0").kill()
            await eventually(lambda count=count: restarted(lab, "tick-0", count), what="restart")
            waits.append(loop.time() - began)
    # The first kill may fall anywhere between two ticks; the second came right after one.
    assert waits[0] < 1.5
    assert 0.5 < waits[1] < 1.5


async def test_a_container_that_keeps_ending_waits_longer_and_longer(lab: Lab, runner: PodRunner) -> None:
    await lab.apply(stateful_set("crash", "import sys; sys.exit(3)"))
    waiting = await eventually(lambda: waiting_for(lab, "crash-0", "CrashLoopBackOff"), what="back-off")
    assert container_status(waiting)["restartCount"] == 1
    assert container_status(waiting)["lastState"]["terminated"]["exitCode"] == 3
    assert not is_true(waiting, "Ready")
    await eventually(lambda: restarted(lab, "crash-0", 2), what="a further start")


async def test_readiness_follows_its_probe_and_a_dead_container_is_restarted(lab: Lab, runner: PodRunner) -> None:
    ready = {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    live = {"httpGet": {"path": "/healthz", "port": 7070}, "periodSeconds": 1, "failureThreshold": 1}
    ports = [{"name": "http", "containerPort": 7070}]
    startup = {**live, "failureThreshold": 30}
    await lab.apply(
        stateful_set(
            "web", WEB, grace=1, ports=ports, readinessProbe=ready, livenessProbe=live, startupProbe=startup
        )
    )
    await lab.running("web-0")
    data = runner.pod("web-0").volume
    (data / "unready").touch()
    await eventually(lambda: not_ready(lab, "web-0"), what="not ready")
    (data / "unready").unlink()
    await lab.running("web-0")
    assert container_status(await lab.running("web-0"))["restartCount"] == 0
    (data / "dead").touch()
    await eventually(lambda: ended_times(lab, "web-0", 1), what="killed by its liveness probe")
    (data / "dead").unlink()
    await eventually(lambda: restarted(lab, "web-0", 1), what="restart")


async def test_pods_that_share_an_address_differ_by_port(
    kube: HttpKube, access: Access, lab: Lab, tmp_path: Path
) -> None:
    probe = {"httpGet": {"path": "/readyz", "port": 7070}, "periodSeconds": 1}
    async with open_runner(kube, access, tmp_path, single_address=True):
        await lab.apply(stateful_set("single", WEB, replicas=2, readinessProbe=probe))
        pods = [await lab.running(f"single-{ordinal}") for ordinal in range(2)]
    assert {pod["status"]["podIP"] for pod in pods} == {"127.0.0.1"}


async def test_what_is_not_provided_is_said(lab: Lab, runner: PodRunner) -> None:
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    await lab.apply(stateful_set("odd", SLEEP, env=env))
    pod = await eventually(lambda: waiting_for(lab, "odd-0", "CreateContainerConfigError"), what="refusal")
    assert "env X" in container_status(pod)["state"]["waiting"]["message"]


async def test_a_pod_that_no_node_takes_waits_and_says_so(lab: Lab, runner: PodRunner) -> None:
    set_ = stateful_set("picky", SLEEP)
    set_["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "fast"}
    await lab.apply(set_)
    pod = await eventually(lambda: unscheduled(lab, "picky-0"), what="unschedulable")
    assert "nodeName" not in pod["spec"]
    await lab.kube.patch(NODES, None, "node-1", {"metadata": {"labels": {"disk": "fast"}}})
    try:
        assert (await lab.running("picky-0"))["spec"]["nodeName"] == "node-1"
    finally:
        await lab.kube.patch(NODES, None, "node-1", {"metadata": {"labels": {"disk": None}}})


async def test_a_changed_template_replaces_pods_one_by_one(lab: Lab, runner: PodRunner) -> None:
    await lab.apply(stateful_set("rolled", SLEEP, replicas=2))
    before = [await lab.running(f"rolled-{ordinal}") for ordinal in range(2)]
    template = {"metadata": {"annotations": {"changed": "yes"}}}
    await lab.kube.patch(STATEFUL_SETS, "default", "rolled", {"spec": {"template": template}})
    changed = await lab.running("rolled-1", other_than=before[1]["metadata"]["uid"])
    assert changed["metadata"]["annotations"]["changed"] == "yes"
    last = await lab.running("rolled-0", other_than=before[0]["metadata"]["uid"])
    assert last["metadata"]["annotations"]["changed"] == "yes"


async def test_pods_go_with_their_set_and_a_volume_goes_with_its_claim(
    lab: Lab, runner: PodRunner, tmp_path: Path
) -> None:
    await lab.apply(stateful_set("leaving", SLEEP))
    await lab.running("leaving-0")
    pids = runner.pod("leaving-0").pids()
    folder = runner.pod("leaving-0").volume
    await lab.kube.delete(STATEFUL_SETS, "default", "leaving")
    await eventually(lambda: gone(lab, "leaving-0"), what="the pod is gone")
    assert not alive(pids)
    assert folder.exists()
    await lab.kube.delete(CLAIMS, "default", "data-leaving-0")
    await eventually(lambda: folder_gone(folder), what="the folder is gone")


async def test_frozen_processes_stand_still_until_thawed(lab: Lab, runner: PodRunner) -> None:
    await lab.apply(stateful_set("frozen", CLOSE_FAMILY))
    await lab.running("frozen-0")
    await started(runner, "frozen-0")
    handle = runner.pod("frozen-0")
    pids = handle.pids()
    handle.freeze()
    await eventually(lambda: in_state(pids, "T"), what="stopped")
    handle.thaw()
    await eventually(lambda: in_state(pids, "S"), what="goes on")
    assert container_status(await lab.running("frozen-0"))["restartCount"] == 0


async def test_a_lost_volume_is_empty_at_the_next_start(lab: Lab, runner: PodRunner) -> None:
    await lab.apply(stateful_set("lossy", SLEEP))
    await lab.running("lossy-0")
    handle = runner.pod("lossy-0")
    (handle.volume / "kept").write_text("x")
    await handle.lose_volume()
    assert handle.is_running
    assert list(handle.volume.iterdir()) == []


async def test_a_second_process_can_be_run_on_the_same_folder(lab: Lab, runner: PodRunner) -> None:
    await lab.apply(stateful_set("twice", SLEEP))
    await lab.running("twice-0")
    handle = runner.pod("twice-0")
    beside = handle.run_beside([sys.executable, "-S", "-c", "import os; print(os.environ['FENCEKV_DATA'])"])
    await beside.ended()
    assert beside.exit_status == 0
    assert beside.launch.log.read_text().strip() == str(handle.volume)
    assert handle.is_running


async def test_only_one_runner_works_in_a_folder(
    kube: HttpKube, access: Access, runner: PodRunner, tmp_path: Path
) -> None:
    with pytest.raises(FolderInUse):
        async with open_runner(kube, access, tmp_path):
            pass


async def test_a_later_runner_goes_on_with_the_same_pods_and_says_how_their_containers_ended(
    kube: HttpKube, access: Access, lab: Lab, tmp_path: Path
) -> None:
    async with open_runner(kube, access, tmp_path) as runner:
        await lab.apply(stateful_set("again", CLOSE_FAMILY))
        before = await lab.running("again-0")
        await started(runner, "again-0")
        pids = runner.pod("again-0").pids()
    assert not alive(pids)
    async with open_runner(kube, access, tmp_path):
        after = await eventually(lambda: restarted(lab, "again-0", 1), what="restart")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert container_status(after)["lastState"]["terminated"]["message"] == "session of again-0"


async def test_a_runner_that_closes_politely_lets_pods_end_by_themselves(
    kube: HttpKube, access: Access, lab: Lab, tmp_path: Path
) -> None:
    async with open_runner(kube, access, tmp_path, close_seconds=3.0) as runner:
        await lab.apply(stateful_set("calm", CLOSE_FAMILY))
        await lab.running("calm-0")
        await started(runner, "calm-0")
    pod = await lab.pod("calm-0")
    assert pod is not None
    assert container_status(pod)["state"]["terminated"]["exitCode"] == 0
    assert "deletionTimestamp" not in pod["metadata"]


def test_no_process_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    """With a runner of two lines: it starts a container and is killed with -9."""
    program = f"""
import asyncio, sys
from pathlib import Path
from fencekv_sandbox.pods.container import Container, Launch
async def main():
    launch = Launch(container="c", command=[sys.executable, "-S", "-c", {SLEEP!r}],
        environment={{}}, folder=Path({str(tmp_path)!r}), log=Path({str(tmp_path / "log")!r}))
    print(Container(launch, on_exit=lambda: None).pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as runner:
        assert runner.stdout is not None
        pid = int(runner.stdout.readline())
        assert alive([pid])
        runner.kill()
    wait_until_gone(pid)


def test_where_the_kernel_does_not_help_a_watcher_ends_what_outlives_the_runner(tmp_path: Path) -> None:
    shim = Path(processes.__file__).with_name("child.py")
    reading, writing = os.pipe()
    command = [sys.executable, "-I", "-S", str(shim), str(os.getpid()), str(reading), sys.executable]
    process = subprocess.Popen(
        [*command, "-S", "-c", SLEEP], pass_fds=[reading], start_new_session=True, stdin=subprocess.DEVNULL
    )
    os.close(reading)
    assert alive([process.pid])
    os.close(writing)  # as the kernel does when the runner dies
    assert process.wait(10) == -signal.SIGKILL


async def test_a_handle_says_that_its_pod_is_not_there(runner: PodRunner) -> None:
    with pytest.raises(NotRunning, match="nobody-0"):
        runner.pod("nobody-0").pids()
