"""Which shard pod is restarted next, how far a pool may shrink, who is away, and which volumes grow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv_operator.absence import SLICE_SECONDS_MAX, Absences, replaceable
from fencekv_operator.placement import Placed
from fencekv_operator.rollout import Rollout, Shard, needed_pods, rollout
from fencekv_operator.volumes import growing, growth

Object = dict[str, Any]

PODS = ("p-0", "p-1", "p-2")
WHOLE = Placed(replicas=PODS, owner="p-0", in_sync=frozenset(PODS))


def shard(ordinal: int, revision: str = "new", *, ready: bool = True, leaving: bool = False) -> Shard:
    trouble = "" if ready and not leaving else "not ready yet"
    return Shard(
        pod=f"p-{ordinal}",
        uid=f"u-{ordinal}",
        revision=revision,
        leaving=leaving,
        ready=ready and not leaving,
        trouble=trouble,
        hopeless=False,
    )


def behind(*pods: str, owner: str = "p-0") -> Placed:
    return Placed(replicas=PODS, owner=owner, in_sync=frozenset(PODS) - set(pods))


def step(*shards: Shard, partitions: dict[str, Placed] | None = None, revision: str = "new") -> Rollout:
    known = {each.pod: each for each in shards}
    return rollout(
        revision=revision,
        pods=PODS,
        shards=known,
        partitions={"orders-0": WHOLE} if partitions is None else partitions,
    )


STEPS = [
    # what, pods, partitions, the pod to restart, what is waited for
    ("all is new", [shard(0), shard(1), shard(2)], {}, "", ""),
    ("the highest first", [shard(0, "old"), shard(1, "old"), shard(2, "old")], {}, "p-2", ""),
    ("the next one", [shard(0, "old"), shard(1, "old"), shard(2)], {}, "p-1", ""),
    ("an owner too", [shard(0, "old"), shard(1), shard(2)], {"a": WHOLE}, "p-0", ""),
    ("one that is gone", [shard(0, "old"), shard(1, "old")], {}, "", "p-2 to be created"),
    ("one that leaves", [shard(0, "old"), shard(1, "old"), shard(2, "old", leaving=True)], {}, "", "p-2: "),
    ("one that starts", [shard(0, "old"), shard(1, "old"), shard(2, ready=False)], {}, "", "p-2: not ready yet"),
    (
        "a copy that lags",
        [shard(0, "old"), shard(1, "old"), shard(2)],
        {"a": behind("p-2"), "b": WHOLE},
        "",
        "a to be in sync",
    ),
    ("its own copy may lag", [shard(0, "old"), shard(1, "old"), shard(2)], {"a": behind("p-1")}, "p-1", ""),
    (
        "a partition that nobody ever owned",
        [shard(0, "old"), shard(1), shard(2)],
        {"a": behind(*PODS, owner="")},
        "",
        "a to be in sync",
    ),
    (
        "what is down already goes first, whatever lags",
        [shard(0, "old", ready=False), shard(1, "old"), shard(2, "old")],
        {"a": behind("p-0", "p-1")},
        "p-0",
        "",
    ),
    (
        "all were down before the template was mended",
        [shard(0, "old", ready=False), shard(1, "old", ready=False), shard(2, "old", ready=False)],
        {"a": behind(*PODS, owner="")},
        "p-2",
        "",
    ),
    (
        "the mended one is to come up first",
        [shard(0, "old", ready=False), shard(1, "old", ready=False), shard(2, ready=False)],
        {},
        "",
        "p-2: not ready yet",
    ),
    (
        "one above the wanted number counts",
        [shard(0, "old"), shard(1, "old"), shard(2, "old"), shard(3, ready=False)],
        {},
        "",
        "p-3: not ready yet",
    ),
]


@pytest.mark.parametrize(
    ("what", "shards", "partitions", "restart", "waits"), STEPS, ids=[one[0] for one in STEPS]
)
def test_the_next_restart(
    what: str, shards: list[Shard], partitions: dict[str, Placed], restart: str, waits: str
) -> None:
    found = step(*shards, partitions=partitions)
    assert (found.restart.shard.pod if found.restart else "") == restart, found
    assert found.waits.startswith(waits), found
    assert bool(found.waits) == bool(waits), found
    assert found.updated == sum(each.revision == "new" for each in shards if each.pod in PODS) + max(
        0, len(PODS) - len(shards)
    )


def test_a_restart_names_what_must_still_be_in_sync_when_it_is_carried_out() -> None:
    found = step(shard(0), shard(1, "old"), shard(2), partitions={"a": WHOLE, "b": behind("p-1")})
    assert found.restart is not None
    assert found.restart.in_sync == {"a": {"p-0", "p-2"}, "b": {"p-0", "p-2"}}
    down = step(shard(0), shard(1, "old", ready=False), shard(2), partitions={"a": behind("p-0")})
    assert down.restart is not None
    assert down.restart.in_sync == {}


def test_while_the_newest_template_is_not_known_nothing_is_restarted() -> None:
    assert step(shard(0, "old"), shard(1, "old"), shard(2, "old"), revision="").restart is None


@given(
    pods=st.lists(
        st.tuples(st.sampled_from(["old", "new"]), st.booleans(), st.booleans()), min_size=3, max_size=3
    ),
    lagging=st.lists(st.sets(st.sampled_from(PODS)), max_size=3),
)
def test_no_restart_takes_a_second_copy(pods: list[tuple[str, bool, bool]], lagging: list[set[str]]) -> None:
    """A ready pod is restarted only if all others are ready, stay, and hold everything that they should."""
    shards = [shard(n, one[0], ready=one[1], leaving=one[2]) for n, one in enumerate(pods)]
    partitions = {f"t-{n}": behind(*each) for n, each in enumerate(lagging)}
    found = step(*shards, partitions=partitions)
    if found.restart is None or not found.restart.shard.ready:
        return
    chosen = found.restart.shard
    assert chosen.revision == "old"
    assert all(each.ready for each in shards)
    assert all(each <= {chosen.pod} for each in lagging)


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        (
            "no node",
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 fit"}]},
            "0/3 fit",
        ),
        (
            "an image",
            {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such tag"}}}]},
            "ErrImagePull: no such tag",
        ),
        ("nothing known", {}, "not ready yet"),
        ("ready", {"conditions": [{"type": "Ready", "status": "True"}]}, ""),
    ],
)
def test_a_pod_says_why_it_is_not_ready(what: str, status: Object, says: str) -> None:
    found = Shard.parse({"metadata": {"name": "p-0", "uid": "u"}, "status": status})
    assert (says in found.trouble) if says else (found.trouble == "" and found.ready), what
    assert found.hopeless is (what == "an image")


def test_a_pod_that_leaves_is_not_ready_and_says_that_its_node_may_hold_it_up() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    found = Shard.parse({"metadata": {"name": "p-0", "uid": "u", "deletionTimestamp": "T"}, "status": ready})
    assert found.leaving
    assert not found.ready
    assert "leaves since T; if its node is gone" in found.trouble


FIVE = [f"p-{ordinal}" for ordinal in range(5)]
SHRINKING = [
    # what, wanted, pods the set has, pods there are, replicas, in-sync set, owner, pods it shall have
    ("growing", 5, 3, 3, ["p-0"], ["p-0"], "p-0", 5),
    ("nothing on the last one", 3, 5, 5, ["p-0", "p-3"], ["p-0", "p-3"], "p-3", 4),
    ("one at a time", 3, 5, 4, ["p-0"], ["p-0"], "p-0", 5),
    ("one that is still to start", 3, 5, 3, ["p-0"], ["p-0"], "p-0", 5),
    ("a replica", 3, 5, 5, ["p-0", "p-4"], ["p-0"], "p-0", 5),
    ("the owner", 3, 5, 5, ["p-0"], ["p-0"], "p-4", 5),
    ("a member of the set", 3, 5, 5, ["p-0"], ["p-0", "p-4"], "p-0", 5),
]


@pytest.mark.parametrize(
    ("what", "wanted", "there", "exist", "replicas", "in_sync", "owner", "pods"),
    SHRINKING,
    ids=[each[0] for each in SHRINKING],
)
def test_a_pool_shrinks_by_one_pod_that_nobody_needs(
    what: str, wanted: int, there: int, exist: int, replicas: list[str], in_sync: list[str], owner: str, pods: int
) -> None:
    placed = Placed(replicas=tuple(replicas), owner=owner, in_sync=frozenset(in_sync))
    found, waits = needed_pods(wanted=wanted, there=there, shards=FIVE[:exist], partitions={"orders-0": placed})
    assert found == pods, (what, waits)
    assert bool(waits) == (there > wanted and found == there), what


def test_only_time_in_which_the_server_answered_counts_as_absence() -> None:
    away = Absences()
    pod = "p-0"
    assert away.look(pod, away=True, now=100.0, answered_at=100.0) == 0.0
    assert away.look(pod, away=True, now=105.0, answered_at=104.0) == 5.0
    assert away.look(pod, away=True, now=110.0, answered_at=104.0) == 5.0, "nothing was heard since"
    assert away.look(pod, away=True, now=111.0, answered_at=111.0) == 11.0, "it was away at both ends of the slice"
    assert away.look(pod, away=True, now=9000.0, answered_at=9000.0) == 11.0 + SLICE_SECONDS_MAX, "we were paused"
    assert away.look(pod, away=False, now=9001.0, answered_at=9001.0) is None
    assert away.look(pod, away=True, now=9002.0, answered_at=9002.0) == 0.0


@pytest.mark.parametrize(
    ("what", "heard", "after", "pods"),
    [
        ("one long away", {"p-0": 600.0, "p-1": None, "p-2": None}, 600, {"p-0"}),
        ("not long enough", {"p-0": 599.0, "p-1": None, "p-2": None}, 600, set()),
        ("never", {"p-0": 9e9, "p-1": None, "p-2": None}, 0, set()),
        ("two of four", {"p-0": 700.0, "p-1": 100.0, "p-2": None, "p-3": None}, 600, {"p-0"}),
        ("more than half", {"p-0": 700.0, "p-1": 700.0, "p-2": None}, 600, set()),
    ],
)
def test_who_is_replaced(what: str, heard: dict[str, float | None], after: int, pods: set[str]) -> None:
    assert replaceable(heard, after_seconds=after) == pods, what


def claim(pod: str, asked: str, has: str | None = None) -> Object:
    name = f"data-{pod}"
    return {
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "7"},
        "spec": {"resources": {"requests": {"storage": asked}}},
        "status": {"capacity": {"storage": has or asked}} if has != "" else {},
    }


def test_only_claims_of_wanted_pods_that_ask_for_less_are_grown() -> None:
    claims = {
        each["metadata"]["name"]: each
        for each in (claim("p-0", "1Gi"), claim("p-1", "2048Mi"), claim("p-2", "5Gi"), claim("p-3", "1Gi"))
    }
    (action,) = growth(claims, pods=PODS, size="2Gi")
    assert (action.name, action.patch["spec"]) == ("data-p-0", {"resources": {"requests": {"storage": "2Gi"}}})
    assert action.patch["metadata"] == {"resourceVersion": "7"}, "a compare-and-swap"


def test_a_volume_grows_until_it_has_the_room_that_is_asked_for() -> None:
    claims = {
        "data-p-0": claim("p-0", "2Gi", "1Gi"),
        "data-p-1": claim("p-1", "2Gi"),
        "data-p-2": claim("p-2", "2Gi", ""),
    }
    assert growing(claims, pods=PODS, size="2Gi") == "volumes are growing to 2Gi: data-p-0"
    assert growing(claims, pods=PODS, size="1Gi") == ""
