"""Which in-sync set an owner asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv_shard.quorum import Standby, is_needed, next_set

OWN, B, C = "a/1", "b/1", "c/1"
FINE = Standby(caught_up=True, silent_seconds=0.0)
BEHIND = Standby(caught_up=False, silent_seconds=0.0)
SILENT = Standby(caught_up=True, silent_seconds=1.0)
OVER = Standby(caught_up=True, silent_seconds=0.0, session_over=True)


def ask(
    members: list[str],
    standbys: dict[str, Standby],
    *,
    counted: list[str] | None = None,
    min_in_sync: int = 1,
    replicas: str = "abc",
) -> tuple[str, ...] | None:
    return next_set(
        own=OWN,
        members=members,
        counted=[m for m in members if m != OWN] if counted is None else counted,
        standbys=standbys,
        replicas=list(replicas),
        min_in_sync=min_in_sync,
        timeout_seconds=1.0,
    )


def test_nothing_changes_while_all_is_well() -> None:
    assert ask([OWN, B, C], {B: FINE, C: FINE}) is None


def test_who_has_caught_up_joins() -> None:
    assert ask([OWN], {B: FINE, C: BEHIND}) == (OWN, B)


@pytest.mark.parametrize("standby", [BEHIND, SILENT, OVER])
def test_who_is_behind_silent_or_over_does_not_join(standby: Standby) -> None:
    assert ask([OWN], {B: standby}) is None


def test_a_pod_that_does_not_belong_to_the_partition_does_not_join() -> None:
    assert ask([OWN], {"x/1": FINE}) is None


@pytest.mark.parametrize("standby", [SILENT, OVER])
def test_who_is_silent_or_over_leaves(standby: Standby) -> None:
    assert ask([OWN, B, C], {B: standby, C: FINE}) == (OWN, C)


def test_the_last_standby_that_minimum_needs_stays() -> None:
    assert ask([OWN, B], {B: SILENT}) is None
    assert ask([OWN, B, C], {B: SILENT, C: SILENT}) == (OWN, C)
    assert ask([OWN, B], {B: SILENT}, min_in_sync=0) == (OWN,)


def test_a_replica_that_came_back_empty_takes_its_old_selfs_place_without_a_gap() -> None:
    assert ask([OWN, B], {B: SILENT, "b/2": FINE}) == (OWN, B, "b/2")
    assert ask([OWN, B, "b/2"], {B: SILENT, "b/2": FINE}) == (OWN, "b/2")


def test_a_standby_counted_for_a_join_that_failed_is_let_go_by_a_swap_that_changes_nothing() -> None:
    assert ask([OWN, B], {B: FINE, C: SILENT}, counted=[B, C]) == (OWN, B)


MEMBERS = [B, C, "c/2", "d/1"]
STANDBYS = st.builds(
    Standby,
    caught_up=st.booleans(),
    silent_seconds=st.sampled_from([0.0, 0.5, 1.0, 9.0]),
    session_over=st.booleans(),
)


@given(
    members=st.sets(st.sampled_from(MEMBERS)),
    extra=st.sets(st.sampled_from(MEMBERS)),
    standbys=st.dictionaries(st.sampled_from(MEMBERS), STANDBYS),
    min_in_sync=st.integers(0, 3),
)
def test_a_change_keeps_the_owner_and_the_minimum_and_ends(
    members: set[str], extra: set[str], standbys: dict[str, Standby], min_in_sync: int
) -> None:
    current = {OWN, *members}
    counted = members | extra
    for _ in range(10):
        target = ask(sorted(current), standbys, counted=sorted(counted), min_in_sync=min_in_sync, replicas="abcd")
        if target is None:
            return
        assert OWN in target
        if current - set(target):
            assert len(target) - 1 >= min_in_sync
        current, counted = set(target), set(target) - {OWN}
    pytest.fail("it never settles")


@pytest.mark.parametrize(
    ("members", "has_epoch", "least", "needed"),
    [
        ("abc", False, 1, True),  # the owner cannot open without it
        ("abc", True, 1, False),  # it can be asked out
        ("ab", True, 1, True),  # it cannot
        ("abc", True, 2, True),
        ("ac", True, 1, False),  # another one is in sync
        ("ac", True, 2, True),  # and is not enough
        ("a", True, 0, True),  # `replicated` needs one
        ("ac", False, 1, False),  # the owner opens without it
    ],
)
def test_for_whom_an_owner_waits(members: str, has_epoch: bool, least: int, needed: bool) -> None:
    assert is_needed("b", members=members, has_epoch=has_epoch, min_in_sync=least) is needed
