"""What a table of very many partitions costs, counted from what a cluster tells."""

from __future__ import annotations

from typing import Any

import pytest

from fencekv.leases import RENEWAL
from wide import Rest, changes, marks, resident_megabytes, writes


def lease(uid: str, version: str, renewal: int | None = None) -> dict[str, Any]:
    notes = {} if renewal is None else {RENEWAL: str(renewal)}
    return {"metadata": {"uid": uid, "resourceVersion": version, "annotations": notes}}


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        ([lease("s", "1", 10)], [lease("s", "9", 31)], 21),
        ([lease("p", "1")], [lease("p", "1")], 0),
        ([lease("p", "1")], [lease("p", "2")], 1),
        ([lease("s", "1", 10)], [lease("s", "2", 10)], 1),
        ([lease("a", "1", 7)], [lease("b", "2", 1)], 2),
    ],
    ids=["renewed", "at rest", "changed", "fenced", "made anew"],
)
def test_writes_to_leases_are_counted(before: list[Any], after: list[Any], count: int) -> None:
    assert changes(marks(before), marks(after)) == count


METRICS = """
# HELP apiserver_request_total [STABLE] Counter of apiserver requests.
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",group="fencekv.io",resource="kvpartitions",verb="PATCH",version="v1alpha1"} 12
apiserver_request_total{code="409",group="fencekv.io",resource="kvtables",verb="PUT",version="v1alpha1"} 1
apiserver_request_total{code="201",group="",resource="events",verb="POST",version="v1"} 3
apiserver_request_total{code="200",group="fencekv.io",resource="kvpartitions",verb="LIST",version="v1alpha1"} 70
apiserver_request_total{code="200",group="coordination.k8s.io",resource="leases",verb="PUT",version="v1"} 4000
apiserver_request_total{code="201",group="authorization.k8s.io",resource="subjectaccessreviews",verb="POST"} 9
apiserver_request_total_other{resource="kvtables",verb="PUT"} 5
"""


def test_all_other_writes_are_what_the_api_server_counted() -> None:
    assert writes(METRICS) == 16
    with pytest.raises(AssertionError, match="no apiserver_request_total"):
        writes("up 1\n")


def test_resident_memory_is_read_from_the_kernels_words() -> None:
    assert resident_megabytes("VmHWM:\t  300000 kB\nVmRSS:\t  125000 kB\n") == 128.0


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({}, ""),
        ({"ready_seconds": 60.5}, "60.50 seconds until ready, limit 60"),
        ({"shard_writes_per_second": 1.3}, "1.30 API writes a second a shard in rest, limit 1.2"),
        ({"operator_megabytes": (90.0, 201.0)}, "201.00 MB of an operator, limit 200"),
    ],
)
def test_what_is_beyond_a_limit_is_said(more: dict[str, Any], wrong: str) -> None:
    figures: dict[str, Any] = {
        "partitions": 1000,
        "ready_seconds": 40.0,
        "shard_writes_per_second": 1.1,
        "leader_writes_per_second": 1.0,
        "operator_megabytes": (120.0, 110.0),
    }
    assert Rest(**figures | more).wrong == ([wrong] if wrong else [])
