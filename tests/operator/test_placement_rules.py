"""What a table's placement asks for, and what is said where it cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from fencekv_operator.placement import Ground, Load, Placed, adjust, place
from fencekv_operator.rules import Place, Rules, Spread, TablePlacement, Wish, lacking

# Six pods in three zones: p-0 and p-3 in z-0, p-1 and p-4 in z-1, p-2 and p-5 in z-2; p-3 to p-5 on fast nodes.
PLACES = tuple(
    Place(
        pod=f"p-{number}",
        node=f"n-{number}",
        zone=f"z-{number % 3}",
        labels={"disk": "fast" if number >= 3 else "slow"},
    )
    for number in range(6)
)
FAST = {"disk": "fast"}


def wish(*, owner: str = "", pods: str = "", zones: str = "") -> Wish:
    return Wish(owner=owner, pods=frozenset(pods.split()), zones=frozenset(zones.split()))


def standing(*pods: str, in_sync: str | None = None, owner: str = "") -> Placed:
    members = frozenset(pods if in_sync is None else in_sync.split())
    return Placed(replicas=pods, owner=owner or pods[0], in_sync=members)


STEPS = [
    # what, rules, placement that stands, the next one
    ("nothing is asked for", Rules(), standing("p-0", "p-3", "p-1"), "p-0 p-3 p-1"),
    ("a preferred spread moves nothing", Rules(zones=Spread.PREFERRED), standing("p-0", "p-3"), "p-0 p-3"),
    ("a required spread does", Rules(zones=Spread.REQUIRED), standing("p-0", "p-3", "p-1"), "p-0 p-3 p-1 p-2"),
    (
        "and lets go of the double",
        Rules(zones=Spread.REQUIRED),
        standing("p-0", "p-3", "p-1", "p-2"),
        "p-0 p-1 p-2",
    ),
    (
        "but not before the new one is in sync",
        Rules(zones=Spread.REQUIRED),
        standing("p-0", "p-3", "p-1", "p-2", in_sync="p-0 p-3 p-1"),
        "p-0 p-3 p-1 p-2",
    ),
    ("an excluded pod", Rules(excluded_pods=frozenset({"p-1"})), standing("p-0", "p-1", "p-2"), "p-0 p-1 p-2 p-4"),
    (
        "an excluded zone",
        Rules(excluded_zones=frozenset({"z-2"})),
        standing("p-0", "p-1", "p-2"),
        "p-0 p-1 p-2 p-3",
    ),
    ("labels of nodes", Rules(node_labels=FAST), standing("p-3", "p-4", "p-0"), "p-3 p-4 p-0 p-5"),
    (
        "a pinned owner that stands by",
        Rules(required=wish(owner="p-2")),
        standing("p-0", "p-1", "p-2"),
        "p-2 p-0 p-1",
    ),
    (
        "a pinned owner from elsewhere, beside those that hold it",
        Rules(required=wish(owner="p-5")),
        standing("p-0", "p-1", "p-2"),
        "p-5 p-0 p-1 p-2",
    ),
    (
        "then the standby that was placed last goes",
        Rules(required=wish(owner="p-5")),
        standing("p-5", "p-0", "p-1", "p-2"),
        "p-5 p-0 p-1",
    ),
    ("a preferred owner", Rules(preferred=wish(owner="p-1")), standing("p-0", "p-1", "p-2"), "p-1 p-0 p-2"),
    (
        "a pin before a preference",
        Rules(required=wish(owner="p-2"), preferred=wish(owner="p-1")),
        standing("p-0", "p-1", "p-2"),
        "p-2 p-0 p-1",
    ),
    (
        "pods that it must be on",
        Rules(required=wish(pods="p-0 p-1 p-5")),
        standing("p-0", "p-1", "p-2"),
        "p-0 p-1 p-2 p-5",
    ),
    (
        "zones that it should be in, as far as there are pods",
        Rules(preferred=wish(zones="z-0")),
        standing("p-0", "p-1", "p-2"),
        "p-0 p-1 p-2 p-3",
    ),
    (
        "what is preferred gives way to what is required",
        Rules(preferred=wish(pods="p-1"), excluded_pods=frozenset({"p-1"})),
        standing("p-0", "p-2", "p-4"),
        "p-0 p-2 p-4",
    ),
    (
        "where there is no other place it stays",
        Rules(required=wish(pods="p-0 p-1")),
        standing("p-0", "p-1", "p-2"),
        "p-0 p-1 p-2",
    ),
]


@pytest.mark.parametrize(
    ("what", "rules", "here", "wanted"), STEPS, ids=[step[0].replace(" ", "-") for step in STEPS]
)
def test_the_next_step(what: str, rules: Rules, here: Placed, wanted: str) -> None:
    size = 2 if len(here.replicas) == 2 else 3
    ground = Ground.of(PLACES, rules)
    found = adjust(here, size=size, min_in_sync=1, ground=ground, load=Load.of([here.replicas]))
    assert found == tuple(wanted.split())


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (Rules(zones=Spread.REQUIRED), 3),
        (Rules(zones=Spread.REQUIRED, excluded_zones=frozenset({"z-0"})), 2),
        (Rules(node_labels=FAST), 3),
        (Rules(node_labels={"disk": "none"}), 0),
        (Rules(required=wish(owner="p-4", zones="z-1")), 2),
    ],
)
def test_a_new_partition_gets_no_place_against_its_rules(rules: Rules, wanted: int) -> None:
    by_pod = {each.pod: each for each in PLACES}
    found = place(size=3, ground=Ground.of(PLACES, rules), load=Load())
    assert len(found) == wanted
    for number, pod in enumerate(found):
        assert rules.placeable(by_pod[pod])
        assert rules.apart(by_pod[pod], [by_pod[other] for other in found[:number]])
    assert found[:1] == (rules.owner,) or not rules.owner


def test_a_pod_without_a_node_keeps_what_it_holds_and_gets_nothing_new() -> None:
    """A pod that is made anew has no node for a while, and its replicas are none the worse for it."""
    rules = Rules(zones=Spread.REQUIRED, node_labels=FAST)
    places = [Place(pod="p-3"), *(each for each in PLACES if each.pod != "p-3")]
    here = standing("p-3", "p-4", "p-5")
    assert adjust(here, size=3, min_in_sync=1, ground=Ground.of(places, rules), load=Load()) == here.replicas
    assert "p-3" not in place(size=3, ground=Ground.of(places, rules), load=Load())


def test_a_pod_that_is_away_is_replaced_and_one_without_a_successor_is_kept() -> None:
    def gone(count: int) -> Ground:
        return Ground.of(Place(pod=f"p-{number}", away=number == 1) for number in range(count))

    here = standing("p-0", "p-1", "p-2", in_sync="p-0 p-2")
    assert adjust(here, size=3, min_in_sync=1, ground=gone(4), load=Load()) == ("p-0", "p-1", "p-2", "p-3")
    joined = standing("p-0", "p-1", "p-2", "p-3", in_sync="p-0 p-2 p-3")
    assert adjust(joined, size=3, min_in_sync=1, ground=gone(4), load=Load()) == ("p-0", "p-2", "p-3")
    assert adjust(here, size=3, min_in_sync=1, ground=gone(3), load=Load()) == here.replicas


LACKS: list[tuple[dict[str, Any], int, list[str]]] = [
    ({}, 3, []),
    ({"required": wish(owner="p-9")}, 3, ["there is no pod p-9"]),
    ({"required": wish(pods="p-0 p-7 p-8")}, 1, ["there is no pod p-7", "there is no pod p-8"]),
    ({"required": wish(zones="z-7")}, 0, ["no pod runs in zone z-7"]),
    ({"node_labels": {"disk": "none"}}, 0, ["no pod runs on a node with disk=none"]),
    (
        {"required": wish(owner="p-0"), "excluded_pods": frozenset({"p-0"})},
        3,
        ["pod p-0 is to own it, and other rules keep it away from there"],
    ),
    (
        {"zones": Spread.REQUIRED, "excluded_zones": frozenset({"z-0"})},
        2,
        ["3 replicas are wanted, the rules leave room for 2 (zones with pods: z-0, z-1, z-2)"],
    ),
]


@pytest.mark.parametrize(("rules", "room", "wanted"), LACKS)
def test_what_is_missing_is_named(rules: dict[str, Any], room: int, wanted: list[str]) -> None:
    assert lacking(Rules(**rules), size=3, places=PLACES, room=room) == wanted


def test_the_first_entry_that_names_a_partition_counts() -> None:
    placement = TablePlacement.parse(
        {
            "spread": {"zone": "Required"},
            "excludePods": ["p-5"],
            "partitions": [
                {"index": 1, "required": {"owner": "p-1"}},
                {"range": {"first": 0, "last": 2}, "preferred": {"zones": ["z-0"]}},
            ],
        }
    )
    assert [placement.of(index).required.owner for index in range(4)] == ["", "p-1", "", ""]
    assert [sorted(placement.of(index).preferred.zones) for index in range(4)] == [["z-0"], [], ["z-0"], []]
    assert all(placement.of(index).zones is Spread.REQUIRED for index in range(4))
    assert all(placement.of(index).nodes is Spread.PREFERRED for index in range(4))
    assert all("p-5" in placement.of(index).excluded_pods for index in range(4))
