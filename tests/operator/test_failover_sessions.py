"""What is known of sessions from quorum reads and pods: live, gone, silent, settled, over."""

from __future__ import annotations

from typing import Any

import pytest

from fencekv import leases
from fencekv.leases import Session
from fencekv_operator.facts import Reason
from fencekv_operator.sessions import Sessions, proves_death
from fencekv_operator.silence import Reading

D = 6.0
S0, S1, S2 = (Session("s-0", f"u{index}", nonce * 16) for index, nonce in enumerate("abc"))


def lease(session: Session, *, renewal: int = 1, valid_seconds: int = 4, **notes: str) -> dict[str, Any]:
    body = leases.new_session_lease(
        session=session,
        kvns="s",
        namespace="default",
        valid_seconds=valid_seconds,
        renewal=renewal,
        http="h:1",
        peer="h:2",
        unix_seconds=0,
    )
    body["metadata"]["annotations"] |= {f"fencekv.io/{key}": value for key, value in notes.items()}
    body["metadata"] |= {"uid": "l", "resourceVersion": f"{session.nonce}{renewal}"}
    return body


def taken_over(old: dict[str, Any], session: Session, *, renewal: int, **more: Any) -> dict[str, Any]:
    """The Lease as a successor took it over from `old`."""
    body = leases.taken_over(
        old, session=session, renewal=renewal, valid_seconds=4, http="h:1", peer="h:2", unix_seconds=0, **more
    )
    body["metadata"]["resourceVersion"] = f"{session.nonce}{renewal}"
    return body


def renewed(old: dict[str, Any], renewal: int) -> dict[str, Any]:
    """The Lease with one more renewal of its holder."""
    body = leases.renewed(old, renewal=renewal, valid_seconds=4, unix_seconds=0)
    body["metadata"]["resourceVersion"] += f".{renewal}"
    return body


class Reader:
    """Reads once a second, without delay."""

    def __init__(self) -> None:
        self.book, self.now = Sessions(), 100.0

    def read(self, *items: dict[str, Any], times: int = 1, named: tuple[Session, ...] = (S0,)) -> None:
        for _ in range(times):
            self.now += 1
            self.book.observe(items, Reading(sent=self.now, answered=self.now), dict.fromkeys(named, "s"))
            self.book.watch_pods(["s-0"], Reading(sent=self.now, answered=self.now))


def test_a_session_that_holds_its_lease_is_live() -> None:
    reader = Reader()
    reader.read(lease(S0))
    seen = reader.book.live("s-0")
    assert seen is not None
    assert seen.lease.session == S0
    assert reader.book.live("s-1") is None


@pytest.mark.parametrize(("word", "reason"), [("released", Reason.SESSION_RELEASED), ("fenced", Reason.SILENT)])
def test_the_lease_says_that_it_is_over(word: str, reason: Reason) -> None:
    reader = Reader()
    notes: dict[str, Any] = {word: str(S0)}
    reader.read(lease(S0, **notes))
    assert reader.book.over == {S0: reason}
    assert reader.book.live("s-0") is None


def test_what_is_said_of_an_earlier_session_says_nothing_of_this_one() -> None:
    reader = Reader()
    reader.read(lease(S1, released=str(S0)))
    assert S1 not in reader.book.over
    assert S0 in reader.book.over


def test_a_successor_may_renew_as_it_likes_while_its_predecessors_silence_is_heard() -> None:
    reader = Reader()
    reader.read(lease(S0))
    for renewal in range(7):
        reader.read(lease(S1, renewal=renewal))
        assert reader.book.is_due(S0, D) == (renewal == 6)
    assert reader.book.tracks[S1].heard.seconds == 0


def test_absence_and_then_a_takeover_is_one_silence() -> None:
    reader = Reader()
    reader.read(lease(S0))
    reader.read(times=4)
    reader.read(lease(S1), times=3)
    assert reader.book.tracks[S0].heard.seconds == 6


LAST = lease(S0, renewal=5)  # the last that S0 was heard to write


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        pytest.param(taken_over(LAST, S1, renewal=6), 4, id="that very renewal was replaced"),
        pytest.param(taken_over(renewed(LAST, 6), S1, renewal=7), 1, id="another renewal was replaced"),
        pytest.param(taken_over(lease(S0, renewal=4), S1, renewal=6), 1, id="an earlier renewal was replaced"),
        pytest.param(
            taken_over({**LAST, "metadata": {**LAST["metadata"], "resourceVersion": "7"}}, S1, renewal=6),
            1,
            id="the same renewal, and something else was written since",
        ),
        pytest.param(taken_over(lease(S2, renewal=5), S1, renewal=6), 1, id="another session was replaced"),
        pytest.param(
            taken_over(LAST, S1, renewal=6, is_last_word=False),
            1,
            id="the successor does not say",
        ),
        pytest.param(lease(S1, renewal=6, **{"taken-from": f"{S0} 5"}), 1, id="nobody can read what it says"),
        pytest.param(
            lease(S1, renewal=6, **{"taken-from": f"{S0} five {LAST['metadata']['resourceVersion']}"}),
            1,
            id="it says no number",
        ),
    ],
)
def test_silence_before_a_takeover_counts_if_the_successor_replaced_what_was_heard(
    after: dict[str, Any], seconds: float
) -> None:
    reader = Reader()
    reader.read(LAST, times=3)
    reader.read(after)
    reader.read(renewed(after, 8))
    assert reader.book.tracks[S0].heard.seconds == seconds


def test_a_lease_that_was_made_anew_says_nothing_of_what_was_heard_before() -> None:
    reader = Reader()
    reader.read(LAST, times=3)
    again = taken_over(LAST, S1, renewal=6)
    again["metadata"]["uid"] = "another"
    reader.read(again, times=2)
    assert reader.book.tracks[S0].heard.seconds == 1


def test_who_begins_to_look_after_the_takeover_has_heard_nothing() -> None:
    reader = Reader()
    reader.read(taken_over(LAST, S1, renewal=6))
    assert reader.book.tracks[S0].heard.seconds == 0
    reader.read(taken_over(LAST, S1, renewal=6), times=5)
    assert not reader.book.is_due(S0, D)


def test_a_second_takeover_takes_nothing_from_the_first_silence_and_gives_nothing_to_the_second() -> None:
    reader = Reader()
    named = (S0, S1)
    reader.read(LAST, times=3, named=named)  # S0: 2 s
    first = taken_over(LAST, S1, renewal=6)
    reader.read(first, named=named)
    unheard = renewed(first, 7)
    reader.read(taken_over(unheard, S2, renewal=8), times=2, named=named)
    assert reader.book.tracks[S0].heard.seconds == 5
    assert reader.book.tracks[S1].heard.seconds == 1
    # One that is not read at all: of whom it replaced nothing is known, so the wait begins.
    reader = Reader()
    reader.read(LAST, times=3)
    reader.read(taken_over(first, S2, renewal=8), times=2)
    assert reader.book.tracks[S0].heard.seconds == 1


def test_a_successor_of_an_earlier_version_leaves_the_word_of_another_takeover_there() -> None:
    reader = Reader()
    first = taken_over(LAST, S1, renewal=6)
    silent = taken_over(first, S2, renewal=7, is_last_word=False)
    silent["metadata"]["annotations"][leases.TAKEN_FROM] = first["metadata"]["annotations"][leases.TAKEN_FROM]
    reader.read(first, times=3, named=(S0, S1))
    reader.read(silent, times=2, named=(S0, S1))
    assert reader.book.tracks[S0].heard.seconds == 4
    assert reader.book.tracks[S1].heard.seconds == 1


def test_seconds_without_an_answer_before_a_takeover_count_as_one_slice() -> None:
    reader = Reader()
    reader.read(LAST)
    reader.now += 20
    reader.read(taken_over(LAST, S1, renewal=6))
    assert reader.book.tracks[S0].heard.seconds == 1


@pytest.mark.parametrize("after", [lease(S1), taken_over(lease(S0), S1, renewal=2)], ids=["unsaid", "said"])
def test_a_lease_that_shows_the_session_again_starts_the_count_again(after: dict[str, Any]) -> None:
    """etcd was put back."""
    reader = Reader()
    reader.read(lease(S0))
    reader.read(after, times=5)
    reader.read(lease(S0), times=3)
    assert reader.book.tracks[S0].heard.seconds == 2


def test_a_lease_that_cannot_be_read_is_absent_and_its_session_only_silent() -> None:
    reader = Reader()
    reader.read(lease(S0))
    broken = lease(S0)
    del broken["spec"]["holderIdentity"]
    reader.read(broken, times=3)
    assert reader.book.tracks[S0].absent
    assert not reader.book.over


def test_a_session_under_another_pods_name_is_not_believed() -> None:
    reader = Reader()
    stolen = lease(Session("s-1", "u", "c" * 16))
    stolen["metadata"]["name"] = "session-s-0"
    reader.read(stolen)
    assert reader.book.live("s-0") is None
    assert reader.book.live("s-1") is None


def test_a_session_that_was_gone_before_we_looked_may_have_trusted_the_largest_v_seen() -> None:
    reader = Reader()
    reader.read(lease(S1, valid_seconds=10))
    assert reader.book.wait_seconds(S0, D) == 15


def test_a_pod_is_settled_once_nobody_but_its_session_can_live() -> None:
    reader = Reader()
    reader.read(lease(S0), times=3)
    reader.read(lease(S1), times=6)
    assert not reader.book.settled("s-0", D, answered=S1)
    reader.read(lease(S1))
    assert reader.book.settled("s-0", D, answered=S1)
    assert not reader.book.settled("s-0", D, answered=None)  # S1 itself lives and was not heard of.
    reader.book.mark_over(S1, Reason.TERMINATED, sign=0)
    assert reader.book.settled("s-0", D, answered=None)


def test_a_pod_without_a_lease_is_settled_when_its_absence_was_heard() -> None:
    reader = Reader()
    reader.read(times=6)
    assert not reader.book.settled("s-0", D, answered=None)
    reader.read()
    assert reader.book.settled("s-0", D, answered=None)
    assert not reader.book.settled("s-9", D, answered=None)  # Never looked for.


def test_what_nobody_names_any_more_is_forgotten() -> None:
    reader = Reader()
    reader.read(lease(S1, released=str(S0)))
    assert S0 in reader.book.over
    reader.read(lease(S1), named=())
    assert set(reader.book.tracks) == {S1}
    assert S0 not in reader.book.over


def pod(uid: str, policy: str | None = "File", **states: Any) -> dict[str, Any]:
    container = {"name": "shard", **({"terminationMessagePolicy": policy} if policy else {})}
    status = {"name": "shard", **states}
    return {
        "metadata": {"uid": uid},
        "spec": {"containers": [container]},
        "status": {"containerStatuses": [status]},
    }


def ended(message: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": 137, "message": message}}


@pytest.mark.parametrize(
    ("seen", "is_dead"),
    [
        (pod("u0", state=ended(str(S0))), True),
        (pod("u0", lastState=ended(f"{S0}\n")), True),
        (pod("u0", None, state=ended(str(S0))), True),  # File is the default.
        (pod("u0", "FallbackToLogsOnError", state=ended(str(S0))), False),
        (pod("u1", state=ended(str(S0))), False),
        (pod("u0", state=ended(str(S0) + " and more")), False),
        (pod("u0", state=ended(str(S1))), False),
        (pod("u0", state={"running": {}}), False),
        (pod("u0", state=ended("")), False),
        ({"metadata": {"uid": "u0"}}, False),
    ],
)
def test_proof_of_death(seen: dict[str, Any], is_dead: bool) -> None:
    assert proves_death(seen, S0) is is_dead


def test_a_fence_that_a_restored_store_undid_is_noticed() -> None:
    reader = Reader()
    reader.read(lease(S0))
    reader.read(lease(S0, fenced=str(S0)))
    assert reader.book.undone == []
    reader.read(lease(S0, renewal=2))
    assert reader.book.undone == [S0]
    assert reader.book.live("s-0") is None, "over is over"
    reader.read(lease(S1, fenced=str(S0)))
    assert reader.book.undone == []
