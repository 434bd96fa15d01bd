"""`kubectl fencekv` on a whole FenceKV: what it says of a fault, what it orders, what it gathers."""

from __future__ import annotations

import asyncio
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from world import World

from fencekv.drill_history import from_bytes, judge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAM = (sys.executable, "-c", "from fencekv.cli.kubectl import main; main()")


async def kubectl_fencekv(world: World, *arguments: str, status: int = 0) -> str:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        "--kubeconfig",
        str(world.sandbox.kubeconfig),
        "-n",
        world.sandbox.namespace,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == status, (out.decode(), err.decode())
    return out.decode()


async def causes(world: World, partition: str, *, status: int) -> list[dict[str, Any]]:
    told = json.loads(await kubectl_fencekv(world, "why", partition, "-o", "json", status=status))
    assert told["blocked"] == (status == 1)
    found: list[dict[str, Any]] = told["causes"]
    return found


async def test_a_frozen_standby_is_explained_an_owner_moved_and_everything_gathered(
    make, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    async with make() as world:
        shown = json.loads(await kubectl_fencekv(world, "status", "orders-0", "-o", "json"))
        [row] = shown["partitions"]
        assert (len(row["inSync"]), row["ready"]) == (3, True)
        assert [cause["state"] for cause in await causes(world, "orders-0", status=0)] == ["Serving"]

        moved = json.loads(await kubectl_fencekv(world, "promote", "orders-0", "-o", "json"))
        result = moved["status"]["result"]
        assert result["epochAfter"] > result["epochBefore"] == row["epoch"]
        assert result["owner"] != row["owner"]
        await world.all_in_sync()

        owner = (await world.sandbox.owner_of("orders-0")).pod
        standby = next(name for name in ("sample-0", "sample-1", "sample-2") if name != owner)
        pod = world.sandbox.pod(standby)
        pod.freeze()
        try:
            await world.all_in_sync(copies=2)

            async def is_told() -> bool:
                found = (await world.partition("orders-0"))["status"]["conditions"]
                return any(each["type"] == "Degraded" and each["status"] == "True" for each in found)

            await world.settled(is_told)
            found = await causes(world, "orders-0", status=0)
            assert [cause["state"] for cause in found][:3] == ["Serving", "CopiesMissing", found[2]["state"]]
            assert found[2]["pod"] == standby
            # Frozen, it is silent until it is fenced; then its Lease says so.
            assert found[2]["state"] in {"SessionSilent", "SessionOver"}
        finally:
            pod.thaw()

        file = tmp_path / "report.zip"
        await kubectl_fencekv(world, "report", "sample", "-o", str(file))
        with zipfile.ZipFile(file) as archive:
            metrics = archive.read(f"fencekv-report/shards/{owner}/metrics.txt").decode()
            report = json.loads(archive.read(f"fencekv-report/shards/{owner}/report.json"))
            if not pytestconfig.getoption("--realapi"):  # a control plane alone has no kubelet to ask for logs
                log = archive.read(f"fencekv-report/shards/{owner}/shard.log").decode()
                assert "orders-0: owner with epoch" in log
        assert 'fencekv_partition_serving{partition="orders-0",role="owner"} 1.0' in metrics
        assert report["pod"] == owner


async def test_a_drill_is_waited_for_and_its_history_proves_it(make, tmp_path: Path) -> None:
    async with make() as world:
        file = tmp_path / "history"
        told = json.loads(await kubectl_fencekv(world, "drill", "orders", "--history", str(file), "-o", "json"))
        result = told["status"]["result"]
        assert (result["lost"], result["staleAcknowledged"]) == (0, 0)
        assert result["writesAcknowledged"] > 0
        assert result["epochAfter"] > result["epochBefore"]
        verdict = judge(from_bytes(file.read_bytes()))
        assert verdict.good, verdict
        shown = json.loads(await kubectl_fencekv(world, "status", "orders-0", "-o", "json"))
        assert shown["partitions"][0]["epoch"] == result["epochAfter"]
