"""What a shard counts, in the text form that Prometheus reads.

Invariants:
  * The number of series is bounded by routes, errors and partitions: nothing that a client sends becomes a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

_REPLICA_GAUGES: Final = (
    ("fencekv_partition_epoch", "epoch", "Highest epoch that this replica knows."),
    ("fencekv_partition_last_seq", "lastSeq", "Last journal entry that this replica holds."),
    ("fencekv_partition_commit_seq", "commitSeq", "Last journal entry known to be committed."),
    ("fencekv_partition_applied_seq", "appliedSeq", "Last journal entry that is in the tables."),
    ("fencekv_partition_serving", "serving", "1 if this replica serves as owner."),
    ("fencekv_partition_open_seconds", "openSeconds", "How long opening took, replay included."),
    ("fencekv_partition_replayed_entries", "replayedEntries", "Journal entries replayed by opening."),
    ("fencekv_partition_rounds", "rounds", "Commit rounds that this owner has made under its epoch."),
    ("fencekv_partition_overlay_entries", "overlayEntries", "Journal entries in memory, not yet in the tables."),
    ("fencekv_partition_overlay_bytes", "overlayBytes", "Bytes of them."),
)


class Metrics:
    """Counters of requests, and the text with them."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, float] = {}

    def count(self, route: str, outcome: str, seconds: float) -> None:
        """Counts one answered request."""
        self._requests[route, outcome] += 1
        self._seconds[route] = self._seconds.get(route, 0.0) + seconds

    def render(self, report: Mapping[str, Any], *, ready: bool) -> str:
        """The text of /metrics; `report` is the shard's own report."""
        lines = _family("fencekv_requests_total", "counter", "Answered requests by route and outcome.")
        for (route, outcome), count in sorted(self._requests.items()):
            lines.append(f'fencekv_requests_total{{route="{route}",outcome="{outcome}"}} {count}')
        lines += _family("fencekv_request_seconds_total", "counter", "Seconds spent on answered requests.")
        for route, seconds in sorted(self._seconds.items()):
            lines.append(f'fencekv_request_seconds_total{{route="{route}"}} {seconds:.6f}')
        lines += _family("fencekv_ready", "gauge", "1 if the shard is ready.")
        lines.append(f"fencekv_ready {int(ready)}")
        lines += _family("fencekv_session_renewal", "gauge", "Number of the session's last renewal.")
        lines.append(f"fencekv_session_renewal {_number(report.get('renewal'))}")
        lines += _lateness(report.get("renewalLateness"))
        lines += _replicas(report.get("replicas") or [])
        return "\n".join(lines) + "\n"


def _replicas(replicas: Iterable[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for name, member, text in _REPLICA_GAUGES:
        lines += _family(name, "gauge", text)
        for replica in replicas:
            if member not in replica:
                continue  # only an owner has it
            labels = f'partition="{_label(replica.get("partition"))}",role="{_label(replica.get("role"))}"'
            lines.append(f"{name}{{{labels}}} {_number(replica.get(member))}")
    return lines


def _lateness(told: Mapping[str, Any] | None) -> list[str]:
    if told is None:
        return []
    name = "fencekv_session_renewal_lateness_seconds"
    lines = _family(name, "histogram", "How long after it was due a renewal was sent.")
    lines += [f'{name}_bucket{{le="{bound:g}"}} {count}' for bound, count in told["buckets"]]
    lines.append(f'{name}_bucket{{le="+Inf"}} {told["count"]}')
    return [*lines, f"{name}_sum {told['sum']:.6f}", f"{name}_count {told['count']}"]


def _family(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _label(value: object) -> str:
    return str(value or "").replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(int(value) if isinstance(value, int) else 0)
