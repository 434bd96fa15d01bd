"""JSON patch (RFC 6902) and merge patch (RFC 7386), as pure functions.

Invariants:
  * The document that is patched is never changed; a patch that fails changes nothing.
"""

from __future__ import annotations

from typing import Any, Final

from .errors import ApiError, bad_request
from .store import copied

OPERATIONS_MAX: Final = 10_000


def merge_patch(document: Any, patch: Any) -> Any:
    """Objects merge, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return copied(patch)
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _unprocessable(message: str) -> ApiError:
    """A patch that is well formed, but cannot be applied to this object."""
    assert message
    return ApiError(422, "Invalid", "the server rejected our request due to an error in our request", details={})


def json_patch(document: Any, operations: Any) -> Any:
    """Apply the operations in order."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into a list of operations")
    if len(operations) > OPERATIONS_MAX:
        raise ApiError(
            413,
            "RequestEntityTooLarge",
            f"The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {len(operations)}",
        )
    document = copied(document)
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise bad_request("json patch operation without a path")
        document = _apply(document, operation)
    return document


def _steps(path: str) -> list[str]:
    if not path:
        return []
    if not path.startswith("/"):
        raise _unprocessable(f"jsonpatch path does not start with a slash: {path}")
    return [step.replace("~1", "/").replace("~0", "~") for step in path[1:].split("/")]


def _index(step: str, length: int) -> int:
    if not step.lstrip("-").isdigit():
        raise _unprocessable(f"jsonpatch: not a list index: {step}")
    index = int(step)
    if not 0 <= index < length:
        raise _unprocessable(f"jsonpatch: Unable to access invalid index: {step}")
    return index


def _get(document: Any, steps: list[str]) -> Any:
    for step in steps:
        if isinstance(document, list):
            document = document[_index(step, len(document))]
        elif isinstance(document, dict) and step in document:
            document = document[step]
        else:
            raise _unprocessable(f"jsonpatch: path does not exist: /{'/'.join(steps)}")
    return document


def _add(document: Any, steps: list[str], value: Any) -> Any:
    if not steps:
        return value
    parent, last = _get(document, steps[:-1]), steps[-1]
    if isinstance(parent, list):
        at = len(parent) if last == "-" else _index(last, len(parent) + 1)
        parent.insert(at, value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise _unprocessable(f"jsonpatch: add operation does not apply: {'/'.join(steps)}")
    return document


def _remove(document: Any, steps: list[str]) -> Any:
    if not steps:
        raise _unprocessable("jsonpatch: the whole document cannot be removed")
    parent, last = _get(document, steps[:-1]), steps[-1]
    if isinstance(parent, list):
        del parent[_index(last, len(parent))]
    elif isinstance(parent, dict) and last in parent:
        del parent[last]
    else:
        raise _unprocessable(f"jsonpatch: remove operation does not apply: /{'/'.join(steps)}")
    return document


def _replace(document: Any, steps: list[str], value: Any) -> Any:
    if not steps:
        return value
    _get(document, steps)
    parent, last = _get(document, steps[:-1]), steps[-1]
    parent[_index(last, len(parent)) if isinstance(parent, list) else last] = value
    return document


def _apply(document: Any, operation: dict[str, Any]) -> Any:
    steps = _steps(operation["path"])
    match operation.get("op"):
        case "add":
            return _add(document, steps, operation.get("value"))
        case "remove":
            return _remove(document, steps)
        case "replace":
            return _replace(document, steps, operation.get("value"))
        case "test":
            try:
                same = _get(document, steps) == operation.get("value")
            except ApiError:
                same = operation.get("value") is None
            if not same:
                raise _unprocessable(f"testing path {operation['path']} value failed")
            return document
        case "move":
            source = _steps(str(operation.get("from")))
            value = _get(document, source)
            return _add(_remove(document, source), steps, value)
        case "copy":
            return _add(document, steps, copied(_get(document, _steps(str(operation.get("from"))))))
        case unknown:
            raise bad_request(f"Unexpected kind: {unknown}")
