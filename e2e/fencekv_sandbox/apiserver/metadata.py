"""The rules of `metadata`, the same for all kinds but for the form of names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from .errors import Cause, field_invalid, field_required, field_too_long
from .resources import Resource
from .store import Object

SUBDOMAIN_LENGTH_MAX: Final = 253
LABEL_LENGTH_MAX: Final = 63
ANNOTATIONS_BYTES_MAX: Final = 256 * 1024

_LABEL: Final = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_LABEL_1035: Final = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_SUBDOMAIN: Final = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_QUALIFIED: Final = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
_VALUE: Final = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")

_SUBDOMAIN_TEXT: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_TEXT: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and "
    "end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_LABEL_1035_TEXT: Final = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
    "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for "
    "validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_QUALIFIED_TEXT: Final = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_TEXT: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
    "for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)

_LABEL_NAMES: Final = frozenset({"namespaces"})
_LABEL_1035_NAMES: Final = frozenset({"services"})
_PATH_NAMES: Final = "rbac.authorization.k8s.io"


def _name_problems(resource: Resource, name: str) -> Iterator[str]:
    if resource.group == _PATH_NAMES:
        if name in {".", ".."}:
            yield f"may not be '{name}'"
        yield from (f"may not contain '{char}'" for char in "/%" if char in name)
        return
    if resource.storage in _LABEL_NAMES:
        pattern, text, length_max = _LABEL, _LABEL_TEXT, LABEL_LENGTH_MAX
    elif resource.storage in _LABEL_1035_NAMES:
        pattern, text, length_max = _LABEL_1035, _LABEL_1035_TEXT, LABEL_LENGTH_MAX
    else:
        pattern, text, length_max = _SUBDOMAIN, _SUBDOMAIN_TEXT, SUBDOMAIN_LENGTH_MAX
    if len(name) > length_max:
        yield f"must be no more than {length_max} bytes"
    if not pattern.match(name):
        yield text


def _key_problems(key: str) -> Iterator[str]:
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or len(prefix) > SUBDOMAIN_LENGTH_MAX or not _SUBDOMAIN.match(prefix)):
        yield "prefix part " + (_SUBDOMAIN_TEXT if prefix else "must be non-empty")
    if not name:
        yield "name part must be non-empty"
    elif len(name) > LABEL_LENGTH_MAX:
        yield f"name part must be no more than {LABEL_LENGTH_MAX} bytes"
    if not _QUALIFIED.match(name):
        yield _QUALIFIED_TEXT


def metadata_causes(resource: Resource, obj: Object) -> Iterator[Cause]:
    """What is wrong with an object's metadata."""
    meta = obj["metadata"]
    name = meta.get("name", "")
    if not name:
        yield field_required("metadata.name", "name or generateName is required")
    else:
        for problem in _name_problems(resource, name):
            yield field_invalid("metadata.name", name, problem)
    for key, value in (meta.get("labels") or {}).items():
        for problem in _key_problems(key):
            yield field_invalid("metadata.labels", key, problem)
        if len(value) > LABEL_LENGTH_MAX:
            yield field_invalid("metadata.labels", value, f"must be no more than {LABEL_LENGTH_MAX} bytes")
        if not _VALUE.match(value):
            yield field_invalid("metadata.labels", value, _VALUE_TEXT)
    yield from _annotation_causes(meta.get("annotations") or {})
    for finalizer in meta.get("finalizers") or ():
        for problem in _key_problems(finalizer):
            yield field_invalid("metadata.finalizers", finalizer, problem)
    yield from _owner_causes(meta.get("ownerReferences") or ())


def _annotation_causes(annotations: dict[str, str]) -> Iterator[Cause]:
    size = 0
    for key, value in annotations.items():
        for problem in _key_problems(key.lower()):
            yield field_invalid("metadata.annotations", key, problem)
        size += len(key.encode()) + len(value.encode())
    if size > ANNOTATIONS_BYTES_MAX:
        yield field_too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX)


def _owner_causes(owners: Any) -> Iterator[Cause]:
    controllers = 0
    for index, owner in enumerate(owners):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                place = "version" if field == "apiVersion" else field
                yield field_invalid(
                    f"metadata.ownerReferences[{index}].{field}",
                    owner.get(field, ""),
                    f"{place} must not be empty",
                )
        controllers += bool(owner.get("controller"))
    if controllers > 1:
        yield field_invalid(
            "metadata.ownerReferences", owners, "Only one reference can have Controller set to true"
        )


def metadata_update_causes(obj: Object, old: Object) -> Iterator[Cause]:
    """What an update may not change."""
    for field in ("name", "namespace", "uid", "creationTimestamp"):
        new, was = obj["metadata"].get(field), old["metadata"].get(field)
        if new != was:
            yield field_invalid(f"metadata.{field}", new, "field is immutable")
