"""What the API server answers when it cannot do what was asked.

Every refusal leaves this package as a Kubernetes `Status` object; this module is the only place that
knows its shape and words.

Invariants:
  * An `ApiError` never changes state: whoever raises it has written nothing.
  * `code` and `reason` belong together as the real server pairs them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One field that is wrong, as it stands in `details.causes`."""

    reason: str
    message: str
    field: str


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        return "null"
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def field_invalid(field: str, value: Any, detail: str) -> Cause:
    """The value is of the right type, but may not be."""
    return Cause(reason="FieldValueInvalid", message=f"Invalid value: {_shown(value)}: {detail}", field=field)


def field_type(field: str, value: Any, detail: str) -> Cause:
    """The value has the wrong type."""
    return Cause(reason="FieldValueTypeInvalid", message=f"Invalid value: {_shown(value)}: {detail}", field=field)


def field_required(field: str, detail: str = "") -> Cause:
    """The field is missing."""
    message = f"Required value: {detail}" if detail else "Required value"
    return Cause(reason="FieldValueRequired", message=message, field=field)


def field_forbidden(field: str, detail: str) -> Cause:
    """The field may not be set or changed here."""
    return Cause(reason="FieldValueForbidden", message=f"Forbidden: {detail}", field=field)


def field_duplicate(field: str, value: Any) -> Cause:
    """The value stands in a list more than once."""
    return Cause(reason="FieldValueDuplicate", message=f"Duplicate value: {_shown(value)}", field=field)


def field_not_supported(field: str, value: Any, supported: Sequence[Any]) -> Cause:
    """The value is none of an enumeration."""
    choices = ", ".join(_shown(choice) for choice in supported)
    message = f"Unsupported value: {_shown(value)}: supported values: {choices}"
    return Cause(reason="FieldValueNotSupported", message=message, field=field)


def field_too_long(field: str, length_max: int, unit: str = "bytes") -> Cause:
    """The text is longer than allowed."""
    message = f"Too long: may not be more than {length_max} {unit}"
    return Cause(reason="FieldValueTooLong", message=message, field=field)


def field_too_many(field: str, count: int, count_max: int) -> Cause:
    """The list or map has more items than allowed."""
    message = f"Too many: {count}: must have at most {count_max} items"
    return Cause(reason="FieldValueTooMany", message=message, field=field)


class ApiError(Exception):
    """A refusal, ready to be sent."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = dict(headers or {})

    def document(self) -> Object:
        """The `Status` object of this refusal."""
        status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = dict(self.details)
        status["code"] = self.code
        return status


class PageNotFound(Exception):
    """No route: the real server answers in plain text, without a Status."""


def qualified(plural_or_kind: str, group: str) -> str:
    """`leases` + `coordination.k8s.io` -> `leases.coordination.k8s.io`; the core group adds nothing."""
    return f"{plural_or_kind}.{group}" if group else plural_or_kind


def _details(plural: str, group: str, name: str, **more: Any) -> Object:
    details: Object = {"name": name}
    if group:
        details["group"] = group
    details["kind"] = plural
    details.update(more)
    return details


def not_found(plural: str, group: str, name: str) -> ApiError:
    """The object does not exist."""
    message = f'{qualified(plural, group)} "{name}" not found'
    return ApiError(404, "NotFound", message, details=_details(plural, group, name))


def already_exists(plural: str, group: str, name: str) -> ApiError:
    """The object exists already."""
    message = f'{qualified(plural, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details=_details(plural, group, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(plural: str, group: str, name: str, why: str = MODIFIED) -> ApiError:
    """The write was made for another version of the object."""
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
    return ApiError(409, "Conflict", message, details=_details(plural, group, name))


def failed_precondition(kind: str, group: str, name: str, *, field: str, asked: str, found: str) -> ApiError:
    """A deletion demanded another UID or version than the object has."""
    ending = {
        "UID": "The object might have been deleted and then recreated",
        "ResourceVersion": "The object might have been modified",
    }[field]
    why = f"the {field} in the precondition ({asked}) does not match the {field} in record ({found}). {ending}"
    return conflict(kind, group, name, why)


def another_uid(plural: str, group: str, namespace: str, name: str, *, asked: str, found: str) -> ApiError:
    """An update demanded another UID than the object has; `found` is empty where there is no object."""
    where = "/".join(part for part in ("registry", plural, namespace, name) if part)
    why = (
        f"StorageError: invalid object, Code: 4, Key: /{where}, ResourceVersion: 0, AdditionalErrorMsg: "
        f"Precondition failed: UID in precondition: {asked}, UID in object meta: {found}"
    )
    return conflict(plural, group, name, why)


def unusable_patch(document: Any, why: str) -> ApiError:
    """The patch itself is well formed, but what comes out of it cannot be decoded."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    cause = field_invalid("patch", text, why)
    details = {"causes": [_cause(cause)]}
    return ApiError(422, "Invalid", f' "" is invalid: patch: {cause.message}', details=details)


def internal(message: str) -> ApiError:
    """What the real server answers with a bare 500."""
    return ApiError(500, "", message)


def apply_conflict(causes: Sequence[Cause]) -> ApiError:
    """Server-side apply would take fields from other managers."""
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0].message}: {causes[0].field}"
    else:
        parts = []
        for who in dict.fromkeys(cause.message for cause in causes):
            fields = "".join(f"\n- {cause.field}" for cause in causes if cause.message == who)
            parts.append(f"{who.replace('conflict with', 'conflicts with', 1)}:{fields}")
        message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(parts)
    return ApiError(409, "Conflict", message, details={"causes": [_cause(cause) for cause in causes]})


def _cause(cause: Cause) -> Object:
    return {"reason": cause.reason, "message": cause.message, "field": cause.field}


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """The object breaks its schema or its kind's rules."""
    assert causes, "an Invalid names at least one cause"
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    body = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    message = f'{qualified(kind, group)} "{name}" is invalid: {body}'
    details = _details(kind, group, name, causes=[_cause(cause) for cause in causes])
    return ApiError(422, "Invalid", message, details=details)


def bad_request(message: str) -> ApiError:
    """The request itself makes no sense."""
    return ApiError(400, "BadRequest", message)


def forbidden(plural: str, group: str, name: str, why: str, causes: Sequence[Cause] = ()) -> ApiError:
    """The request is understood, and refused."""
    message = f'{qualified(plural, group)} "{name}" is forbidden: {why}'
    details = _details(plural, group, name)
    if causes:
        details["causes"] = [_cause(cause) for cause in causes]
    return ApiError(403, "Forbidden", message, details=details)


def unauthorized() -> ApiError:
    """The bearer token is missing or unknown."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def resource_not_found() -> ApiError:
    """The group and version are served, but no such resource in them."""
    message = "the server could not find the requested resource"
    return ApiError(404, "NotFound", message, details={})


def method_not_allowed() -> ApiError:
    """The resource is served, but not with this verb."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, details={})


def unsupported_media_type(supported: Sequence[str]) -> ApiError:
    """The body's content type is not understood."""
    message = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(
        supported
    )
    return ApiError(415, "UnsupportedMediaType", message)


def unsupported_patch_type() -> ApiError:
    """The same, as a built-in resource answers to a PATCH."""
    return ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", details={})


def not_acceptable(supported: Sequence[str]) -> ApiError:
    """None of the media types in `Accept` is served."""
    message = "406: Not Acceptable\n\nAvailable representations: " + ", ".join(supported)
    return ApiError(406, "NotAcceptable", message, details={})


def expired(message: str) -> ApiError:
    """The asked resourceVersion lies before what is remembered."""
    return ApiError(410, "Expired", message)


def too_large_version(asked: int, current: int) -> ApiError:
    """The asked resourceVersion has not been reached yet."""
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    details = {"causes": [cause], "retryAfterSeconds": 1}
    return ApiError(504, "Timeout", message, details=details, headers={"Retry-After": "1"})


def too_many_requests(retry_after_seconds: int) -> ApiError:
    """Come back later, slower."""
    message = "too many requests, please try again later"
    details = {"retryAfterSeconds": retry_after_seconds}
    headers = {"Retry-After": str(retry_after_seconds)}
    return ApiError(429, "TooManyRequests", message, details=details, headers=headers)


def unavailable(message: str = "the server is currently unable to handle the request") -> ApiError:
    """Nothing is wrong with the request; the server is away."""
    return ApiError(503, "ServiceUnavailable", message)
