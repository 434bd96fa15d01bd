"""Events of `events.k8s.io/v1` and of `v1` are the same objects in two wordings; stored are those of `v1`."""

from __future__ import annotations

from typing import Any, Final

Object = dict[str, Any]

# events.k8s.io/v1 -> v1
_WORDS: Final = {
    "note": "message",
    "regarding": "involvedObject",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_BACK: Final = {old: new for new, old in _WORDS.items()}


def to_events_k8s_io(obj: Object) -> Object:
    """A stored event in the newer wording."""
    converted = {_BACK.get(name, name): value for name, value in obj.items()}
    converted["apiVersion"] = "events.k8s.io/v1"
    return converted


def to_core(obj: Object) -> Object:
    """An event in the newer wording as it is stored."""
    converted = {_WORDS.get(name, name): value for name, value in obj.items()}
    converted["apiVersion"] = "v1"
    return converted
