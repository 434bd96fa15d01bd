"""Writes of Leases as data: the steps of the protocol's life, and the violations that the policies refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from policy_stage import (
    NOW,
    TOOL,
    Stage,
    grant,
    held,
    labelled,
    noted,
    renamed,
    renewed,
    taken_over,
)

from fencekv import leases
from fencekv.faults import FAULT
from fencekv.leases import LastWord, Session

Object = dict[str, Any]

Change = Callable[[Stage, Object], Object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`who` writes `change` of the Lease `start`; refused with `words`, or allowed where there are none."""

    id: str
    who: str
    start: str  # a method of Stage; empty: the Lease is not there, and `change` gives what is created
    change: Change
    words: str = ""


def case(id: str, who: str, start: str, change: Change, words: str = "") -> Case:
    return Case(id=id, who=who, start=start, change=change, words=words)


MEMBERS = '["tenant-0/aa"]'

# The life of sessions and partitions, each step by who takes it.
ALLOWED = [
    case("a session is taken first", "tenant-0", "", lambda s, _: s.session_lease()),
    case("a session is renewed", "tenant-0", "session_lease", lambda _, old: renewed(old)),
    case(
        "a session is released",
        "tenant-0",
        "session_lease",
        lambda s, old: leases.released_session(old, s.session()),
    ),
    case("a released one is followed", "tenant-0", "released", lambda s, old: taken_over(old, s.session("0002"))),
    case("a fenced one is followed", "tenant-0", "fenced", lambda s, old: taken_over(old, s.session("0002"))),
    case(
        "one that crashed is followed",
        "tenant-0",
        "session_lease",
        lambda s, old: taken_over(old, s.session("0002")),
    ),
    case(
        "one whose Lease is behind is followed without a word of it",
        "tenant-0",
        "session_lease",
        lambda s, old: noted(taken_over(old, s.session("0002")), {leases.TAKEN_FROM: None}),
    ),
    case("a shard under orders renews", "tenant-0", "ordered", lambda _, old: renewed(old)),
    case(
        "the operator fences", "operator", "session_lease", lambda s, old: leases.fenced_session(old, s.session())
    ),
    case(
        "the operator makes a fenced Lease", "operator", "", lambda s, _: noted(s.fenced(), {leases.RENEWAL: "0"})
    ),
    case("the operator orders a fault", "operator", "session_lease", lambda _, old: noted(old, {FAULT: "{}"})),
    case("the operator takes a fault back", "operator", "ordered", lambda _, old: noted(old, {FAULT: None})),
    case("a partition's Lease is made", "operator", "", lambda s, _: s.never_granted()),
    case("a lost one is made granted", "operator", "", lambda s, _: grant(s, s.never_granted(), epoch=6)),
    case("the first grant", "operator", "never_granted", lambda s, old: grant(s, old, epoch=1, version=1)),
    case("failover", "operator", "partition", lambda s, old: grant(s, old, epoch=6, pod="tenant-1", version=12)),
    case("the same owner again", "operator", "closed", lambda s, old: grant(s, old, epoch=6, version=12)),
    case(
        "a planned move ends",
        "operator",
        "closed",
        lambda s, old: grant(s, old, epoch=6, pod="tenant-1", version=12),
    ),
    case(
        "the set changes",
        "tenant-0",
        "partition",
        lambda _, old: leases.with_in_sync(old, in_sync=("tenant-0/aa",), set_version=12),
    ),
    case("an owner is alone", "tenant-0", "partition", lambda _, old: leases.with_alone_since(old, 5)),
    case(
        "a planned move begins",
        "tenant-0",
        "partition",
        lambda _, old: leases.released_partition(old, epoch=5, seq=9, target="tenant-1"),
    ),
    case(
        "the operator asks an owner to let go",
        "operator",
        "partition",
        lambda _, old: noted(old, {leases.RELEASE_ASKED: "5/tenant-1"}),
    ),
    case(
        "an owner that was asked lets go",
        "tenant-0",
        "asked",
        lambda _, old: leases.released_partition(old, epoch=5, seq=9, target="tenant-1"),
    ),
    case("a person makes a Lease again", "admin", "", lambda s, _: s.partition()),
]

# What a shard's account may not do.
SHARDS = [
    case(
        "another pod's renewal", "tenant-1", "session_lease", lambda _, old: renewed(old), "Lease session-tenant-1"
    ),
    case(
        "another pod's release",
        "tenant-1",
        "session_lease",
        lambda s, old: leases.released_session(old, s.session()),
        "Lease session-tenant-1",
    ),
    case("another pod's Lease is made", "tenant-1", "", lambda s, _: s.session_lease(), "Lease session-tenant-1"),
    case(
        "a Lease of any name is made",
        "tenant-0",
        "",
        lambda s, _: renamed(s.session_lease(), "leader"),
        "Lease session-tenant-0",
    ),
    case("a partition's Lease is made", "tenant-0", "", lambda s, _: s.partition(), "Lease session-tenant-0"),
    case(
        "a session of another pod in one's own Lease",
        "tenant-0",
        "session_lease",
        lambda s, old: taken_over(old, s.session("0002", pod="tenant-1")),
        "spec.holderIdentity",
    ),
    case(
        "a session of an earlier pod of that name",
        "tenant-0",
        "session_lease",
        lambda _, old: taken_over(old, Session("tenant-0", "an-earlier-uid", "0002")),
        "spec.holderIdentity",
    ),
    case(
        "what is no session",
        "tenant-0",
        "session_lease",
        lambda s, old: held(old, holderIdentity=f"{s.session()}/more"),
        "spec.holderIdentity",
    ),
    case(
        "a shard takes its fence off",
        "tenant-0",
        "fenced",
        lambda _, old: noted(old, {leases.FENCED: None}),
        "fenced",
    ),
    case(
        "a shard fences",
        "tenant-0",
        "session_lease",
        lambda s, old: leases.fenced_session(old, s.session()),
        "fenced",
    ),
    case("a shard orders a fault", "tenant-0", "session_lease", lambda _, old: noted(old, {FAULT: "{}"}), FAULT),
    case("a shard takes a fault back", "tenant-0", "ordered", lambda _, old: noted(old, {FAULT: None}), FAULT),
    case(
        "another namespace's label",
        "tenant-0",
        "session_lease",
        lambda _, old: labelled(old, {leases.LABEL_NAMESPACE: "other"}),
        leases.LABEL_NAMESPACE,
    ),
    case(
        "a standby changes the set",
        "tenant-1",
        "partition",
        lambda _, old: leases.with_in_sync(old, in_sync=("tenant-1/bb",), set_version=12),
        "does not hold",
    ),
    case(
        "a standby releases",
        "tenant-1",
        "partition",
        lambda _, old: leases.released_partition(old, epoch=5, seq=9, target="tenant-1"),
        "does not hold",
    ),
    case(
        "a standby grants itself",
        "tenant-1",
        "partition",
        lambda s, old: grant(s, old, epoch=6, pod="tenant-1", version=12),
        "does not hold",
    ),
    case(
        "an owner raises its epoch", "tenant-0", "partition", lambda _, old: held(old, leaseTransitions=6), "spec:"
    ),
    case(
        "an owner hands over by itself",
        "tenant-0",
        "partition",
        lambda s, old: held(old, leaseTransitions=6, holderIdentity=str(s.session(pod="tenant-1"))),
        "spec:",
    ),
    case(
        "an owner dates its grant anew",
        "tenant-0",
        "partition",
        lambda _, old: held(old, acquireTime=leases.micro_time(NOW + 9)),
        "spec:",
    ),
    case(
        "an owner changes its address",
        "tenant-0",
        "partition",
        lambda _, old: noted(old, {leases.OWNER_HTTP: "10.9.9.9:7070"}),
        leases.OWNER_HTTP,
    ),
    case(
        "an owner takes the operator's question away",
        "tenant-0",
        "asked",
        lambda _, old: noted(old, {leases.RELEASE_ASKED: None}),
        leases.RELEASE_ASKED,
    ),
    case(
        "an owner accepts a loss",
        "tenant-0",
        "partition",
        lambda _, old: noted(old, {leases.ACCEPTED_LOSS: "5"}),
        leases.ACCEPTED_LOSS,
    ),
    case(
        "an owner takes the labels off",
        "tenant-0",
        "partition",
        lambda _, old: labelled(old, {leases.LABEL_TABLE: "other"}),
        "labels",
    ),
    case(
        "nobody's partition is taken",
        "tenant-0",
        "never_granted",
        lambda s, old: grant(s, old, epoch=1, version=1),
        "does not hold",
    ),
]

# What nobody may do: tried by the operator, and by a person with every right.
EVERYBODY = [
    case("an epoch falls", "operator", "partition", lambda _, old: held(old, leaseTransitions=4), "never falls"),
    case(
        "an epoch falls, to another holder",
        "admin",
        "partition",
        lambda s, old: held(old, leaseTransitions=4, holderIdentity=str(s.session(pod="tenant-1"))),
        "never falls",
    ),
    case(
        "an epoch is taken away",
        "operator",
        "partition",
        lambda _, old: held(old, leaseTransitions=None),
        "never falls",
    ),
    case(
        "one epoch, another pod",
        "operator",
        "partition",
        lambda s, old: held(old, holderIdentity=str(s.session(pod="tenant-1"))),
        "never changes its holder",
    ),
    case(
        "one epoch, another session",
        "operator",
        "partition",
        lambda s, old: held(old, holderIdentity=str(s.session("0002"))),
        "never changes its holder",
    ),
    case(
        "one epoch, nobody",
        "admin",
        "partition",
        lambda _, old: held(old, holderIdentity=None),
        "never changes its holder",
    ),
    case(
        "a new epoch for nobody",
        "operator",
        "closed",
        lambda _, old: held(old, leaseTransitions=6, holderIdentity=None),
        "needs a holder",
    ),
    case(
        "an epoch of nobody is made",
        "operator",
        "",
        lambda s, _: held(s.never_granted(), leaseTransitions=3),
        "has a holder",
    ),
    case(
        "a holder without an epoch is made",
        "operator",
        "",
        lambda s, _: held(s.never_granted(), holderIdentity=str(s.session())),
        "has epoch 0",
    ),
    case(
        "the set's version falls",
        "operator",
        "partition",
        lambda _, old: noted(old, {leases.SET_VERSION: "10"}),
        leases.SET_VERSION,
    ),
    case(
        "the set's version falls with a grant",
        "operator",
        "partition",
        lambda s, old: grant(s, old, epoch=6, version=3),
        leases.SET_VERSION,
    ),
    case(
        "the set's version is no number",
        "operator",
        "partition",
        lambda _, old: noted(old, {leases.SET_VERSION: "many"}),
        leases.SET_VERSION,
    ),
    case(
        "the set's version is taken away",
        "operator",
        "partition",
        lambda _, old: noted(old, {leases.SET_VERSION: None}),
        leases.SET_VERSION,
    ),
    case(
        "the set changes under its version",
        "tenant-0",
        "partition",
        lambda _, old: noted(old, {leases.IN_SYNC: MEMBERS}),
        leases.IN_SYNC,
    ),
    case(
        "a released epoch is taken back",
        "tenant-0",
        "closed",
        lambda _, old: noted(old, {leases.RELEASED: None, leases.RELEASE_TARGET: None}),
        "stays released",
    ),
    case(
        "another partition's record",
        "operator",
        "partition",
        lambda _, old: noted(old, {leases.PARTITION_UID: "uid-4"}),
        leases.PARTITION_UID,
    ),
    case(
        "a partition becomes a session",
        "operator",
        "partition",
        lambda _, old: labelled(old, {leases.LABEL_KIND: "session"}),
        "never changes",
    ),
    case(
        "a fence is taken off",
        "operator",
        "fenced",
        lambda _, old: noted(old, {leases.FENCED: None}),
        "stays fenced",
    ),
    case(
        "a fence is taken off by a person",
        "admin",
        "fenced",
        lambda _, old: noted(old, {leases.FENCED: None}),
        "stays fenced",
    ),
    case(
        "a fence is put on another",
        "operator",
        "fenced",
        lambda s, old: leases.fenced_session(old, s.session("0002")),
        "stays fenced",
    ),
    case(
        "a session that does not hold is fenced",
        "operator",
        "session_lease",
        lambda s, old: leases.fenced_session(old, s.session("0002")),
        "it is the holder",
    ),
    case(
        "a fenced session comes back",
        "tenant-0",
        "followed",
        lambda s, old: taken_over(old, s.session(), 9),
        "never holds its Lease again",
    ),
    case(
        "a released session comes back",
        "operator",
        "followed_released",
        lambda s, old: taken_over(old, s.session(), 9),
        "never holds its Lease again",
    ),
    case(
        "a session Lease is given to nobody",
        "operator",
        "fenced",
        lambda _, old: held(old, holderIdentity=None),
        "never holds its Lease again",
    ),
    case(
        "a fence goes with a takeover",
        "operator",
        "fenced",
        lambda s, old: noted(taken_over(old, s.session("0002")), {leases.FENCED: None}),
        "stays fenced",
    ),
    case("a fenced session renews", "tenant-0", "fenced", lambda _, old: renewed(old), "renews no more"),
    case("a released session renews", "tenant-0", "released", lambda _, old: renewed(old), "renews no more"),
    case(
        "a release is taken back",
        "operator",
        "released",
        lambda _, old: noted(old, {leases.RELEASED: None}),
        "stays released",
    ),
    case(
        "a session that does not hold is released",
        "tenant-0",
        "session_lease",
        lambda s, old: leases.released_session(old, s.session("0002")),
        "it is the holder",
    ),
    case("a renewal's number falls", "tenant-0", "session_lease", lambda _, old: renewed(old, 6), leases.RENEWAL),
    case(
        "a renewal's number falls with a takeover",
        "tenant-0",
        "session_lease",
        lambda s, old: taken_over(old, s.session("0002"), 1),
        leases.RENEWAL,
    ),
    case(
        "a takeover names another version than it replaces",
        "tenant-0",
        "session_lease",
        lambda s, old: noted(
            taken_over(old, s.session("0002")), {leases.TAKEN_FROM: str(LastWord(s.session(), 7, "1"))}
        ),
        leases.TAKEN_FROM,
    ),
    case(
        "a takeover names another renewal than it replaces",
        "tenant-0",
        "session_lease",
        lambda s, old: noted(
            taken_over(old, s.session("0002")),
            {leases.TAKEN_FROM: str(LastWord(s.session(), 6, old["metadata"]["resourceVersion"]))},
        ),
        leases.TAKEN_FROM,
    ),
    case(
        "a renewal names what it replaces",
        "tenant-0",
        "session_lease",
        lambda s, old: noted(
            renewed(old),
            {leases.TAKEN_FROM: str(LastWord(s.session(), 7, old["metadata"]["resourceVersion"]))},
        ),
        leases.TAKEN_FROM,
    ),
    case(
        "a renewal has no number",
        "tenant-0",
        "session_lease",
        lambda _, old: noted(old, {leases.RENEWAL: None}),
        leases.RENEWAL,
    ),
    case("a person orders a fault", "admin", "session_lease", lambda _, old: noted(old, {FAULT: "{}"}), FAULT),
    case("a person makes a Lease with an order", "admin", "", lambda s, _: s.ordered(), FAULT),
    case("a tool makes a Lease", TOOL, "", lambda s, _: s.partition(), "made and deleted by its operator"),
    case("a tool makes a session", TOOL, "", lambda s, _: s.session_lease(), "made and deleted by its operator"),
]
