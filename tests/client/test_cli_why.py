"""What `kubectl fencekv why` says of each state of the protocol, and of each thing that a replica needs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fencekv import leases
from fencekv.cli.observed import Observed, State
from fencekv.cli.why import explain, is_blocked

Object = dict[str, Any]
PODS = ("s-0", "s-1", "s-2")
SINCE = "2026-01-02T03:04:05Z"


def owner(pod: str = "s-0") -> leases.Session:
    return leases.Session(pod, f"uid-{pod}", "nonce")


def conditions(**reasons: tuple[bool, str, str]) -> Object:
    return {
        "conditions": [
            {
                "type": kind,
                "status": str(status),
                "reason": reason,
                "message": message,
                "lastTransitionTime": SINCE,
            }
            for kind, (status, reason, message) in reasons.items()
        ]
    }


def session_lease(pod: str) -> Object:
    lease = leases.new_session_lease(
        session=owner(pod), kvns="s", namespace="default", valid_seconds=4, renewal=9, http=f"{pod}:7070",
        peer="", unix_seconds=0.0,
    )  # fmt: skip
    lease["metadata"] |= {"uid": pod, "resourceVersion": "1"}
    return lease


def record(pods: tuple[str, ...] = PODS, **notes: str) -> Object:
    lease = leases.new_partition_lease(
        partition="orders-0", partition_uid="u-p", table="orders", kvns="s", namespace="default"
    )
    lease["metadata"] |= {"uid": "u-l", "resourceVersion": "1"}
    lease = leases.granted(
        lease, session=owner(), epoch=4, in_sync=tuple(f"{pod}/r" for pod in pods), set_version=3, http="h",
        peer="p", unix_seconds=0.0,
    )  # fmt: skip
    lease["metadata"]["annotations"].update(notes)
    return lease


def report(pod: str, **replica: Any) -> Object:
    told = {"uid": "u-p", "role": "standby", "lastSeq": 100, "promised": 4, "epoch": 4}
    if pod == "s-0":
        told |= {"role": "owner", "serving": True}
    return {"session": str(owner(pod)), "pod": pod, "replicas": [{**told, **replica}]}


def pod(name: str, **status: Any) -> Object:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": SINCE}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"nodeName": "worker"},
        "status": {"phase": "Running", "conditions": [ready], **status},
    }


def healthy() -> Observed:
    """Served by s-0 with both standbys in sync, looked at twice, everybody renewing."""
    names = frozenset({leases.session_lease_name(name) for name in PODS} | {"fencekv-operator"})
    status = conditions(Ready=(True, "Serving", "s-0 serves it"), Degraded=(False, "InSync", ""))
    return Observed(
        partition={
            "metadata": {"name": "orders-0", "uid": "u-p", "annotations": {}},
            "spec": {
                "namespace": "s", "table": "orders", "replicas": list(PODS), "durability": "replicated",
                "minInSync": 1,
            },
            "status": {"epoch": 4, "phase": "Ready", **status},
        },
        table={"metadata": {"name": "orders"}, "spec": {}, "status": conditions(Ready=(True, "AllReady", ""))},
        namespace={"metadata": {"name": "s"}, "spec": {}, "status": conditions(Ready=(True, "AllReady", ""))},
        record=record(),
        sessions={name: session_lease(name) for name in PODS},
        renewed=names,
        looked_seconds=2.5,
        pods={name: pod(name) for name in PODS},
        operator={"metadata": {"name": "fencekv-operator"}, "spec": {"holderIdentity": "op-0"}},
        reports={name: report(name) for name in PODS},
    )  # fmt: skip


Change = Callable[[Observed], Observed]


def with_status(**reasons: tuple[bool, str, str]) -> Change:
    def change(seen: Observed) -> Observed:
        partition = copy.deepcopy(dict(seen.partition))
        partition["status"].update(conditions(**reasons))
        return replace(seen, partition=partition)

    return change


def annotated(name: str, value: str) -> Change:
    def change(seen: Observed) -> Observed:
        partition = copy.deepcopy(dict(seen.partition))
        partition["metadata"]["annotations"][name] = value
        return replace(seen, partition=partition)

    return change


def with_spec(**spec: Any) -> Change:
    def change(seen: Observed) -> Observed:
        partition = copy.deepcopy(dict(seen.partition))
        partition["spec"].update(spec)
        return replace(seen, partition=partition)

    return change


def with_record(lease: Object | None) -> Change:
    return lambda seen: replace(seen, record=lease)


def silent(*pods: str) -> Change:
    names = {leases.session_lease_name(name) for name in pods}
    return lambda seen: replace(seen, renewed=seen.renewed - names)


def session(name: str, change: Callable[[Object], Object | None]) -> Change:
    def apply(seen: Observed) -> Observed:
        sessions = dict(seen.sessions)
        changed = change(copy.deepcopy(dict(sessions.pop(name))))
        return replace(seen, sessions=sessions if changed is None else {**sessions, name: changed})

    return apply


def around(**items: Any) -> Change:
    return lambda seen: replace(seen, **items)


def chain(*changes: Change) -> Change:
    def apply(seen: Observed) -> Observed:
        for change in changes:
            seen = change(seen)
        return seen

    return apply


def malformed() -> Object:
    lease = record()
    lease["metadata"]["annotations"][leases.IN_SYNC] = "nonsense"
    return lease


def never_granted() -> Object:
    lease = leases.new_partition_lease(
        partition="orders-0", partition_uid="u-p", table="orders", kvns="s", namespace="default"
    )
    lease["metadata"] |= {"uid": "u-l", "resourceVersion": "1"}
    return lease


def deleting(seen: Observed) -> Observed:
    metadata = {**seen.partition["metadata"], "deletionTimestamp": SINCE}
    return replace(seen, partition={**seen.partition, "metadata": metadata})


def fresh(seen: Observed) -> Observed:
    status = {"epoch": 0, **conditions(Ready=(False, "NotGranted", ""))}
    return replace(seen, partition={**seen.partition, "status": status})


NOT_READY = {"Ready": (False, "Waiting", "s-0 has not been heard for 3 s")}
STARTING = with_status(Ready=(False, "OwnerStarting", "s-0 does not serve epoch 4 yet"))
SUSPECT = "the ownership record was lost or fell back; waiting for the reports of s-2; to accept the loss annotate"
EARLIER = "the ownership record was lost or fell back; an earlier session of s-1 may not be over yet"
NO_CANDIDATE = "no in-sync replica is reachable (missing: s-0, s-1); to accept the loss annotate"
ASKED = "the owner cannot reach its standbys, but s-1 can be reached; it was asked to let go"
HELD = (
    "its failover to s-1 is held (storage moves); remove the annotation fencekv.io/hold-failover to let it go on"
)

STATES: list[tuple[State, Change, bool, str]] = [
    # the first cause, what differs from health, whether it blocks, words of its text or of what to do
    (State.SERVING, chain(), False, "s-0 serves it with epoch 4"),
    (State.DELETING, deleting, True, "being deleted"),
    (State.NOT_GRANTED, chain(fresh, with_record(None)), True, "never granted"),
    (
        State.NOT_GRANTED,
        chain(fresh, with_record(never_granted()), session("s-2", lambda _: None), around(reports={})),
        True,
        "not there yet: s-2",
    ),
    (State.RECORD_GONE, with_record(None), True, "epoch 4 is the last that is known"),
    (State.RECORD_MALFORMED, with_record(malformed()), True, "not one of ours"),
    (State.OTHER_PARTITION, with_record(record(**{leases.PARTITION_UID: "u-other"})), True, "earlier partition"),
    (State.RECORD_SUSPECT, with_status(RecordSuspect=(True, "RecordLost", SUSPECT)), True, "--accept-loss EPOCH"),
    (State.EARLIER_SESSION, with_status(RecordSuspect=(True, "RecordLost", EARLIER)), True, "heard for D"),
    (
        State.MOVING,
        with_record(record(**{leases.RELEASED: "4.99", leases.RELEASE_TARGET: "s-1"})),
        True,
        "gave it away to s-1",
    ),
    (State.OWNER_OVER, session("s-0", lambda lease: leases.released_session(lease, owner())), True, "(released)"),
    (State.OWNER_OVER, session("s-0", lambda lease: leases.fenced_session(lease, owner())), True, "(fenced)"),
    (State.OWNER_REPLACED, session("s-0", lambda _: None), True, "is gone or cannot be read"),
    (
        State.OWNER_REPLACED,
        session("s-0", lambda lease: {**lease, "spec": {**lease["spec"], "holderIdentity": "s-0/uid-s-0/next"}}),
        True,
        "a new session of s-0 has begun",
    ),
    (State.OWNER_SILENT, chain(silent("s-0"), with_status(**NOT_READY)), True, "has not been heard for 3 s"),
    (State.FELL_TOGETHER, silent("s-0", "s-2"), True, "2 of 3 sessions"),
    (State.NO_CANDIDATE, with_status(Degraded=(True, "NoCandidate", NO_CANDIDATE)), True, "nothing is lost then"),
    (
        State.HELD,
        chain(annotated(leases.HOLD_FAILOVER, "storage moves"), with_status(Blocked=(True, "Held", HELD))),
        True,
        f"{leases.HOLD_FAILOVER}-",
    ),
    (State.OWNER_ALONE, with_record(record(**{leases.ALONE_SINCE: "4"})), True, "look at the network"),
    (
        State.ASKED_TO_RELEASE,
        chain(
            with_record(record(**{leases.ALONE_SINCE: "4"})), with_status(Blocked=(True, "TooFewStandbys", ASKED))
        ),
        True,
        "which the operator can",
    ),
    (
        State.OWNER_STARTING,
        chain(STARTING, around(reports={"s-0": report("s-0", role="granted", serving=False)})),
        True,
        "serves once all its journal is committed",
    ),
    (State.OWNER_STARTING, chain(STARTING, around(reports={})), True, "granted epoch 4"),
    (
        State.TOO_FEW_STANDBYS,
        chain(with_record(record(("s-0",))), with_status(Ready=(False, "TooFewStandbys", ""))),
        True,
        "0 standbys are in sync, 1 are needed",
    ),
    (
        State.OTHER,
        with_status(Ready=(False, "NewerThanThisTool", "words of the operator")),
        True,
        "NewerThanThisTool: words of the operator",
    ),
    (
        State.DISK_RESERVE,
        around(reports={"s-0": {**report("s-0"), "diskFreeBytes": 1 << 20, "diskReserveBytes": 64 << 20}}),
        True,
        "1 MiB left",
    ),
    (State.BASE_DAMAGED, around(reports={"s-0": report("s-0", base="damaged")}), True, "may be wrong"),
    (
        State.BASE_DIFFERS,
        around(reports={"s-0": report("s-0"), "s-1": report("s-1", base="differs")}),
        True,
        "promote orders-0 --to s-1",
    ),
]


@pytest.mark.parametrize(("state", "change", "blocks", "words"), STATES, ids=lambda each: str(each)[:24])
def test_the_first_cause_of_each_state(state: State, change: Change, blocks: bool, words: str) -> None:
    causes = explain(change(healthy()))
    first = causes[0]
    assert first.state is state
    assert first.blocks is is_blocked(causes) is blocks
    assert words in f"{first.what} {first.do}"
    assert first.do or state in {State.SERVING, State.DELETING}


NOTES: list[tuple[State, Change, str]] = [
    # worth knowing while it is served
    (
        State.UNPROTECTED,
        with_status(Ready=(True, "Serving", ""), Unprotected=(True, "NoStandby", "")),
        "every write",
    ),
    (State.WILL_BE_HELD, annotated(leases.HOLD_FAILOVER, "storage moves"), "storage moves"),
    (State.BASE_DAMAGED, around(reports={"s-1": report("s-1", base="damaged")}), "base of s-1"),
    (State.ACCEPTANCE_SPENT, annotated(leases.ACCEPT_LOSS, "3"), "epoch 3; that is spent, the epoch is 4"),
    (State.PAUSED, around(table={"metadata": {"name": "orders"}, "spec": {"paused": True}}), "KVTable orders"),
    (State.PAUSED, around(namespace={"metadata": {"name": "s"}, "spec": {"paused": True}}), "KVNamespace s"),
    (
        State.TABLE_STALLED,
        around(
            table={"metadata": {"name": "orders"}, "status": conditions(Stalled=(True, "QuotaExceeded", "9 of 8"))}
        ),
        "QuotaExceeded: 9 of 8",
    ),
    (
        State.TABLE_DEGRADED,
        around(
            table={
                "metadata": {"name": "orders"},
                "status": conditions(Degraded=(True, "PlacementUnsatisfiable", "no zone c")),
            }
        ),
        "no zone c",
    ),
    (State.NAMESPACE_MISSING, around(namespace=None), "KVNamespace s does not exist"),
    (
        State.NAMESPACE_STALLED,
        around(namespace={"metadata": {"name": "s"}, "status": conditions(Stalled=(True, "Refused", "no"))}),
        "Refused: no",
    ),
    (
        State.NAMESPACE_CHANGING,
        around(
            namespace={
                "metadata": {"name": "s"},
                "status": conditions(Reconciling=(True, "RollingUpdate", "2 of 3 shards updated")),
            }
        ),
        "2 of 3 shards updated",
    ),
    (
        State.OPERATION,
        around(
            operations=[
                {
                    "metadata": {"name": "d-1"},
                    "spec": {"type": "drill", "partition": "orders-0"},
                    "status": {"phase": "Running", "step": "Writing"},
                }
            ]
        ),
        "Writing",
    ),
    (State.OPERATOR_AWAY, lambda seen: replace(seen, renewed=seen.renewed - {"fencekv-operator"}), "op-0 leads"),
    (
        State.OPERATOR_AWAY,
        around(operator={"metadata": {"name": "fencekv-operator"}, "spec": {}}),
        "no operator leads",
    ),
]


@pytest.mark.parametrize(("state", "change", "words"), NOTES, ids=lambda each: str(each)[:24])
def test_what_is_worth_knowing_blocks_nothing(state: State, change: Change, words: str) -> None:
    causes = explain(change(healthy()))
    assert causes[0].state is State.SERVING
    assert [cause.state for cause in causes[1:]] == [state]
    assert words in causes[1].what
    assert not is_blocked(causes)


def test_an_operator_that_is_away_blocks_what_waits_for_it() -> None:
    change = chain(silent("s-0"), lambda seen: replace(seen, renewed=seen.renewed - {"fencekv-operator"}))
    causes = explain(change(healthy()))
    assert [(cause.state, cause.blocks) for cause in causes if cause.state is State.OPERATOR_AWAY] == [
        (State.OPERATOR_AWAY, True)
    ]


def test_silence_is_claimed_only_after_two_looks() -> None:
    once = replace(healthy(), renewed=frozenset(), looked_seconds=0.0)
    assert [cause.state for cause in explain(once)] == [State.SERVING]


# -- the pods that a replica needs


def of_pod(name: str, **status: Any) -> Change:
    return lambda seen: replace(seen, pods={**seen.pods, name: pod(name, **status)})


def claim(phase: str) -> Change:
    item = {"metadata": {"name": "data-s-2"}, "status": {"phase": phase}}
    return lambda seen: replace(seen, claims={"s-2": item})


def terminating(seen: Observed) -> Observed:
    made = pod("s-2")
    made["metadata"]["deletionTimestamp"] = SINCE
    return replace(seen, pods={**seen.pods, "s-2": made})


def replica(**told: Any) -> Change:
    return lambda seen: replace(seen, reports={**seen.reports, "s-2": report("s-2", **told)})


def without_replica(seen: Observed) -> Observed:
    return replace(seen, reports={**seen.reports, "s-2": {**report("s-2"), "replicas": []}})


UNSCHEDULABLE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes",
    "lastTransitionTime": SINCE,
}  # fmt: skip
CRASHING = {
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
    "lastState": {"terminated": {"exitCode": 74, "reason": "Error"}},
}

ABOUT_PODS: list[tuple[State, Change, str]] = [
    (
        State.POD_MISSING,
        lambda seen: replace(seen, pods={n: p for n, p in seen.pods.items() if n != "s-2"}),
        "no pod s-2",
    ),
    (State.POD_UNSCHEDULABLE, of_pod("s-2", conditions=[UNSCHEDULABLE]), "0/3 nodes"),
    (State.VOLUME_PENDING, claim("Pending"), "data-s-2 is not bound"),
    (State.VOLUME_LOST, claim("Lost"), "is gone"),
    (State.NODE_GONE, of_pod("s-2", conditions=[{"type": "Ready", "status": "Unknown"}]), "kubelet of worker"),
    (State.NODE_GONE, of_pod("s-2", reason="NodeLost"), "does not answer"),
    (State.POD_TERMINATING, terminating, "being terminated"),
    (State.CONTAINER_WAITING, of_pod("s-2", containerStatuses=[CRASHING]), "its disk is suspect"),
    (
        State.CONTAINER_ENDED,
        of_pod("s-2", containerStatuses=[{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]),
        "status 137, OOMKilled",
    ),
    (State.NO_SESSION, session("s-2", lambda _: None), "holds no session Lease"),
    (
        State.NO_SESSION,
        session("s-2", lambda lease: {**lease, "spec": {**lease["spec"], "holderIdentity": "s-2/uid-old/n"}}),
        "still that of an earlier pod",
    ),
    (State.SESSION_OVER, session("s-2", lambda lease: leases.fenced_session(lease, owner("s-2"))), "was fenced"),
    (State.SESSION_SILENT, silent("s-2"), "did not renew"),
    (
        State.NOT_ANSWERING,
        lambda seen: replace(seen, reports={"s-0": seen.reports["s-0"]}),
        "could not be read from here",
    ),
    (State.NOT_OPENED, without_replica, "has not opened its replica"),
    (State.PROMISED_HIGHER, replica(promised=7), "promised epoch 7, above the Lease's 4"),
    (State.BEHIND, replica(lastSeq=58), "lacks 42 entries"),
    (
        State.POD_NOT_READY,
        of_pod("s-2", conditions=[{"type": "Ready", "status": "False", "message": "probe failed"}]),
        "probe failed",
    ),
]


@pytest.mark.parametrize(("state", "change", "words"), ABOUT_PODS, ids=lambda each: str(each)[:24])
def test_a_pod_that_holds_no_copy_is_explained_by_what_is_nearest_to_the_root(
    state: State, change: Change, words: str
) -> None:
    lacking = with_record(record(("s-0", "s-1")))
    [first, second, *_] = [
        cause for cause in explain(change(lacking(healthy()))) if cause.state is not State.SERVING
    ]
    assert first.state is State.COPIES_MISSING
    assert (second.state, second.pod) == (state, "s-2")
    assert words in second.what
    assert second.do


@pytest.mark.parametrize(
    ("change", "pods"),
    [
        (chain(silent("s-0"), with_status(**NOT_READY)), ["s-0"]),
        (with_status(Degraded=(True, "NoCandidate", NO_CANDIDATE)), ["s-0", "s-1", "s-2"]),
        (with_record(record(**{leases.ALONE_SINCE: "4"})), ["s-1", "s-2"]),
        (with_status(RecordSuspect=(True, "RecordLost", SUSPECT)), ["s-2"]),
        (chain(fresh, with_record(never_granted()), session("s-1", lambda _: None), around(reports={})), ["s-1"]),
    ],
)
def test_the_pods_that_are_waited_for_are_explained(change: Change, pods: list[str]) -> None:
    causes = explain(change(healthy()))
    assert [cause.pod for cause in causes if cause.pod] == pods


def test_every_state_is_tried() -> None:
    tried = {state for state, *_ in STATES} | {state for state, *_ in NOTES} | {state for state, *_ in ABOUT_PODS}
    assert tried | {State.COPIES_MISSING} == set(State)


def test_since_is_when_the_condition_became_so() -> None:
    [first, *_] = explain(with_status(RecordSuspect=(True, "RecordLost", SUSPECT))(healthy()))
    assert first.since == SINCE
    assert first.document()["since"] == SINCE


def test_what_blocks_comes_first() -> None:
    seen = chain(annotated(leases.HOLD_FAILOVER, "x"), silent("s-0"), around(namespace=None))(healthy())
    seen = replace(seen, renewed=seen.renewed - {"fencekv-operator"})
    blocks = [cause.blocks for cause in explain(seen)]
    assert blocks == sorted(blocks, reverse=True)
    assert True in blocks
    assert False in blocks


def test_every_state_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/kubectl.md").read_text()
    table = page.partition("## why")[2].partition("## report")[0]
    documented = set(
        re.findall(r"`([A-Z][A-Za-z]+)`", "\n".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)))
    )
    assert documented == {str(state) for state in State}
