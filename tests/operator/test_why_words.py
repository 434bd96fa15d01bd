"""`kubectl fencekv why` reads what the operator decided: from decisions to conditions to the words for people."""

from __future__ import annotations

import re
from typing import Any

import pytest
from operator_world import facts_of

from fencekv import leases
from fencekv.cli.observed import Observed, State
from fencekv.cli.operate import named_epoch
from fencekv.cli.why import explain
from fencekv.leases import PartitionLease, Session
from fencekv_operator import ownership, status
from fencekv_operator.facts import Reason
from fencekv_operator.ownership import Answer, Partition, View, trouble_of
from fencekv_operator.reports import Replica

PODS = ("s-0", "s-1", "s-2")
NOW = "2026-01-02T03:04:05Z"
SPEC = {
    "namespace": "s",
    "table": "orders",
    "index": 0,
    "replicas": list(PODS),
    "durability": "replicated",
    "minInSync": 1,
}


def session(pod: str) -> Session:
    return Session(pod, f"uid-{pod}", "nonce")


def record(**notes: str) -> dict[str, Any]:
    """The Lease after s-0 was granted epoch 4."""
    lease = leases.new_partition_lease(
        partition="orders-0", partition_uid="u", table="orders", kvns="s", namespace="default"
    )
    lease["metadata"] |= {"uid": "l", "resourceVersion": "1"}
    members = tuple(f"{pod}/r-{pod}" for pod in PODS)
    lease = leases.granted(
        lease,
        session=session("s-0"),
        epoch=4,
        in_sync=members,
        set_version=7,
        http="h",
        peer="p",
        unix_seconds=0.0,
    )
    lease["metadata"]["annotations"].update(notes)
    return lease


def answer(pod: str, **changes: Any) -> Answer:
    told: dict[str, Any] = {
        "uid": "u", "partition": "orders-0", "replica": f"r-{pod}", "promised": 4, "epoch": 4, "last_epoch": 4,
        "last_seq": 100, "last_txid": 90, "applied_seq": 100, "commit_seq": 100, "set_version": 7,
        "members": tuple(f"{each}/r-{each}" for each in PODS), "role": "standby", "serving": False,
        "closed_epoch": 0, "suspect": False,
    }  # fmt: skip
    return Answer(session=session(pod), http=f"{pod}:1", peer=f"{pod}:2", replica=Replica(**{**told, **changes}))


def view(lease: dict[str, Any] | None, *answers: Answer, held: str | None = None, **changes: Any) -> View:
    partition = Partition(
        namespace="default",
        name="orders-0",
        uid="u",
        kvns="s",
        table="orders",
        replicas=PODS,
        epoch=4,
        accepted_loss=None,
        deleting=False,
        held=held,
    )
    plain: dict[str, Any] = {
        "partition": partition,
        "lease": None if lease is None else PartitionLease.parse(lease),
        "absent_seconds": 0.0 if lease else 10.0,
        "answers": {each.session.pod: each for each in answers},
        "over": None,
        "doubt": "",
        "known_epoch": 4,
        "unsettled": frozenset(),
    }
    return View(**{**plain, **changes})


def seen_by_why(lease: dict[str, Any] | None, decision: ownership.Decision) -> Observed:
    """What the operator would write of this decision, as the command line reads it."""
    trouble, detail = trouble_of(decision)
    partition = {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVPartition",
        "metadata": {"name": "orders-0", "namespace": "default", "uid": "u", "generation": 1},
        "spec": SPEC,
    }
    facts = facts_of(partition, epoch=4, owner="s-0", trouble=trouble, detail=detail)
    patch = status.partition_status(partition, facts, None, now=NOW, refresh=False)
    assert patch is not None
    return Observed(
        partition={**partition, "status": patch},
        namespace={"metadata": {"name": "s"}, "spec": {}},
        record=lease,
        sessions={pod: _session_lease(pod) for pod in PODS},
    )


def _session_lease(pod: str) -> dict[str, Any]:
    lease = leases.new_session_lease(
        session=session(pod), kvns="s", namespace="default", valid_seconds=4, renewal=1, http="", peer="",
        unix_seconds=0.0,
    )  # fmt: skip
    lease["metadata"] |= {"uid": pod, "resourceVersion": "1"}
    return lease


ALL = tuple(answer(pod) for pod in PODS)
ALONE = record(**{leases.ALONE_SINCE: "4"})
DECISIONS = [
    (State.RECORD_SUSPECT, None, view(None, *ALL[:2])),
    (State.EARLIER_SESSION, None, view(None, *ALL, unsettled=frozenset({"s-1"}))),
    (State.EARLIER_SESSION, record(), view(record(), answer("s-0", suspect=True), *ALL[1:])),
    (
        State.EARLIER_SESSION,
        record(),
        view(record(), answer("s-0", role="owner"), answer("s-1", epoch=6, role="owner"), ALL[2], known_epoch=6),
    ),
    (State.NO_CANDIDATE, record(), view(record(), over=Reason.SILENT)),
    (State.NO_CANDIDATE, record(), view(record(), answer("s-1", replica="anew"), over=Reason.SILENT)),
    (State.OWNER_ALONE, ALONE, view(ALONE, ALL[0])),
    (State.HELD, record(), view(record(), *ALL[1:], over=Reason.SILENT, held="storage moves")),
    (State.HELD, ALONE, view(ALONE, *ALL, held="")),
]


@pytest.mark.parametrize(("state", "lease", "about"), DECISIONS)
def test_a_decision_is_recognised(state: State, lease: dict[str, Any] | None, about: View) -> None:
    decision = ownership.decide(about)
    first = explain(seen_by_why(lease, decision))[0]
    assert first.state is state, (decision, first)
    assert first.since == NOW


@pytest.mark.parametrize("about", [view(None, *ALL[:2]), view(record(), over=Reason.SILENT)])
def test_the_epoch_whose_loss_can_be_accepted_is_read_from_the_operators_words(about: View) -> None:
    decision = ownership.decide(about)
    assert isinstance(decision, ownership.Suspect | ownership.Degraded)
    assert named_epoch(decision.detail, leases.ACCEPT_LOSS) == 4
    assert re.search("missing|reports of", decision.detail)
