"""Leases, on which everything rests."""

from __future__ import annotations

from apiservers import Api

from conformance import behaviour
from conformance.samples import MERGE, causes, create, get, lease, leases

MOMENT = "2026-01-02T03:04:05.000000Z"


@behaviour
async def a_micro_time_with_six_digits_is_kept(api: Api, ns: str) -> None:
    await create(api, leases(ns), lease(renewTime=MOMENT, acquireTime="2026-01-02T03:04:05.678901Z"))
    spec = (await get(api, leases(ns, "a")))["spec"]
    assert spec["renewTime"] == MOMENT
    assert spec["acquireTime"] == "2026-01-02T03:04:05.678901Z"


@behaviour
async def a_micro_time_without_six_digits_is_refused(api: Api, ns: str) -> None:
    for moment in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123Z", "2026-01-02 03:04:05.000000Z", "soon", 5):
        reply = await api.ask("POST", leases(ns), lease(renewTime=moment))
        assert reply.status == 400, (moment, reply)
        assert reply.reason == "BadRequest"
        assert reply.message.startswith('Lease in version "v1" cannot be handled as a Lease: '), reply.message
    assert (await api.ask("GET", leases(ns, "a"))).status == 404


@behaviour
async def a_bad_micro_time_is_named_by_the_layout(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(renewTime="2026-01-02T03:04:05Z"))
    assert reply.message == (
        'Lease in version "v1" cannot be handled as a Lease: parsing time "2026-01-02T03:04:05Z" as '
        '"2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000"'
    )


@behaviour
async def a_duration_must_be_positive(api: Api, ns: str) -> None:
    for seconds in (0, -1):
        reply = await api.ask("POST", leases(ns), lease(leaseDurationSeconds=seconds))
        assert causes(reply) == [("FieldValueInvalid", "spec.leaseDurationSeconds")]
        assert reply.message == (
            'Lease.coordination.k8s.io "a" is invalid: spec.leaseDurationSeconds: '
            f"Invalid value: {seconds}: must be greater than 0"
        )
        assert reply.body["details"]["kind"] == "Lease"
        assert reply.body["details"]["group"] == "coordination.k8s.io"


@behaviour
async def transitions_may_not_be_negative(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(leaseTransitions=-1))
    assert causes(reply) == [("FieldValueInvalid", "spec.leaseTransitions")]
    assert "must be greater than or equal to 0" in reply.message


@behaviour
async def transitions_are_an_int32(api: Api, ns: str) -> None:
    await create(api, leases(ns), lease(leaseTransitions=2**31 - 1))
    for number in (2**31, 1.5, "7"):
        reply = await api.ask("PATCH", leases(ns, "a"), {"spec": {"leaseTransitions": number}}, content=MERGE)
        assert reply.status == 422, (number, reply)
        assert [one["field"] for one in reply.body["details"]["causes"]] == ["patch"]
        assert "Go struct field LeaseSpec.spec.leaseTransitions of type int32" in reply.message
        reply = await api.ask("POST", leases(ns), lease("b", leaseTransitions=number))
        assert reply.status == 400, (number, reply)
    assert (await get(api, leases(ns, "a")))["spec"]["leaseTransitions"] == 2**31 - 1


@behaviour
async def a_holder_may_be_absent_or_empty(api: Api, ns: str) -> None:
    body = lease()
    del body["spec"]["holderIdentity"]
    await create(api, leases(ns), body)
    assert (await create(api, leases(ns), lease("b", holderIdentity=""))).body["spec"] == {"holderIdentity": ""}


@behaviour
async def several_causes_are_told_together(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(leaseDurationSeconds=0, leaseTransitions=-1))
    assert sorted(causes(reply)) == [
        ("FieldValueInvalid", "spec.leaseDurationSeconds"),
        ("FieldValueInvalid", "spec.leaseTransitions"),
    ]
    assert reply.message.startswith('Lease.coordination.k8s.io "a" is invalid: [spec.'), reply.message


@behaviour
async def a_holder_of_the_wrong_type_is_refused(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(holderIdentity=7))
    assert reply.status == 400
    assert reply.message.endswith(
        "json: cannot unmarshal number into Go struct field LeaseSpec.spec.holderIdentity of type string"
    )


@behaviour
async def null_removes_a_lease_field(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease(leaseDurationSeconds=4))).body
    body["spec"]["leaseDurationSeconds"] = None
    reply = await api.ask("PUT", leases(ns, "a"), body)
    assert reply.status == 200
    assert "leaseDurationSeconds" not in reply.body["spec"]


@behaviour
async def annotations_are_texts(api: Api, ns: str) -> None:
    body = lease()
    body["metadata"]["annotations"] = {"fencekv.io/renewal": 7}
    reply = await api.ask("POST", leases(ns), body)
    assert reply.status == 400
    assert reply.message.endswith(
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.annotations of type string"
    )


@behaviour
async def annotations_have_a_limit(api: Api, ns: str) -> None:
    body = lease()
    body["metadata"]["annotations"] = {"big": "x" * (256 * 1024)}
    reply = await api.ask("POST", leases(ns), body)
    assert causes(reply) == [("FieldValueTooLong", "metadata.annotations")]
    assert "may not be more than 262144 bytes" in reply.message, reply.message


@behaviour
async def a_lease_has_no_generation(api: Api, ns: str) -> None:
    body = (await create(api, leases(ns), lease())).body
    assert "generation" not in body["metadata"]


@behaviour
async def an_unknown_lease_field_is_warned_of_by_default(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(holder="x"))
    assert reply.status == 201
    assert reply.warnings == ['299 - "unknown field \\"spec.holder\\""']
    assert "holder" not in reply.body["spec"]


@behaviour
async def an_unknown_lease_field_is_ignored_on_demand(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(holder="x"), fieldValidation="Ignore")
    assert reply.status == 201
    assert reply.warnings == []


@behaviour
async def an_unknown_lease_field_is_refused_when_strict(api: Api, ns: str) -> None:
    reply = await api.ask("POST", leases(ns), lease(holder="x"), fieldValidation="Strict")
    assert reply.status == 400
    assert reply.message == (
        'Lease in version "v1" cannot be handled as a Lease: strict decoding error: unknown field "spec.holder"'
    )
