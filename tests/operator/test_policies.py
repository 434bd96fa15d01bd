"""The admission policies on a real API server: each violation is tried and refused, each step of the life is not.

Who asks has the account's own token. What RBAC lets the accounts do is seen in test_rights.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from installation import Answer
from policy_cases import ALLOWED, EVERYBODY, SHARDS, Case
from policy_stage import NAMESPACE, PARTITION, TOOL, Stage, held, renamed, renewed, stage

from fencekv import leases
from fencekv.kube import LEASES

__all__ = ["stage"]

pytestmark = [
    pytest.mark.realapi,
    pytest.mark.slow,
    pytest.mark.skipif("not config.getoption('--realapi')", reason="policies need a real API server: --realapi"),
]

Object = dict[str, Any]


async def carried_out(stage: Stage, case: Case) -> Answer:
    """Puts the case's Lease there, and has it changed."""
    for name in (leases.session_lease_name("tenant-0"), leases.partition_lease_name(PARTITION)):
        await stage.ask("admin", "DELETE", LEASES.path(NAMESPACE, name))
    lease: Object = {}
    if case.start:
        who = "operator" if case.start == "ordered" else "admin"
        lease = (await stage.ask(who, "POST", LEASES.path(NAMESPACE), getattr(stage, case.start)())).body
        assert lease["kind"] == "Lease", lease
    body = case.change(stage, lease)
    if not case.start:
        return await stage.ask(case.who, "POST", LEASES.path(NAMESPACE), body)
    return await stage.ask(case.who, "PUT", LEASES.path(NAMESPACE, body["metadata"]["name"]), body)


@pytest.mark.parametrize("case", ALLOWED, ids=lambda case: case.id)
async def test_the_protocols_own_steps_are_taken(stage: Stage, case: Case) -> None:
    answer = await carried_out(stage, case)

    assert answer.status in {200, 201}, answer.message


@pytest.mark.parametrize("case", [*SHARDS, *EVERYBODY], ids=lambda case: case.id)
async def test_a_violation_is_refused_and_says_which_rule(stage: Stage, case: Case) -> None:
    answer = await carried_out(stage, case)

    assert answer.status in {403, 422}, answer
    assert "ValidatingAdmissionPolicy 'fencekv-" in answer.message, "RBAC does not know what the policy does"
    assert case.words in answer.message


async def test_a_token_that_names_no_pod_writes_nothing(stage: Stage) -> None:
    unbound = Case(id="", who="unbound", start="session_lease", change=lambda _, old: renewed(old))

    answer = await carried_out(stage, unbound)

    assert "bound to the pod" in answer.message


async def test_a_stranger_deletes_no_lease_and_a_person_does(stage: Stage) -> None:
    made = await stage.ask("operator", "POST", LEASES.path(NAMESPACE), renamed(stage.partition(), "partition-x"))
    assert made.status == 201, made

    path = LEASES.path(NAMESPACE, "partition-x")
    refused = await stage.ask(TOOL, "DELETE", path)
    assert "made and deleted by its operator" in refused.message
    assert "a shard deletes no Lease" in (await stage.ask("tenant-0", "DELETE", path)).message

    assert (await stage.ask("admin", "DELETE", path)).status == 200


async def test_leases_of_others_are_nobodys_concern(stage: Stage) -> None:
    for who in ("admin", TOOL):
        path = LEASES.path(NAMESPACE, f"leader-{who}")
        lease = {"metadata": {"name": f"leader-{who}"}, "spec": {"holderIdentity": "a", "leaseTransitions": 3}}
        made = await stage.ask(who, "POST", LEASES.path(NAMESPACE), lease)
        assert made.status == 201, made
        lower = held(made.body, leaseTransitions=1, holderIdentity="b")
        assert (await stage.ask(who, "PUT", path, lower)).status == 200
        assert (await stage.ask(who, "DELETE", path)).status == 200
