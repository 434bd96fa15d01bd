"""The pure parts of the embedded API server: selectors, paths, patches, rules, field sets, columns."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencekv_sandbox.apiserver import cel, managed, schema
from fencekv_sandbox.apiserver.errors import ApiError
from fencekv_sandbox.apiserver.jsonpath import find, is_valid
from fencekv_sandbox.apiserver.patches import json_patch, merge_patch
from fencekv_sandbox.apiserver.selectors import field_selector, label_selector
from fencekv_sandbox.apiserver.strategic import strategic_patch
from fencekv_sandbox.apiserver.tables import age_text, duration_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
DOCUMENT = st.dictionaries(st.text(max_size=2), JSON, max_size=4)


# Selectors


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ("a", {"a": "1"}, True),
        ("!a", {"a": "1"}, False),
        ("a=1,b!=2", {"a": "1"}, True),
        ("a in (1, 2),b", {"a": "2", "b": ""}, True),
        ("a notin (1)", {}, True),
        ("fencekv.io/kind=shard", {"fencekv.io/kind": "shard"}, True),
        ("n>3", {"n": "4"}, True),
        ("n<3", {"n": "x"}, False),
        ("", {}, True),
    ],
)
def test_label_selectors(selector: str, labels: dict[str, str], matches: bool) -> None:
    predicate = label_selector(selector)
    assert (predicate is None or predicate({"metadata": {"labels": labels}})) is matches


@pytest.mark.parametrize("selector", ["a in 1", "a=b=c", "(a)", "a,,b", "-"])
def test_a_wrong_label_selector_is_a_bad_request(selector: str) -> None:
    with pytest.raises(ApiError) as refused:
        label_selector(selector)
    assert refused.value.code == 400


def test_field_selectors_compare_texts() -> None:
    fields = frozenset({"spec.on", "spec.n"})
    obj = {"metadata": {}, "spec": {"on": True, "n": 3}}
    for selector, matches in (
        ("spec.on=true", True),
        ("spec.n==3", True),
        ("spec.n!=3", False),
        ("spec.n=", False),
    ):
        predicate = field_selector(selector, fields, plain=False)
        assert predicate is not None
        assert predicate(obj) is matches


# Paths and columns


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.a", [1]),
        ("{.spec.a}", [1]),
        (".spec.list[*].n", ["x", "y"]),
        (".spec.list[1].v", [2]),
        (".spec.list[-1].n", ["y"]),
        ('.spec.list[?(@.n=="y")].v', [2]),
        (".spec.list[?(@.n!='y')].v", [1]),
        (r".metadata.annotations.fencekv\.io/kind", ["shard"]),
        (".metadata.annotations['fencekv.io/kind']", ["shard"]),
        (".spec.none.deeper", []),
        (".spec.list[9]", []),
    ],
)
def test_paths(path: str, found: list[Any]) -> None:
    obj = {
        "metadata": {"annotations": {"fencekv.io/kind": "shard"}},
        "spec": {"a": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]},
    }
    assert is_valid(path)
    assert find(obj, path) == found


def test_a_wrong_path_is_known_as_such() -> None:
    assert not is_valid(".a[")
    assert find({"a": 1}, ".a[") == [{"a": 1}]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (119, "119s"), (120, "2m"), (190, "3m10s"), (3 * 3600 - 1, "179m"), (3 * 3600, "3h"),
        (5 * 3600 + 60, "5h1m"), (47 * 3600, "47h"), (50 * 3600, "2d2h"), (30 * 86400, "30d"),
        (800 * 86400, "2y70d"), (9 * 365 * 86400, "9y"), (-1, "0s"), (-60, "<invalid>"),
    ],
)  # fmt: skip
def test_durations_are_as_short_as_kubectl_has_them(seconds: int, text: str) -> None:
    assert duration_text(seconds) == text


def test_ages() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert age_text((now - timedelta(seconds=5)).isoformat(), now) == "5s"
    assert age_text(None, now) == "<unknown>"
    assert age_text("soon", now) == "<invalid>"


# Patches


@given(DOCUMENT, DOCUMENT)
def test_a_merge_patch_is_idempotent_and_leaves_its_arguments_alone(document: Any, patch: Any) -> None:
    before = json.dumps([document, patch])
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once
    assert json.dumps([document, patch]) == before


@pytest.mark.parametrize(
    ("operations", "outcome"),
    [
        ([{"op": "add", "path": "/a/-", "value": 3}], {"a": [1, 2, 3], "b": {"c": 1}}),
        ([{"op": "add", "path": "/a/0", "value": 0}], {"a": [0, 1, 2], "b": {"c": 1}}),
        ([{"op": "remove", "path": "/a/1"}], {"a": [1], "b": {"c": 1}}),
        ([{"op": "replace", "path": "/b/c", "value": None}], {"a": [1, 2], "b": {"c": None}}),
        ([{"op": "move", "from": "/b/c", "path": "/d"}], {"a": [1, 2], "b": {}, "d": 1}),
        ([{"op": "copy", "from": "/b", "path": "/e"}], {"a": [1, 2], "b": {"c": 1}, "e": {"c": 1}}),
        ([{"op": "test", "path": "/none", "value": None}], {"a": [1, 2], "b": {"c": 1}}),
    ],
)
def test_json_patches(operations: list[Any], outcome: Any) -> None:
    document = {"a": [1, 2], "b": {"c": 1}}
    assert json_patch(document, operations) == outcome
    assert document == {"a": [1, 2], "b": {"c": 1}}


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ({"op": "remove", "path": "/none"}, 422),
        ({"op": "replace", "path": "/none", "value": 1}, 422),
        ({"op": "add", "path": "/a/7", "value": 1}, 422),
        ({"op": "add", "path": "/a/x", "value": 1}, 422),
        ({"op": "test", "path": "/a/0", "value": 2}, 422),
        ({"op": "add", "path": "a", "value": 1}, 422),
        ({"op": "explode", "path": "/a"}, 400),
        ({"op": "add"}, 400),
    ],
)
def test_json_patches_that_cannot_be_applied(operation: Any, code: int) -> None:
    with pytest.raises(ApiError) as refused:
        json_patch({"a": [1]}, [operation])
    assert refused.value.code == code


POD_SPEC = {"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}


@pytest.mark.parametrize(
    ("patch", "outcome"),
    [
        ({"containers": [{"name": "a", "image": "2"}]}, [("a", "2"), ("b", "1")]),
        ({"containers": [{"name": "c", "image": "1"}]}, [("a", "1"), ("b", "1"), ("c", "1")]),
        ({"containers": [{"name": "a", "$patch": "delete"}]}, [("b", "1")]),
        ({"containers": [{"name": "d", "image": "9"}, {"$patch": "replace"}]}, [("d", "9")]),
        (
            {
                "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                "containers": [{"name": "b", "image": "3"}],
            },
            [("b", "3"), ("a", "1")],
        ),
    ],
)
def test_strategic_patches_of_lists(patch: Any, outcome: list[tuple[str, str]]) -> None:
    spec = {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}
    patched = strategic_patch(spec, patch, POD_SPEC)
    assert [(one["name"], one["image"]) for one in patched["containers"]] == outcome
    assert len(spec["containers"]) == 2


def test_strategic_patches_of_maps_and_plain_lists() -> None:
    meta = {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    document = {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}
    patch = {"labels": {"a": None}, "finalizers": ["z"], "$deleteFromPrimitiveList/finalizers": ["x"]}
    patched = strategic_patch(document, patch, meta)
    assert patched["labels"] == {"b": "2"}
    assert sorted(patched["finalizers"]) == ["y", "z"]
    assert strategic_patch(document, {"labels": {"$patch": "replace", "c": "3"}}, meta)["labels"] == {"c": "3"}


# Field sets


TREE = st.recursive(
    st.just({}), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)


@given(TREE, TREE)
def test_field_sets_behave_like_sets(first: Any, second: Any) -> None:
    both = managed.union(first, second)
    assert managed.union(both, first) == both
    assert managed.difference(first, first) == {}
    assert managed.difference(first, {}) == first
    assert managed.intersection(first, first) == first
    assert managed.union(second, managed.difference(first, second)) == managed.union(
        second, managed.difference(both, second)
    )


@given(DOCUMENT, DOCUMENT)
def test_applying_twice_is_applying_once(live: Any, wanted: Any) -> None:
    once = managed.merged(live, wanted, {})
    assert managed.merged(once, wanted, {}) == once


# Rules


def broken(rule: str, value: Any, old: Any = None, shape: Any = None, **more: Any) -> list[str]:
    node = {**(shape or {}), "x-kubernetes-validations": [{"rule": rule, **more}]}
    place = cel.Place(path="spec", value=value, old=old, correlated=old is not None)
    return [cause.message for cause in cel.broken_rules(node, place)]


NAMED = {"properties": {"namespace": {}, "a-b": {}, "c.d": {}, "__e": {}, "n": {"type": "number"}}}


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("self.isSorted()", ["a", "b"]),
        ("self.all(a, self.exists_one(b, a == b))", ["a", "b"]),
        ("self.size() == 2 && self[0] < self[1]", [1, 2]),
        ("self.filter(x, x > 1).size() == 1 && self.map(x, x * 2) == [2, 4]", [1, 2]),
        ("has(self.a) && !has(self.b)", {"a": 1}),
        ("'a' in self && self.all(k, self[k] > 0)", {"a": 1}),
        ("self.matches('^[a-z]+$') && self.startsWith('ab') && self.contains('bc')", "abc"),
        ("int(self.substring(2)) == 7", "t-7"),
        ("self.split('-').size() == 2 && self.lowerAscii() == 'a-b'", "A-b"),
        ("self.find('[0-9]+') == '12' && self.findAll('[0-9]').size() == 2", "a12"),
        ("self.indexOf('b') == 1 && self.lastIndexOf('b') == 2", "abb"),
        ("self > 1 ? self < 5 : false", 3),
        ("2 * self >= 3 && self % 2 == 1", 3),
        ("self.sum() == 6", [1, 2, 3]),
        ("quantity(self).isGreaterThan(quantity('1Mi'))", "2Mi"),
        ("isQuantity(self) && quantity(self).compareTo(quantity('500m')) == 0", "0.5"),
    ],
)
def test_rules_that_hold(rule: str, value: Any) -> None:
    assert broken(rule, value) == []


def test_reserved_and_odd_names_are_escaped() -> None:
    value = {"namespace": "x", "a-b": 1, "c.d": 2, "__e": 3, "n": 4}
    rule = "self.__namespace__ == 'x' && self.a__dash__b == 1 && self.c__dot__d == 2 && self.__underscores__e == 3"
    assert broken(rule, value, shape=NAMED) == []
    assert broken("self.n == 4.0", value, shape=NAMED) == []


def test_a_rule_tells_its_message_or_itself() -> None:
    assert broken("self > 5", 3) == ["Invalid value: 3: failed rule: self > 5"]
    assert broken("self > 5", 3, message="too small") == ["Invalid value: 3: too small"]
    expression = "'at least ' + string(5)"
    assert broken("self > 5", 3, message="m", messageExpression=expression) == ["Invalid value: 3: at least 5"]
    assert broken("self > 5", 3, message="no", reason="FieldValueForbidden") == ["Forbidden: no"]


def test_a_rule_that_cannot_be_evaluated_refuses() -> None:
    (message,) = broken("self.absent > 5", {"a": 1})
    assert "rule evaluation error" in message


def test_a_transition_rule_needs_an_old_value() -> None:
    assert broken("self == oldSelf", 3) == []
    assert broken("self == oldSelf", 3, old=3) == []
    assert len(broken("self == oldSelf", 4, old=3)) == 1


# Schemas


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        ({"type": "integer"}, [1, 1.0], [1.5, "1", True, None]),
        ({"type": "number"}, [1, 1.5], ["1", False]),
        ({"type": "string", "pattern": "^a$"}, ["a"], ["a\n", "b", 1]),
        ({"type": "string", "nullable": True}, [None, "x"], [1]),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, [2], [1]),
        ({"type": "integer", "maximum": 3, "multipleOf": 2}, [2], [1, 4]),
        ({"type": "integer", "format": "int32"}, [2**31 - 1], [2**31]),
        ({"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
        ({"type": "array", "minItems": 1, "items": {"type": "string"}}, [["a"]], [[], [1]]),
        ({"type": "string", "format": "uuid"}, ["11111111-2222-3333-4444-555555555555"], ["x"]),
        ({"type": "string", "format": "date"}, ["2026-02-03"], ["2026-02-30", "x"]),
        ({"type": "string", "format": "duration"}, ["1h30m", "0"], ["x"]),
        ({"type": "string", "format": "made-up"}, ["x"], []),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}], [{}, {"a": 1, "b": 2}]),
        ({"anyOf": [{"minimum": 5}, {"maximum": 1}]}, [6, 0], [3]),
        ({"not": {"enum": [3]}}, [4], [3]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1], [0, 3]),
    ],
    ids=lambda one: json.dumps(one) if isinstance(one, dict) else "",
)
def test_values_against_schemas(shape: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert list(schema.causes_of(value, shape, "x")) == [], value
    for value in bad:
        assert list(schema.causes_of(value, shape, "x")) != [], value


def test_defaults_reach_into_lists_and_maps() -> None:
    inner = {"type": "object", "properties": {"n": {"type": "integer", "default": 7}}}
    shape = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": inner}, "made": {**inner, "default": {}}},
        "additionalProperties": inner,
    }
    value = schema.fill_defaults({"list": [{}], "other": {}}, shape)
    assert value == {"list": [{"n": 7}], "other": {"n": 7}, "made": {"n": 7}}
    value["made"]["n"] = 8
    assert shape["properties"]["made"]["default"] == {}
