"""What a drill must show, by its row; and the second operator of the row that has two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import drills
import operators
from history import Failure, Verdict
from kubectl import Cluster
from rows import ROWS, Run

BY_NAME = {row.name: row for row in ROWS}
ALL_WELL = {"lost": 0, "stale": 0, "doubled": 0, "failed": 0, "unknown": 0}
REFUSED = Failure(key="k", partition="p", error="Unavailable", detail="", sent=1, answered=2, shard="")


def run(
    *,
    seconds: float = 0.5,
    strays: int = 0,
    handovers: tuple[float, ...] = (),
    costly: tuple[str, ...] = (),
    **counts: int,
) -> Run:
    verdict = Verdict(
        acknowledged=1,
        pause_seconds=seconds,
        slowest_seconds=seconds,
        stubborn_acknowledged=0,
        examples=(),
        **ALL_WELL | counts,
    )
    lost = (REFUSED,) * strays
    return Run(seconds=seconds, verdict=verdict, strays=lost, handovers=handovers, costly=costly)


@pytest.mark.parametrize(
    ("row", "done", "wrong"),
    [
        ("process-killed", run(failed=1, unknown=2), []),
        ("process-killed", run(failed=2, strays=2), ["2 failed or unknown though not in flight"]),
        ("container-killed", run(strays=1), ["1 failed or unknown though not in flight"]),
        ("pod-deleted", run(strays=1), ["1 failed or unknown though not in flight"]),
        ("cut-all", run(failed=2, strays=2), []),
        ("switchover", run(failed=1, strays=1), ["1 failed"]),
        ("api-2s", run(unknown=1), ["1 unknown"]),
        ("node-dead", run(lost=1, stale=2, doubled=3), ["1 lost", "2 stale", "3 in one place"]),
        ("process-killed", run(seconds=1.5), ["1.50 s, limit 1 s"]),
        (
            "thousand",
            run(costly=("201.00 MB of an operator, limit 200",)),
            ["201.00 MB of an operator, limit 200"],
        ),
    ],
)
def test_what_does_not_hold_depends_on_the_row(row: str, done: Run, wrong: list[str]) -> None:
    assert done.wrong(BY_NAME[row]) == wrong


@pytest.mark.parametrize(
    ("handovers", "wrong"),
    [
        ([(0.2, 0.9), (0.1,)], []),
        ([(0.2, 0.9), (0.3,)], ["median of the changes of owners 0.30 s, limit 0.25 s"]),
        ([()], ["median of the changes of owners not known, limit 0.25 s"]),
    ],
)
def test_the_median_of_planned_moves_is_that_of_all_of_them(
    handovers: list[tuple[float, ...]], wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = iter(handovers)
    monkeypatch.setattr(drills, "run", lambda *_: run(handovers=next(done)))
    told = drills.repeat(Cluster(Path("/dev/null")), BY_NAME["switchover"], len(handovers))
    assert told["wrong"] == wrong
    assert told["changesOfOwners"] == sum(map(len, handovers))


def test_a_busy_machine_may_take_longer_and_lose_no_more() -> None:
    slow = run(seconds=1.5, lost=1)
    assert slow.wrong(BY_NAME["process-killed"], more_seconds=1) == ["1 lost"]
    assert run(strays=1).examples[0].startswith("not in flight: Failure(key='k'")


class Known(Cluster):
    """A cluster that has the Deployment and nothing else."""

    def __init__(self, deployment: dict[str, Any]) -> None:
        super().__init__(Path("/dev/null"))
        self.deployment = deployment

    def get(self, *words: str) -> dict[str, Any]:
        assert words[:2] == ("deployment", "fencekv-operator"), words
        return self.deployment


def test_the_second_operator_is_the_first_but_for_its_lease_and_its_node() -> None:
    file = Path(__file__).parents[2] / "manifests/base/operator.yaml"
    deployment = yaml.safe_load(file.read_text(encoding="utf-8"))
    fault = operators.second(Known(deployment))
    [(*_, script)] = fault.harm
    place, pod = json.loads(script.partition("printf %s '")[2].partition("' |")[0])["items"]

    assert "labels" not in pod["metadata"], "the Deployment would take it for one of its own"
    assert place["data"] == {"namespace": operators.ELSEWHERE}
    first, second = deployment["spec"]["template"]["spec"], pod["spec"]
    assert second["serviceAccountName"] == first["serviceAccountName"]
    [before], [after] = first["containers"], second["containers"]
    assert {key for key in after if after[key] != before[key]} == {"env", "volumeMounts"}
    assert after["env"][-1] == {"name": "FENCEKV_SERVICEACCOUNT", "value": operators.ACCOUNT}
    assert list(second["nodeSelector"]) == ["node-role.kubernetes.io/control-plane"]


LEADS = 'fencekv_operator_leading 1.0\nfencekv_operator_owner_changes_total{reason="over"} 3.0\n'


class Telling(Cluster):
    """Two operators, whose metrics and Leases are these."""

    def __init__(self, metrics: dict[str, str], second_holder: str) -> None:
        super().__init__(Path("/dev/null"))
        self.metrics, self.second_holder = metrics, second_holder

    def get(self, *words: str) -> dict[str, Any]:
        assert words[:2] == ("lease", "fencekv-operator"), words
        return {"spec": {"holderIdentity": self.second_holder if operators.ELSEWHERE in words else "first_u"}}

    def kubectl(self, *words: str, **_: Any) -> str:
        return next(text for pod, text in self.metrics.items() if f"/pods/{pod}:" in words[-1])


def test_two_lead_only_if_both_say_so_and_each_has_its_lease() -> None:
    said = {"first": LEADS, operators.SECOND: LEADS.replace("3.0", "4.0")}
    first, second = operators.both(Telling(said, f"{operators.SECOND}_u"))
    assert (first.pod, first.grants, second.pod, second.grants) == ("first", 3, operators.SECOND, 4)

    silent = {**said, "first": LEADS.replace("leading 1.0", "leading 0.0")}
    for metrics, holder in ((silent, f"{operators.SECOND}_u"), (said, ""), (said, "first_u")):
        with pytest.raises(AssertionError):
            operators.both(Telling(metrics, holder))
