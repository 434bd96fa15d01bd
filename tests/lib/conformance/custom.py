"""Custom resources: schema, defaults, pruning, rules, status, columns."""

from __future__ import annotations

import copy
from typing import Any

from apiservers import CRDS, Api, Reply

from conformance import behaviour
from conformance.samples import GROUP, MERGE, WIDGETS, causes, create, get, widget, widgets

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


async def refused(api: Api, ns: str, **spec: Any) -> Reply:
    """What a widget with this spec is answered; it must not be stored."""
    await api.define(WIDGETS)
    reply = await api.ask("POST", widgets(ns), widget(**spec))
    assert reply.status == 422, reply
    assert (await api.ask("GET", widgets(ns, "a"))).status == 404
    return reply


def only_cause(reply: Reply) -> tuple[str, str, str]:
    """Reason, field and message of the only cause."""
    (cause,) = reply.body["details"]["causes"]
    return cause["reason"], cause["field"], cause["message"]


@behaviour
async def a_definition_becomes_established(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    body = await get(api, f"{CRDS}/widgets.{GROUP}")
    conditions = {one["type"]: one["status"] for one in body["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert body["status"]["storedVersions"] == ["v1"]
    assert body["status"]["acceptedNames"]["listKind"] == "WidgetList"
    assert body["spec"]["conversion"] == {"strategy": "None"}


@behaviour
async def a_definition_is_discovered(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    listing = await get(api, f"/apis/{GROUP}/v1")
    by_name = {one["name"]: one for one in listing["resources"]}
    assert by_name["widgets"]["kind"] == "Widget"
    assert by_name["widgets"]["shortNames"] == ["wd"]
    assert by_name["widgets"]["categories"] == ["conformance"]
    assert by_name["widgets"]["namespaced"] is True
    assert set(by_name["widgets"]["verbs"]) == {
        "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch",
    }  # fmt: skip
    assert by_name["widgets/status"]["verbs"] == ["get", "patch", "update"]
    assert by_name["widgets/scale"]["kind"] == "Scale"
    assert GROUP in {one["name"] for one in (await get(api, "/apis"))["groups"]}


@behaviour
async def a_definition_under_a_wrong_name_is_invalid(api: Api, ns: str) -> None:
    body = copy.deepcopy(WIDGETS)
    body["metadata"]["name"] = f"gadgets.{GROUP}"
    reply = await api.ask("POST", CRDS, body)
    assert ("FieldValueInvalid", "metadata.name") in causes(reply)
    assert 'must be spec.names.plural+"."+spec.group' in reply.message


def gadgets(schema: Any) -> dict[str, Any]:
    """A definition of another resource with this schema."""
    body = copy.deepcopy(WIDGETS)
    body["metadata"]["name"] = f"gadgets.{GROUP}"
    body["spec"]["names"] = {"plural": "gadgets", "kind": "Gadget"}
    version = body["spec"]["versions"][0]
    version["schema"] = {"openAPIV3Schema": schema}
    del version["subresources"], version["additionalPrinterColumns"]
    return body


# What all versions share is named as if it stood at the top.
SCHEMA_PATH = "spec.validation.openAPIV3Schema"


@behaviour
async def a_schema_must_be_structural(api: Api, ns: str) -> None:
    schema = {"type": "object", "properties": {"spec": {"properties": {"a": {"type": "string"}}}}}
    reply = await api.ask("POST", CRDS, gadgets(schema))
    assert causes(reply) == [("FieldValueRequired", f"{SCHEMA_PATH}.properties[spec].type")]


@behaviour
async def a_rule_that_is_no_cel_is_refused(api: Api, ns: str) -> None:
    spec = {"type": "object", "x-kubernetes-validations": [{"rule": "self.a =="}]}
    reply = await api.ask("POST", CRDS, gadgets({"type": "object", "properties": {"spec": spec}}))
    assert causes(reply) == [
        ("FieldValueInvalid", f"{SCHEMA_PATH}.properties[spec].x-kubernetes-validations[0].rule")
    ]
    assert "compilation failed" in reply.message


@behaviour
async def an_unserved_resource_is_not_found(api: Api, ns: str) -> None:
    reply = await api.ask("GET", f"/apis/{GROUP}/v1/namespaces/{ns}/gizmos")
    assert reply.status == 404
    assert reply.body == "404 page not found\n"


@behaviour
async def defaults_are_filled_in(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    spec = (await create(api, widgets(ns), widget())).body["spec"]
    assert spec == {"size": 3, "color": "red", "owner": {"name": "nobody"}}


@behaviour
async def null_is_replaced_by_the_default(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    assert (await create(api, widgets(ns), widget(color=None))).body["spec"]["color"] == "red"


@behaviour
async def a_nullable_field_keeps_null(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    spec = (await create(api, widgets(ns), widget(note=None))).body["spec"]
    assert "note" in spec
    assert spec["note"] is None


@behaviour
async def unknown_fields_are_pruned_with_a_warning(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await create(api, widgets(ns), widget(surplus=1, owner={"alias": "x"}))
    assert sorted(reply.warnings) == [
        '299 - "unknown field \\"spec.owner.alias\\""',
        '299 - "unknown field \\"spec.surplus\\""',
    ]
    assert "surplus" not in reply.body["spec"]
    assert reply.body["spec"]["owner"] == {"name": "nobody"}


@behaviour
async def unknown_fields_are_refused_when_strict(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await api.ask("POST", widgets(ns), widget(surplus=1), fieldValidation="Strict")
    assert reply.status == 400
    assert reply.reason == "BadRequest"
    assert reply.message == (
        'Widget in version "v1" cannot be handled as a Widget: strict decoding error: unknown field "spec.surplus"'
    )


@behaviour
async def unknown_fields_are_refused_in_patches_too(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget())
    patch = {"spec": {"surplus": 1}}
    reply = await api.ask("PATCH", widgets(ns, "a"), patch, content=MERGE, fieldValidation="Strict")
    assert reply.status in {400, 422}
    assert 'unknown field "spec.surplus"' in reply.message, reply


@behaviour
async def unknown_metadata_is_refused_when_strict(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    body = widget()
    body["metadata"]["nickname"] = {}
    reply = await api.ask("POST", widgets(ns), body, fieldValidation="Strict")
    assert reply.status == 400
    assert 'unknown field "metadata.nickname"' in reply.message, reply


@behaviour
async def preserved_fields_are_kept(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await create(api, widgets(ns), widget(free={"any": {"thing": [1]}}), fieldValidation="Strict")
    assert reply.body["spec"]["free"] == {"any": {"thing": [1]}}


@behaviour
async def a_wrong_type_is_invalid(api: Api, ns: str) -> None:
    reply = await refused(api, ns, size="three")
    first = reply.body["details"]["causes"][0]
    assert first["reason"] == "FieldValueTypeInvalid"
    assert first["field"] == "spec.size"
    assert first["message"] == 'Invalid value: "string": spec.size in body must be of type integer: "string"'


@behaviour
async def a_wrong_type_keeps_rules_from_being_checked(api: Api, ns: str) -> None:
    reply = await refused(api, ns, size="three", tags=["b", "a"])
    assert "tags must be sorted" not in reply.message
    last = reply.body["details"]["causes"][-1]
    assert last["field"] == "<nil>"
    assert last["message"] == (
        "Invalid value: null: some validation rules were not checked because the object was invalid; "
        "correct the existing errors to complete validation"
    )


@behaviour
async def a_missing_field_is_required(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    body = widget()
    del body["spec"]["size"]
    reply = await api.ask("POST", widgets(ns), body)
    first = reply.body["details"]["causes"][0]
    assert first == {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.size"}
    assert 'Widget.conformance.fencekv.io "a" is invalid: ' in reply.message


@behaviour
async def a_number_has_bounds(api: Api, ns: str) -> None:
    assert only_cause(await refused(api, ns, size=0)) == (
        "FieldValueInvalid",
        "spec.size",
        "Invalid value: 0: spec.size in body should be greater than or equal to 1",
    )
    assert only_cause(await refused(api, ns, size=10)) == (
        "FieldValueInvalid",
        "spec.size",
        "Invalid value: 10: spec.size in body should be less than or equal to 9",
    )


@behaviour
async def an_enumeration_names_its_values(api: Api, ns: str) -> None:
    first = (await refused(api, ns, color="green")).body["details"]["causes"][0]
    assert first["reason"] == "FieldValueNotSupported"
    assert first["field"] == "spec.color"
    assert first["message"] == 'Unsupported value: "green": supported values: "red", "blue"'


@behaviour
async def a_text_has_a_length(api: Api, ns: str) -> None:
    first = (await refused(api, ns, note="x" * 21)).body["details"]["causes"][0]
    assert first["reason"] == "FieldValueTooLong"
    assert first["field"] == "spec.note"
    assert first["message"] == "Too long: may not be more than 20 bytes"
    assert only_cause(await refused(api, ns, note="x")) == (
        "FieldValueInvalid",
        "spec.note",
        'Invalid value: "x": spec.note in body should be at least 2 chars long',
    )


@behaviour
async def a_text_matches_its_pattern(api: Api, ns: str) -> None:
    assert only_cause(await refused(api, ns, code="A1")) == (
        "FieldValueInvalid",
        "spec.code",
        "Invalid value: \"A1\": spec.code in body should match '^[a-z]+$'",
    )
    await refused(api, ns, code="abc\n")


@behaviour
async def a_moment_has_its_format(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget("b", when="2026-01-02T03:04:05Z"))
    reply = await refused(api, ns, when="yesterday")
    assert "spec.when in body must be of type date-time" in reply.message, reply


@behaviour
async def a_list_has_a_length_and_a_set_no_twins(api: Api, ns: str) -> None:
    first = (await refused(api, ns, tags=list("abcde"))).body["details"]["causes"][0]
    assert first["reason"] == "FieldValueTooMany"
    assert first["message"] == "Too many: 5: must have at most 4 items"
    reply = await refused(api, ns, tags=["a", "a"])
    assert ("FieldValueDuplicate", "spec.tags[1]") in causes(reply)
    assert 'Duplicate value: "a"' in reply.message


@behaviour
async def an_associative_list_has_unique_keys(api: Api, ns: str) -> None:
    reply = await refused(api, ns, parts=[{"name": "x"}, {"name": "x"}])
    assert ("FieldValueDuplicate", "spec.parts[1]") in causes(reply)
    assert 'Duplicate value: {"name":"x"}' in reply.message


@behaviour
async def a_map_has_a_size_and_a_value_type(api: Api, ns: str) -> None:
    first = (await refused(api, ns, marks={"a": 1, "b": 2, "c": 3})).body["details"]["causes"][0]
    assert first["reason"] == "FieldValueTooMany"
    assert first["field"] == "spec.marks"
    first = (await refused(api, ns, marks={"a": "x"})).body["details"]["causes"][0]
    assert first["field"] == "spec.marks.a"


@behaviour
async def an_int_or_string_is_either(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget("b", port=80))
    await create(api, widgets(ns), widget("c", port="http"))
    first = (await refused(api, ns, port=[80])).body["details"]["causes"][0]
    assert first["field"] == "spec.port"
    assert first["reason"] == "FieldValueTypeInvalid"


@behaviour
async def a_rule_refuses_with_its_message_and_path(api: Api, ns: str) -> None:
    reason, field, message = only_cause(await refused(api, ns, size=3, low=4))
    assert (reason, field) == ("FieldValueInvalid", "spec.low")
    assert message == "Invalid value: low must not exceed size"


@behaviour
async def a_rule_on_a_list_names_the_list(api: Api, ns: str) -> None:
    reason, field, message = only_cause(await refused(api, ns, tags=["b", "a"]))
    assert (reason, field) == ("FieldValueInvalid", "spec.tags")
    assert message == "Invalid value: tags must be sorted"


@behaviour
async def a_rule_shows_the_plain_value_that_it_refused(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget(fixed="x"))
    reply = await api.ask("PATCH", widgets(ns, "a"), {"spec": {"fixed": "y"}}, content=MERGE)
    _, _, message = only_cause(reply)
    assert message == 'Invalid value: "y": fixed is immutable'


@behaviour
async def a_rule_on_the_root_sees_the_name(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await api.ask("POST", widgets(ns), widget("a-name-too-long"))
    (cause,) = reply.body["details"]["causes"]
    assert cause["message"] == "Invalid value: name: at most 10 characters"
    assert cause["field"] == "<nil>"


@behaviour
async def a_transition_rule_compares_with_the_old_value(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget(fixed="x"))
    reply = await api.ask("PATCH", widgets(ns, "a"), {"spec": {"fixed": "y"}}, content=MERGE)
    assert causes(reply) == [("FieldValueInvalid", "spec.fixed")]
    assert "fixed is immutable" in reply.message
    reply = await api.ask("PATCH", widgets(ns, "a"), {"spec": {"fixed": None}}, content=MERGE)
    assert reply.status == 200
    reply = await api.ask("PATCH", widgets(ns, "a"), {"spec": {"fixed": "z"}}, content=MERGE)
    assert reply.status == 200


@behaviour
async def a_transition_rule_finds_items_by_their_key(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    parts = [{"name": "x", "weight": 5}, {"name": "y", "weight": 1}]
    await create(api, widgets(ns), widget(parts=parts))
    swapped = [{"name": "y", "weight": 2}, {"name": "x", "weight": 5}]
    assert (await api.ask("PATCH", widgets(ns, "a"), {"spec": {"parts": swapped}}, content=MERGE)).status == 200
    lower = [{"name": "x", "weight": 4}]
    reply = await api.ask("PATCH", widgets(ns, "a"), {"spec": {"parts": lower}}, content=MERGE)
    assert causes(reply) == [("FieldValueInvalid", "spec.parts[0].weight")]


@behaviour
async def an_epoch_in_the_status_never_falls(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget())
    path = widgets(ns, "a") + "/status"
    assert (await api.ask("PATCH", path, {"status": {"epoch": 5}}, content=MERGE)).status == 200
    reply = await api.ask("PATCH", path, {"status": {"epoch": 4}}, content=MERGE)
    assert causes(reply) == [("FieldValueInvalid", "status.epoch")]
    assert (await get(api, widgets(ns, "a")))["status"]["epoch"] == 5


@behaviour
async def a_custom_status_is_isolated(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    body = (await create(api, widgets(ns), {**widget(), "status": {"size": 9}})).body
    assert "status" not in body
    assert body["metadata"]["generation"] == 1
    body["status"] = {"size": 2}
    body["spec"]["size"] = 9
    body["metadata"]["annotations"] = {"a": "b"}
    reply = await api.ask("PUT", widgets(ns, "a") + "/status", body)
    assert reply.status == 200, reply
    assert reply.body["status"] == {"size": 2}
    assert reply.body["spec"]["size"] == 3
    assert reply.body["metadata"]["generation"] == 1
    assert "annotations" not in reply.body["metadata"]
    body = reply.body
    body["status"] = {"size": 8}
    body["spec"]["size"] = 4
    reply = await api.ask("PUT", widgets(ns, "a"), body)
    assert reply.body["status"] == {"size": 2}
    assert reply.body["metadata"]["generation"] == 2


@behaviour
async def a_custom_resource_is_not_replaced_without_a_version(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget())
    reply = await api.ask("PUT", widgets(ns, "a"), widget(size=4))
    assert causes(reply) == [("FieldValueInvalid", "metadata.resourceVersion")]
    assert "must be specified for an update" in reply.message


@behaviour
async def a_custom_resource_is_not_created_by_put(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    reply = await api.ask("PUT", widgets(ns, "a"), widget())
    assert reply.status in {404, 422}


@behaviour
async def a_custom_list_repeats_the_kind_of_its_items(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget())
    listing = await get(api, widgets(ns))
    assert listing["kind"] == "WidgetList"
    assert listing["items"][0]["kind"] == "Widget"


@behaviour
async def a_custom_resource_scales(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget())
    path = widgets(ns, "a") + "/scale"
    scale = await get(api, path)
    assert scale["spec"] == {"replicas": 3}
    scale["spec"]["replicas"] = 5
    assert (await api.ask("PUT", path, scale)).status == 200
    assert (await get(api, widgets(ns, "a")))["spec"]["size"] == 5


@behaviour
async def a_strategic_patch_of_a_custom_resource_is_unsupported(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget())
    content = "application/strategic-merge-patch+json"
    reply = await api.ask("PATCH", widgets(ns, "a"), {"spec": {"size": 4}}, content=content)
    assert reply.status == 415
    assert reply.reason == "UnsupportedMediaType"


@behaviour
async def printer_columns_come_as_a_table(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget(note="hello"))
    status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await api.ask("PATCH", widgets(ns, "a") + "/status", status, content=MERGE)
    table = (await api.ask("GET", widgets(ns), accept=f"{TABLE},application/json")).body
    assert table["kind"] == "Table"
    assert table["apiVersion"] == "meta.k8s.io/v1"
    columns = [(one["name"], one["type"], one["priority"]) for one in table["columnDefinitions"]]
    assert columns == [
        ("Name", "string", 0),
        ("Size", "integer", 0),
        ("Ready", "string", 0),
        ("Note", "string", 1),
        ("Age", "date", 0),
    ]
    (row,) = table["rows"]
    assert row["cells"][:4] == ["a", 3, "True", "hello"]
    assert row["cells"][4].endswith("s")
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert row["object"]["metadata"]["name"] == "a"


@behaviour
async def a_table_can_include_whole_objects(api: Api, ns: str) -> None:
    await api.define(WIDGETS)
    await create(api, widgets(ns), widget())
    table = (await api.ask("GET", widgets(ns, "a"), accept=TABLE, includeObject="Object")).body
    assert table["rows"][0]["object"]["spec"]["size"] == 3
    assert table["rows"][0]["cells"][2] is None


@behaviour
async def a_removed_definition_takes_its_objects_along(api: Api, ns: str) -> None:
    import asyncio

    definition = gadgets({"type": "object"})
    await api.define(definition)
    body = {"apiVersion": f"{GROUP}/v1", "kind": "Gadget", "metadata": {"name": "a"}}
    path = f"/apis/{GROUP}/v1/namespaces/{ns}/gadgets"
    await create(api, path, body)
    assert (await api.ask("DELETE", f"{CRDS}/gadgets.{GROUP}")).status == 200
    async with asyncio.timeout(30):
        while (await api.ask("GET", f"{CRDS}/gadgets.{GROUP}")).status != 404:
            await asyncio.sleep(0.05)
        while (await api.ask("GET", path)).status != 404:
            await asyncio.sleep(0.05)
