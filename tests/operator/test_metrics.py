"""What the operator shows Prometheus, and how long the parts of an owner change took."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from failover_world import World
from prometheus_client.parser import text_string_to_metric_families

from fencekv.access import Access
from fencekv.exposition import Kind
from fencekv.leases import Session
from fencekv_operator import phases as phases_module
from fencekv_operator.__main__ import Operator, _options
from fencekv_operator.facts import Reason
from fencekv_operator.metrics import FAMILIES, Picture, render
from fencekv_operator.phases import Phase, Phases
from fencekv_shard.metrics import FAMILIES as SHARD_FAMILIES

ROOT = Path(__file__).parents[2]
OWNER = Session("sample-0", "u", "n")


def picture(**changes: Any) -> Picture:
    plain: dict[str, Any] = {
        "leading": True, "namespaces": 1, "tables": [], "partitions": [], "operations": [],
        "sessions": {"live": 3}, "queue_length": 0, "actions": 5, "failures": 1, "events_dropped": 0,
        "tick_age_seconds": 0.5,
        "quorum_read_age_seconds": 0.25, "phases": Phases(),
    }  # fmt: skip
    return Picture(**{**plain, **changes})


def series(text: bytes) -> dict[tuple[str, ...], float]:
    """By sample name and the labels' values."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def partition(name: str, phase: str | None, *bad: str) -> dict[str, Any]:
    conditions = [{"type": kind, "status": "True"} for kind in bad]
    return {
        "metadata": {"name": name},
        "status": {"conditions": conditions, **({"phase": phase} if phase else {})},
    }


def operation(kind: str, phase: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "o"}, "spec": {"type": kind, **spec}, "status": {"phase": phase}}


def test_every_family_is_shown_and_no_other_under_conventional_names() -> None:
    shown = re.findall(r"^# TYPE (\S+) (\S+)$", render(picture()).decode(), re.MULTILINE)
    assert shown == [(family.name, str(family.kind)) for family in FAMILIES]
    for family in FAMILIES:
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER), family
        assert family.kind is not Kind.HISTOGRAM or family.name.endswith("_seconds"), family


def test_partitions_are_counted_by_phase_and_condition_and_have_no_series_of_their_own() -> None:
    seen = [
        partition("orders-0", "Ready"),
        partition("orders-1", "Blocked", "Blocked", "Degraded"),
        partition("orders-2", None),
        partition("orders-3", "Newly"),
    ]
    found = series(render(picture(partitions=seen)))
    assert found["fencekv_operator_partitions", "Ready"] == 1
    assert found["fencekv_operator_partitions", "Pending"] == 1
    assert found["fencekv_operator_partitions", "Newly"] == 1
    assert found["fencekv_operator_partitions", "Suspect"] == 0
    assert found["fencekv_operator_partitions_not_ready",] == 3
    assert found["fencekv_operator_partitions_troubled", "Degraded"] == 1
    many = series(render(picture(partitions=[partition(f"orders-{n}", "Ready") for n in range(1000)])))
    assert len(many) == len(series(render(picture())))


def test_drills_and_operations_are_counted_by_what_became_of_them() -> None:
    seen = [
        operation("drill", "Succeeded", drill={"fault": "kill"}),
        operation("drill", "Failed", drill={"fault": "freeze"}),
        operation("drill", "Running", drill={"fault": "kill"}),
        operation("switchover", "Succeeded"),
    ]
    found = series(render(picture(operations=seen)))
    assert found["fencekv_operator_drills", "kill", "passed"] == 1
    assert found["fencekv_operator_drills", "freeze", "failed"] == 1
    assert found["fencekv_operator_operations", "Running", "drill"] == 1
    assert ("fencekv_operator_drills", "kill", "failed") not in found


# -- phases of an owner change


def sums(phases: Phases, reason: Reason) -> dict[Phase, float]:
    return {
        phase: round(float(str(told.report()["sum"])), 6)
        for (phase, why), told in phases.seconds.items()
        if why is reason
    }


def replica(*, serving: bool, epoch: int) -> Any:
    class Told:
        pass

    told = Told()
    told.serving, told.epoch = serving, epoch  # type: ignore[attr-defined]
    return told


def test_each_part_lasts_from_the_one_before() -> None:
    phases = Phases()
    phases.doubted(OWNER, heard_at=10.0, at=12.0)
    phases.doubted(OWNER, heard_at=10.0, at=13.0)  # looked at again: the first time counts
    phases.over(OWNER, Reason.SILENT, heard_at=10.0, at=16.0)
    phases.granted("u", epoch=5, reason=Reason.SILENT, before=OWNER, began=11.0, at=16.25)
    phases.reported({"u": replica(serving=True, epoch=4)}, at=16.5)
    phases.reported({"u": replica(serving=False, epoch=5)}, at=16.75)
    phases.reported({"u": replica(serving=True, epoch=5)}, at=17.25)
    phases.reported({"u": replica(serving=True, epoch=5)}, at=99.0)
    assert sums(phases, Reason.SILENT) == {
        Phase.NOTICED: 2.0, Phase.PROVEN: 4.0, Phase.GRANTED: 0.25, Phase.SERVING: 1.0
    }  # fmt: skip
    assert phases.changes == {Reason.SILENT: 1}


def test_a_session_that_renewed_again_is_noticed_anew() -> None:
    phases = Phases()
    phases.doubted(OWNER, heard_at=10.0, at=12.0)
    phases.doubted(OWNER, heard_at=20.0, at=22.5)
    phases.over(OWNER, Reason.SILENT, heard_at=20.0, at=26.0)
    assert sums(phases, Reason.SILENT) == {Phase.NOTICED: 2.5, Phase.PROVEN: 3.5}


def test_a_first_grant_is_counted_but_is_no_failover() -> None:
    phases = Phases()
    phases.granted("u", epoch=1, reason=Reason.CREATED, before=None, began=1.0, at=2.0)
    assert phases.changes == {Reason.CREATED: 1}
    assert not phases.seconds


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases_module, "REMEMBERED_MAX", 3)
    phases = Phases()
    for number in range(10):
        session = Session(f"sample-{number}", "u", "n")
        phases.doubted(session, heard_at=0.0, at=1.0)
        phases.granted(f"u-{number}", epoch=1, reason=Reason.RELEASED, before=session, began=0.0, at=1.0)
    assert max(len(phases._doubted), len(phases._over), len(phases._grants)) == 3
    phases.reported({"u-0": replica(serving=True, epoch=1), "u-9": replica(serving=True, epoch=1)}, at=2.0)
    assert phases.seconds[Phase.SERVING, Reason.RELEASED].count == 1


def test_the_failover_loop_tells_each_part() -> None:
    world = World()

    async def story() -> None:
        failover = await world.started()
        world.join_all()
        owner = world.owning_shard()
        owner.process.pause()
        assert await world.until(lambda: world.epoch() == 2) < 12
        await asyncio.sleep(4)
        told = sums(failover.phases, Reason.SILENT)
        assert set(told) == set(Phase)
        assert 1.0 < told[Phase.NOTICED] < 4.0
        assert 5.0 < told[Phase.NOTICED] + told[Phase.PROVEN] < 9.0, "D is 6 s"
        assert told[Phase.GRANTED] < 1.0
        assert failover.session_states() == {"live": 2, "doubted": 0, "over": 1}

    world.run(story)


# -- the page and the alerts


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, ROOT / "docs/generate_metrics.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_alerts_speak_of_metrics_that_exist() -> None:
    groups = yaml.safe_load((ROOT / "manifests/monitoring/alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    declared = {family.name for family in (*FAMILIES, *SHARD_FAMILIES)}
    declared |= {f"{name}{end}" for name in declared for end in ("_bucket", "_sum", "_count")}
    for rule in rules:
        named = set(re.findall(r"fencekv_[a-z_]+", rule["expr"]))
        assert named, rule
        assert named <= declared, rule
        assert rule["annotations"]["summary"].endswith("."), rule


async def test_the_process_gives_a_picture_of_itself() -> None:
    options = _options(["--probe-port", "0", "--identity", "op-0"])
    found = series(render(Operator(options, Access(server="http://127.0.0.1:1"))._picture()))
    assert found["fencekv_operator_leading",] == 0
    assert found["fencekv_operator_partitions", "Ready"] == 0
    assert found["fencekv_operator_sessions", "live"] == 0
