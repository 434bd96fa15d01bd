"""Who is granted a partition, and when nobody is: each rule, and the case that it exists for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from fencekv.leases import PartitionLease, Session
from fencekv_operator.facts import Reason, Trouble
from fencekv_operator.ownership import (
    Answer,
    AskRelease,
    Blocked,
    Decision,
    Degraded,
    Grant,
    Held,
    Nothing,
    Partition,
    Suspect,
    View,
    Wait,
    decide,
)
from fencekv_operator.reports import Replica

A, B, C = "s-0", "s-1", "s-2"
PODS = (A, B, C)


def session(pod: str, number: int = 1) -> Session:
    return Session(pod, f"uid-{pod}", f"{number:016x}")


def member(pod: str, replica: str = "r") -> str:
    return f"{pod}/{replica}-{pod}"


def partition(**changes: Any) -> Partition:
    base = Partition(
        namespace="default",
        name="orders-0",
        uid="u",
        kvns="s",
        table="orders",
        replicas=PODS,
        epoch=0,
        accepted_loss=None,
        deleting=False,
    )
    return replace(base, **changes)


def lease(**changes: Any) -> PartitionLease:
    """The record after A was granted epoch 4."""
    base = PartitionLease(
        name="partition-orders-0",
        uid="l",
        resource_version="1",
        partition_uid="u",
        session=session(A),
        epoch=4,
        in_sync=tuple(member(pod) for pod in PODS),
        set_version=7,
        owner_http=f"{A}:7070",
        owner_peer=f"{A}:7071",
        released="",
        release_target="",
        alone_since=None,
        accepted_loss=None,
    )
    return replace(base, **changes)


NEW = {"session": None, "epoch": 0, "in_sync": (), "set_version": 0}
EMPTY: dict[str, Any] = {
    "epoch": 0,
    "promised": 0,
    "last_epoch": 0,
    "last_seq": -1,
    "last_txid": -1,
    "set_version": 0,
    "members": (),
}


def replica(pod: str, **changes: Any) -> Replica:
    base = Replica(
        uid="u",
        partition="orders-0",
        replica=f"r-{pod}",
        promised=4,
        epoch=4,
        last_epoch=4,
        last_seq=100,
        last_txid=90,
        applied_seq=100,
        commit_seq=100,
        set_version=7,
        members=tuple(member(each) for each in PODS),
        role="standby",
        serving=False,
        closed_epoch=0,
        suspect=False,
    )
    return replace(base, **changes)


def answer(pod: str, *, number: int = 1, doubtful: bool = False, holds: bool = True, **changes: Any) -> Answer:
    return Answer(
        session=session(pod, number),
        http=f"{pod}:7070",
        peer=f"{pod}:7071",
        replica=replica(pod, **changes) if holds else None,
        doubtful=doubtful,
    )


def view(*answers: Answer, **changes: Any) -> View:
    base = View(
        partition=partition(),
        lease=lease(),
        absent_seconds=0.0,
        answers={one.session.pod: one for one in answers},
        over=None,
        doubt="",
        known_epoch=0,
        unsettled=frozenset(),
    )
    return replace(base, **changes)


def absent(*answers: Answer, **changes: Any) -> View:
    return view(*answers, **{"lease": None, "absent_seconds": 5.0, **changes})


def granted(decision: Decision) -> Grant:
    assert isinstance(decision, Grant), decision
    return decision


def suspect(decision: Decision) -> Suspect:
    assert isinstance(decision, Suspect), decision
    return decision


DEAD = {"over": Reason.TERMINATED}


class TestAPartitionThatIsNew:
    """This operator made it, and no Lease of it was ever seen."""

    BORN = frozenset({session(A), session(B), session(C)})

    def new(self, *answers: Answer, **changes: Any) -> View:
        return absent(
            *answers, **{"partition": partition(epoch=0), "absent_seconds": 0.0, "born": self.BORN, **changes}
        )

    def all_empty(self, **changes: Any) -> list[Answer]:
        return [answer(A, **EMPTY), answer(B, **EMPTY), answer(C, **{**EMPTY, **changes})]

    def test_it_is_granted_at_once_with_all_its_replicas(self) -> None:
        grant = granted(decide(self.new(*self.all_empty())))
        assert (grant.session, grant.epoch, grant.reason) == (session(A), 1, Reason.CREATED)
        assert grant.in_sync == tuple(member(pod) for pod in PODS)

    def test_not_before_all_have_answered(self) -> None:
        decision = decide(self.new(*self.all_empty()[:2]))
        assert isinstance(decision, Wait)
        assert C in decision.detail

    @pytest.mark.parametrize(
        "changes",
        [{"epoch": 1}, {"last_seq": 0}, {"set_version": 1}, {"suspect": True}],
        ids=lambda changes: next(iter(changes)),
    )
    def test_not_if_a_replica_knows_or_holds_anything(self, changes: dict[str, Any]) -> None:
        assert isinstance(decide(self.new(*self.all_empty(**changes))), Wait)

    def test_not_if_a_session_is_younger_than_the_partition(self) -> None:
        """Its predecessor may have been granted it, and live."""
        others = self.all_empty()[:2]
        assert isinstance(decide(self.new(*others, answer(C, number=2, **EMPTY))), Wait)

    def test_not_if_an_epoch_is_known(self) -> None:
        assert isinstance(decide(self.new(*self.all_empty(), known_epoch=1)), Wait)

    def test_not_if_somebody_else_made_it(self) -> None:
        assert isinstance(decide(self.new(*self.all_empty(), born=frozenset())), Wait)


class TestTheOwnerLives:
    def test_nothing_is_done_while_it_is_heard(self) -> None:
        assert decide(view(answer(B), answer(C))) == Nothing()

    def test_silence_alone_grants_nothing(self) -> None:
        decision = decide(view(answer(B), answer(C), doubt="not heard for 5 s"))
        assert decision == Wait(detail="not heard for 5 s", trouble=Trouble.WAITING)

    def test_a_new_session_of_its_pod_proves_no_death(self) -> None:
        decision = decide(view(answer(A, number=2), answer(B), doubt="a new session has begun"))
        assert isinstance(decision, Wait)


class TestTheOwnerIsOver:
    def test_the_longest_member_of_the_set_succeeds(self) -> None:
        grant = granted(decide(view(answer(B, last_seq=99), answer(C, last_seq=100), **DEAD)))
        assert grant.session == session(C)
        assert grant.http == f"{C}:7070"
        assert grant.reason is Reason.TERMINATED

    def test_the_epoch_of_the_last_entry_goes_before_its_number(self) -> None:
        old_tail = answer(B, last_epoch=3, last_seq=500)
        assert granted(decide(view(old_tail, answer(C, last_seq=100), **DEAD))).session == session(C)

    def test_ties_go_by_placement(self) -> None:
        assert granted(decide(view(answer(C), answer(B), **DEAD))).session == session(B)

    def test_among_equals_one_that_may_not_hear_of_the_grant_comes_last(self) -> None:
        assert granted(decide(view(answer(B, doubtful=True), answer(C), **DEAD))).session == session(C)

    def test_but_never_before_a_longer_one(self) -> None:
        """Under `standard` the shorter one lacks acknowledged writes."""
        longer = answer(B, doubtful=True, last_seq=101)
        assert granted(decide(view(longer, answer(C), **DEAD))).session == session(B)

    @pytest.mark.parametrize("over", [DEAD, {"lease": lease(released="4.100")}])
    def test_among_equals_a_damaged_base_comes_last_but_one_that_is_longer_goes_first(
        self, over: dict[str, Any]
    ) -> None:
        """A longer journal may hold what `standard` acknowledged; rows can be worked out again, entries cannot."""
        damaged = answer(B, damaged=True)
        sound = answer(C, doubtful=True)
        assert granted(decide(view(damaged, sound, **over))).session == session(C)
        longer = answer(B, damaged=True, last_seq=101)
        assert granted(decide(view(longer, sound, **over))).session == session(B)
        assert granted(decide(view(damaged, **over))).session == session(B)

    def test_a_longer_replica_outside_the_set_does_not_succeed(self) -> None:
        """The acknowledgements of this set did not wait for it."""
        seen = lease(in_sync=(member(A), member(C)))
        grant = granted(decide(view(answer(B, last_seq=900), answer(C), lease=seen, **DEAD)))
        assert grant.session == session(C)

    def test_a_pod_with_another_replica_is_no_member(self) -> None:
        """The same pod, a new volume: it holds nothing of what its name promises."""
        fresh = answer(B, replica="r-new", last_seq=900)
        assert granted(decide(view(fresh, answer(C), **DEAD))).session == session(C)

    def test_only_the_dead_owner_leaves_the_set(self) -> None:
        grant = granted(decide(view(answer(C), **DEAD)))
        assert grant.in_sync == (member(B), member(C))
        assert grant.set_version == 8

    def test_its_own_pod_may_succeed_it_and_stays_in_the_set(self) -> None:
        """A table with one replica comes back by its owner's restart."""
        seen = lease(in_sync=(member(A),))
        grant = granted(decide(view(answer(A, number=2), lease=seen, **DEAD)))
        assert (grant.session, grant.in_sync, grant.epoch) == (session(A, 2), (member(A),), 5)

    def test_its_own_pod_without_the_volume_does_not_succeed(self) -> None:
        seen = lease(in_sync=(member(A),))
        decision = decide(view(answer(A, number=2, replica="r-new", **EMPTY), lease=seen, **DEAD))
        assert isinstance(decision, Degraded)
        assert decision.missing == (A,)
        assert "without the data" in decision.detail

    def test_nobody_of_the_set_reachable_names_the_missing_and_the_way_out(self) -> None:
        decision = decide(view(lease=lease(in_sync=(member(A), member(B))), **DEAD))
        assert isinstance(decision, Degraded)
        assert decision.missing == (A, B)
        assert "fencekv.io/accept-loss=4" in decision.detail

    def test_a_pod_that_could_not_open_its_replica_is_missing(self) -> None:
        decision = decide(view(answer(B, holds=False), lease=lease(in_sync=(member(A), member(B))), **DEAD))
        assert isinstance(decision, Degraded)
        assert decision.missing == (A, B)


class TestEpochAndSetVersion:
    @pytest.mark.parametrize(("known", "status_epoch", "expected"), [(0, 0, 5), (4, 2, 5)])
    def test_one_above_the_record(self, known: int, status_epoch: int, expected: int) -> None:
        seen = view(answer(B), known_epoch=known, partition=partition(epoch=status_epoch), **DEAD)
        assert granted(decide(seen)).epoch == expected

    def test_above_whatever_any_replica_or_status_knows(self) -> None:
        answers = [answer(A, number=2), answer(B, epoch=9, promised=9), answer(C)]
        assert granted(decide(absent(*answers, known_epoch=6))).epoch == 10
        assert granted(decide(absent(*answers, known_epoch=12))).epoch == 13

    def test_set_version_above_every_reported_one(self) -> None:
        """A report from below the record may still know a higher number, of an epoch that was lost."""
        seen = view(answer(B, epoch=3, last_epoch=3, set_version=40), answer(C), **DEAD)
        assert granted(decide(seen)).set_version == 41


class TestRelease:
    RELEASED: ClassVar = {"released": "4.100"}

    def test_the_target_is_granted_at_once_and_the_releaser_stays_in_the_set(self) -> None:
        seen = lease(**self.RELEASED, release_target=C)
        grant = granted(decide(view(answer(A, last_seq=101), answer(B), answer(C), lease=seen)))
        assert (grant.session, grant.reason, grant.from_pod) == (session(C), Reason.RELEASED, A)
        assert grant.in_sync == (member(A), member(B), member(C))
        assert grant.epoch == 5

    def test_a_target_out_of_reach_gives_way_to_any_member(self) -> None:
        seen = lease(**self.RELEASED, release_target=C)
        assert granted(decide(view(answer(B), lease=seen))).session == session(B)

    def test_a_target_out_of_the_set_gives_way(self) -> None:
        seen = lease(**self.RELEASED, release_target=C, in_sync=(member(A), member(B)))
        assert granted(decide(view(answer(B), answer(C), lease=seen))).session == session(B)

    def test_the_releaser_gets_it_back_with_a_new_epoch_if_there_is_nobody_else(self) -> None:
        grant = granted(decide(view(answer(A), lease=lease(**self.RELEASED))))
        assert (grant.session, grant.epoch) == (session(A), 5)

    def test_a_releaser_that_is_over_leaves_the_set(self) -> None:
        grant = granted(decide(view(answer(B), lease=lease(**self.RELEASED), over=Reason.SESSION_RELEASED)))
        assert grant.in_sync == (member(B), member(C))
        assert grant.reason is Reason.RELEASED

    def test_the_release_of_an_earlier_epoch_is_none(self) -> None:
        assert decide(view(answer(B), lease=lease(released="3.50"))) == Nothing()


class TestFirstGrant:
    def test_the_preferred_pod_owns_and_all_are_in_sync(self) -> None:
        """Nothing was ever acknowledged, so that nobody lacks anything; whoever is not placed does not count."""
        answers = [answer(pod, **EMPTY) for pod in ("s-9", C, B, A)]
        grant = granted(decide(view(*answers, lease=lease(**NEW))))
        assert (grant.session, grant.epoch) == (session(A), 1)
        assert grant.in_sync == tuple(member(pod) for pod in PODS)
        assert (grant.reason, grant.from_pod, grant.set_version) == (Reason.CREATED, "", 1)

    def test_all_pods_must_have_said_that_they_are_empty(self) -> None:
        """A record at epoch 0 may have been made again: the silent one may hold all the data."""
        decision = decide(view(answer(A, **EMPTY), answer(B, **EMPTY), lease=lease(**NEW)))
        assert isinstance(decision, Wait)
        assert C in decision.detail
        assert decision.trouble is Trouble.NONE

    def test_data_under_a_record_at_epoch_0_makes_it_suspect(self) -> None:
        found = [answer(A, **EMPTY), answer(B), answer(C, last_seq=50)]
        grant = granted(decide(view(*found, lease=lease(**NEW))))
        assert (grant.session, grant.epoch, grant.reason) == (session(B), 5, Reason.RECORD_LOST)

    def test_a_status_that_knows_an_epoch_makes_it_suspect(self) -> None:
        found = [answer(pod, **EMPTY) for pod in PODS]
        decision = decide(view(*found, lease=lease(**NEW), known_epoch=4))
        assert isinstance(decision, Degraded)  # All are empty, but there was data.
        assert "accept-loss=4" in decision.detail


class TestAcceptedLoss:
    LEASE: ClassVar = {"in_sync": (member(A),)}

    def test_the_longest_replica_becomes_the_set(self) -> None:
        seen = view(
            answer(B, last_seq=80),
            answer(C, last_seq=90),
            lease=lease(**self.LEASE),
            partition=partition(accepted_loss=4),
            **DEAD,
        )
        grant = granted(decide(seen))
        assert (grant.session, grant.in_sync, grant.epoch) == (session(C), (member(C),), 5)
        assert grant.reason is Reason.LOSS_ACCEPTED

    @pytest.mark.parametrize("accepted", [None, 3, 5])
    def test_only_for_the_epoch_that_was_named(self, accepted: int | None) -> None:
        seen = view(answer(B), lease=lease(**self.LEASE), partition=partition(accepted_loss=accepted), **DEAD)
        assert isinstance(decide(seen), Degraded)

    def test_not_while_a_member_can_be_reached(self) -> None:
        seen = view(answer(B), answer(C, last_seq=900), partition=partition(accepted_loss=4), **DEAD)
        grant = granted(decide(replace(seen, lease=lease(in_sync=(member(A), member(B))))))
        assert (grant.session, grant.reason) == (session(B), Reason.TERMINATED)

    def test_not_while_the_owner_may_live(self) -> None:
        seen = view(answer(B), lease=lease(**self.LEASE), partition=partition(accepted_loss=4), doubt="silent")
        assert isinstance(decide(seen), Wait)


class TestOwnerAlone:
    @pytest.mark.parametrize(("answering", "http"), [((A,), f"{A}:7070"), ((), "")], ids=["in reach", "by Lease"])
    def test_a_standby_in_reach_is_made_the_target_of_a_release(
        self, answering: tuple[str, ...], http: str
    ) -> None:
        owner = [answer(pod, role="owner") for pod in answering]
        decision = decide(view(*owner, answer(B, last_seq=99), answer(C), lease=lease(alone_since=4)))
        assert decision == AskRelease(http=http, epoch=4, target=C)

    def test_no_standby_in_reach_blocks_and_names_them(self) -> None:
        decision = decide(view(lease=lease(alone_since=4)))
        assert isinstance(decision, Blocked)
        assert decision.missing == (B, C)

    def test_the_word_of_an_earlier_epoch_does_not_count(self) -> None:
        assert decide(view(answer(B), lease=lease(alone_since=3))) == Nothing()


class TestSuspectRecord:
    def test_an_absent_lease_is_given_a_moment(self) -> None:
        assert isinstance(decide(absent(*(answer(pod) for pod in PODS), absent_seconds=0.5)), Wait)

    @pytest.mark.parametrize(
        "sign",
        [
            {"suspect": True},
            {"epoch": 5, "promised": 5},
            {"set_version": 8},
            {"epoch": 5, "set_version": 1},
        ],
    )
    def test_signs_in_a_report(self, sign: dict[str, Any]) -> None:
        decision = suspect(decide(view(answer(B, **sign), **DEAD)))
        assert decision.missing == (A, C)

    def test_a_lower_report_is_no_sign(self) -> None:
        granted(decide(view(answer(B, epoch=3, set_version=90), **DEAD)))

    def test_a_record_below_what_was_seen_before_is_suspect(self) -> None:
        assert suspect(decide(view(answer(B), known_epoch=6, **DEAD))).missing == (A, C)

    def test_a_record_of_another_partition_of_that_name_is_left_alone(self) -> None:
        suspect(decide(view(*(answer(pod) for pod in PODS), lease=lease(partition_uid="older"), **DEAD)))

    def test_nothing_is_granted_until_every_replica_has_reported(self) -> None:
        """The two that answer may both have missed the last epochs."""
        decision = suspect(decide(absent(answer(A, number=2), answer(B), known_epoch=4)))
        assert decision.missing == (C,)
        assert "accept-loss=4" in decision.detail

    def test_the_proof_that_the_named_holder_is_over_is_no_short_cut(self) -> None:
        suspect(decide(view(answer(B, epoch=6, promised=6), answer(C), **DEAD)))

    def test_a_living_owner_of_the_highest_epoch_is_the_only_one(self) -> None:
        """It may acknowledge at this very moment."""
        owner = answer(A, role="owner", serving=True, last_seq=50)
        grant = granted(decide(absent(owner, answer(B, last_seq=100), answer(C))))
        assert (grant.session, grant.epoch, grant.reason) == (session(A), 5, Reason.RECORD_LOST)
        assert grant.in_sync == tuple(member(pod) for pod in PODS)

    def test_so_is_one_that_is_about_to_own(self) -> None:
        grant = granted(decide(absent(answer(A), answer(B, role="granted", epoch=5), answer(C))))
        assert (grant.session, grant.epoch) == (session(B), 6)

    def test_one_that_closed_its_epoch_owns_no_more(self) -> None:
        closed = answer(A, role="closed", closed_epoch=4, last_seq=99)
        assert granted(decide(absent(closed, answer(B), answer(C)))).session == session(B)

    def test_an_owner_of_an_older_epoch_must_first_step_down(self) -> None:
        owner = answer(A, role="owner", serving=True)
        suspect(decide(absent(owner, answer(B, epoch=6, promised=6), answer(C))))

    def test_two_owners_are_never_added_to(self) -> None:
        owners = [answer(A, role="owner", serving=True), answer(B, role="owner", serving=True)]
        suspect(decide(absent(*owners, answer(C))))

    def test_an_earlier_session_of_a_pod_must_be_over_first(self) -> None:
        """Its successor took the Lease, which proves no death: it may still trust its last renewal and serve."""
        answers = [answer(A, number=2), answer(B), answer(C)]
        decision = suspect(decide(absent(*answers, unsettled=frozenset({A}))))
        assert A in decision.detail
        assert granted(decide(absent(*answers))).reason is Reason.RECORD_LOST

    def test_the_holder_that_the_record_names_must_be_over(self) -> None:
        answers = [answer(A, number=2), answer(B, suspect=True), answer(C)]
        suspect(decide(view(*answers)))
        granted(decide(view(*answers, **DEAD)))

    def test_a_holder_that_may_still_take_the_record_up_is_waited_for(self) -> None:
        suspect(decide(view(answer(A), answer(B, suspect=True), answer(C))))

    def test_a_holder_that_knows_better_than_the_record_is_not(self) -> None:
        """etcd was put back to epoch 4; the truth was epoch 6, and its owner is gone."""
        known: dict[str, Any] = {"epoch": 6, "promised": 6, "last_epoch": 6, "set_version": 9}
        grant = granted(decide(view(answer(A, **known), answer(B, **known), answer(C, **known))))
        assert grant.epoch == 7

    def test_the_highest_set_counts_and_not_the_longest_replica(self) -> None:
        newer: dict[str, Any] = {
            "epoch": 6,
            "promised": 6,
            "last_epoch": 6,
            "set_version": 9,
            "members": (member(B),),
        }
        answers = [answer(A, number=2, last_seq=900), answer(B, last_seq=50, **newer), answer(C)]
        assert granted(decide(view(*answers, **DEAD))).session == session(B)

    def test_a_promise_without_an_entry_does_not_raise_an_old_set(self) -> None:
        """B promised epoch 6 but holds nothing of it: its set is older than C's, and B is not in C's."""
        early: dict[str, Any] = {"epoch": 6, "promised": 6, "set_version": 7, "last_seq": 900}
        later: dict[str, Any] = {"set_version": 8, "members": (member(A), member(C))}
        answers = [answer(A, number=2, **later), answer(B, **early), answer(C, last_seq=101, **later)]
        assert granted(decide(absent(*answers))).session == session(C)

    def test_the_record_counts_if_it_is_the_highest(self) -> None:
        seen = lease(in_sync=(member(A), member(B)), set_version=9)
        answers = [answer(A, number=2), answer(B, suspect=True), answer(C, last_seq=900)]
        grant = granted(decide(view(*answers, lease=seen, **DEAD)))
        assert (grant.session, grant.in_sync) == (session(A, 2), (member(A), member(B)))

    def test_the_members_known_are_all_kept_when_the_holder_is_not(self) -> None:
        grant = granted(decide(absent(answer(A, number=2), answer(B), answer(C))))
        assert grant.in_sync == tuple(member(pod) for pod in PODS)

    def test_no_member_of_the_highest_set_came_back(self) -> None:
        lost: dict[str, Any] = {"members": (member(A),), "set_version": 9}
        decision = decide(absent(answer(A, number=2, replica="r-new", **EMPTY), answer(B, **lost), answer(C)))
        assert isinstance(decision, Degraded)
        assert decision.missing == (A,)

    def test_a_partition_that_never_was_granted_is_granted_first(self) -> None:
        grant = granted(decide(absent(*(answer(pod, **EMPTY) for pod in PODS))))
        assert (grant.reason, grant.epoch) == (Reason.CREATED, 1)
        assert grant.in_sync == tuple(member(pod) for pod in PODS)

    def test_a_person_may_go_on_without_the_missing(self) -> None:
        seen = absent(
            answer(A, number=2, last_seq=80), answer(B), known_epoch=4, partition=partition(accepted_loss=4)
        )
        grant = granted(decide(seen))
        assert (grant.session, grant.in_sync) == (session(B), (member(B),))
        assert (grant.reason, grant.epoch) == (Reason.LOSS_ACCEPTED, 5)

    def test_but_not_while_a_session_that_does_not_report_may_own(self) -> None:
        seen = absent(
            answer(A, number=2),
            answer(B),
            known_epoch=4,
            partition=partition(accepted_loss=4),
            unsettled=frozenset({C}),
        )
        assert C in suspect(decide(seen)).detail

    def test_an_acceptance_of_an_earlier_epoch_is_spent(self) -> None:
        """The annotation of last year's loss, and etcd put back to that epoch: the replicas know of later ones."""
        seen = view(answer(A, number=2, epoch=9), answer(B), partition=partition(accepted_loss=4), **DEAD)
        assert suspect(decide(seen)).missing == (C,)

    def test_a_suspicion_that_was_answered_by_this_very_grant_is_no_sign(self) -> None:
        """Otherwise each look would raise the epoch until every replica had seen the one before."""
        seen = view(answer(A, role="owner"), answer(B, suspect=True), answer(C))
        assert isinstance(decide(seen), Grant)
        assert decide(replace(seen, cleared=frozenset({session(B)}))) == Nothing()


HELD = partition(held="looking at it", epoch=4)
HOLDS: list[tuple[str, View, type[object]]] = [
    ("a failover", view(answer(B), answer(C), partition=HELD, **DEAD), Held),
    ("no reason given", view(answer(B), answer(C), partition=partition(held="", epoch=4), **DEAD), Held),
    ("an owner that is to let go", view(answer(B), partition=HELD, lease=lease(alone_since=4)), Held),
    ("a record that was lost", absent(answer(B), answer(C), answer(A), partition=HELD, known_epoch=4), Held),
    (
        "the end of a move",
        view(answer(B), answer(C), partition=HELD, lease=lease(released="4.100", release_target=B)),
        Grant,
    ),
    (
        "a first grant",
        view(*(answer(pod, **EMPTY) for pod in PODS), partition=partition(held=""), lease=lease(**NEW)),
        Grant,
    ),
    ("a partition that is well", view(answer(A), answer(B), answer(C), partition=HELD), Nothing),
    ("one that nobody can take", view(partition=HELD, **DEAD), Degraded),
]


@pytest.mark.parametrize(("what", "seen", "kind"), HOLDS, ids=[each[0] for each in HOLDS])
def test_a_person_holds_a_failover_and_nothing_else(what: str, seen: View, kind: type[object]) -> None:
    decision = decide(seen)
    assert isinstance(decision, kind), (what, decision)
    if isinstance(decision, Held):
        assert "fencekv.io/hold-failover" in decision.detail, "what to do"
        free = replace(seen, partition=replace(seen.partition, held=None))
        assert isinstance(decide(free), Grant | AskRelease), "it is the hold that keeps it from going on"


def test_a_partition_that_is_being_deleted_is_left_alone() -> None:
    assert decide(view(answer(B), partition=partition(deleting=True), **DEAD)) == Nothing()
