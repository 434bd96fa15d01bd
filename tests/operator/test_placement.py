"""Where partitions go: evenly, apart, and never moved without need."""

from __future__ import annotations

from collections import Counter

import pytest

from fencekv_operator.placement import Ground, Load, Placed, adjust, place
from fencekv_operator.rules import Place, Rules


def spots(count: int, *, nodes: int = 0, zones: int = 0) -> list[Place]:
    return [
        Place(
            pod=f"p-{number}",
            node=f"n-{number % nodes}" if nodes else "",
            zone=f"z-{number % zones}" if zones else "",
        )
        for number in range(count)
    ]


def ground(count: int, rules: Rules | None = None, **where: int) -> Ground:
    return Ground.of(spots(count, **where), rules or Rules())


@pytest.mark.parametrize(
    ("pods", "partitions", "size"), [(3, 9, 3), (4, 8, 2), (5, 10, 3), (7, 100, 3), (6, 7, 1)]
)
def test_owners_and_standbys_are_spread_evenly(pods: int, partitions: int, size: int) -> None:
    load = Load()
    placements = [place(size=size, ground=ground(pods), load=load) for _ in range(partitions)]
    owners = Counter(placement[0] for placement in placements)
    replicas = Counter(pod for placement in placements for pod in placement)
    assert max(owners.values()) - min(owners.values()) <= 1
    assert max(replicas.values()) - min(replicas.values()) <= 2
    assert all(len(set(placement)) == size for placement in placements)


def test_the_standbys_of_one_owner_are_not_all_the_same_pods() -> None:
    load = Load()
    placements = [place(size=2, ground=ground(4), load=load) for _ in range(24)]
    standbys = {placement[1] for placement in placements if placement[0] == "p-0"}
    assert len(standbys) >= 2


def test_the_partitions_of_a_lost_owner_do_not_all_fall_to_one_heir() -> None:
    load = Load()
    placements = [place(size=3, ground=ground(3), load=load) for _ in range(72)]
    for owner in ("p-0", "p-1", "p-2"):
        heirs = Counter(placement[1] for placement in placements if placement[0] == owner)
        assert sorted(heirs.values()) == [12, 12]


def test_replicas_go_to_different_zones_where_there_are_enough() -> None:
    load, there = Load(), ground(6, zones=3)
    zone = {each.pod: each.zone for each in there.places}
    for _ in range(12):
        placement = place(size=3, ground=there, load=load)
        assert len({zone[pod] for pod in placement}) == 3


def test_replicas_go_to_different_nodes_where_no_zone_is_known() -> None:
    load, there = Load(), ground(6, nodes=2)
    node = {each.pod: each.node for each in there.places}
    for _ in range(6):
        placement = place(size=2, ground=there, load=load)
        assert len({node[pod] for pod in placement}) == 2


def test_fewer_pods_than_replicas_hold_what_they_can() -> None:
    assert place(size=3, ground=ground(2), load=Load()) == ("p-0", "p-1")


def test_a_second_table_begins_where_the_first_left_off() -> None:
    load = Load.of([("p-0", "p-1"), ("p-1", "p-2")])
    assert place(size=2, ground=ground(3), load=load)[0] == "p-2"


def placed(*replicas: str, owner: str = "p-0", in_sync: tuple[str, ...] | None = None) -> Placed:
    return Placed(replicas=replicas, owner=owner, in_sync=frozenset(replicas if in_sync is None else in_sync))


CASES = [
    # what, placed, size, minInSync, pods, wanted
    ("stays when it is as wanted", placed("p-2", "p-0"), 2, 1, 4, ("p-2", "p-0")),
    ("stays though a new pod is empty", placed("p-0", "p-1"), 2, 1, 9, ("p-0", "p-1")),
    ("grows at its end", placed("p-0", "p-1"), 3, 1, 3, ("p-0", "p-1", "p-2")),
    ("grows beside a pod that is to go", placed("p-0", "p-3"), 2, 1, 3, ("p-0", "p-3", "p-1")),
    ("lets a pod go when its successor is in sync", placed("p-0", "p-3", "p-1"), 2, 1, 3, ("p-0", "p-1")),
    (
        "keeps a pod while its successor is behind",
        placed("p-0", "p-3", "p-1", in_sync=("p-0", "p-3")),
        2,
        1,
        3,
        ("p-0", "p-3", "p-1"),
    ),
    (
        "prefers another owner to one that is to go",
        placed("p-3", "p-0", "p-1", owner="p-3"),
        2,
        1,
        3,
        ("p-0", "p-3", "p-1"),
    ),
    ("drops the last in-sync standby first", placed("p-0", "p-1", "p-2"), 2, 1, 3, ("p-0", "p-1")),
    (
        "drops who is behind before who is in sync",
        placed("p-0", "p-1", "p-2", in_sync=("p-0", "p-2")),
        2,
        1,
        3,
        ("p-0", "p-2"),
    ),
    ("never drops the owner", placed("p-0", "p-1", "p-2", owner="p-2"), 1, 0, 3, ("p-2",)),
    ("drops nothing while nobody owns it", placed("p-0", "p-1", "p-2", owner=""), 2, 1, 3, ("p-0", "p-1", "p-2")),
    (
        "keeps as many in sync as writes need",
        placed("p-0", "p-1", "p-2", in_sync=("p-0", "p-1", "p-2")),
        2,
        2,
        3,
        ("p-0", "p-1"),
    ),
    ("gives up its standby when none is wanted", placed("p-0", "p-1"), 1, 0, 3, ("p-0",)),
]


@pytest.mark.parametrize(
    ("what", "now", "size", "least", "pods", "wanted"), CASES, ids=[case[0] for case in CASES]
)
def test_a_placement(what: str, now: Placed, size: int, least: int, pods: int, wanted: tuple[str, ...]) -> None:
    assert adjust(now, size=size, min_in_sync=least, ground=ground(pods), load=Load.of([now.replicas])) == wanted
