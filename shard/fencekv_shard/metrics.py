"""What a shard shows Prometheus: the wire's counts, and the rest from the shard's own report.

Invariants:
  * The number of series is bounded by routes, errors and partitions: nothing that a client sends becomes a label.
  * A partition has series of its own for what is looked at one by one: who serves it, under which epoch, with how
    many copies, how far it is. What else replicas tell is summed over them, by role.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from fencekv.exposition import Family, Kind, Samples, Value, text

_REQUESTS: Final = "routes x outcomes"
_PARTITIONS: Final = "partitions x roles"

REQUESTS: Final = Family(
    name="fencekv_requests_total",
    kind=Kind.COUNTER,
    text="Answered requests by route and outcome: ok, or the error's name.",
    labels=("route", "outcome"),
    series=_REQUESTS,
)
REQUEST_SECONDS: Final = Family(
    name="fencekv_request_seconds_total",
    kind=Kind.COUNTER,
    text="Seconds spent on answered requests.",
    labels=("route",),
    series="routes",
)
READY: Final = Family(name="fencekv_ready", kind=Kind.GAUGE, text="1 if the shard is ready.")
RENEWAL: Final = Family(
    name="fencekv_session_renewal", kind=Kind.GAUGE, text="Number of the session's last renewal."
)
VALID: Final = Family(
    name="fencekv_session_valid_seconds",
    kind=Kind.GAUGE,
    text="How long the session may still act without another renewal; 0: past its deadline.",
)
LATENESS: Final = Family(
    name="fencekv_session_renewal_lateness_seconds",
    kind=Kind.HISTOGRAM,
    text="How long after it was due a renewal was sent.",
    series="10 buckets",
)
REFUSALS: Final = Family(
    name="fencekv_gate_refusals_total",
    kind=Kind.COUNTER,
    text="Refusals by gate: role (not the owner here), deadline, fsynced (the deadline passed before the "
    "acknowledgement), promise, standby, client.",
    labels=("gate",),
    series="gates",
)
CHANGES: Final = Family(
    name="fencekv_ownership_changes_total",
    kind=Kind.COUNTER,
    text="What happened to this shard's ownership: granted, opened (it serves), deposed, moving, moved.",
    labels=("change",),
    series="changes",
)
COMMIT_SECONDS: Final = Family(
    name="fencekv_commit_seconds",
    kind=Kind.HISTOGRAM,
    text="What a writer thread spent on one commit with its fsync; opening a replica counts here too.",
    series="13 buckets",
)
ROUND_ENTRIES: Final = Family(
    name="fencekv_round_entries",
    kind=Kind.HISTOGRAM,
    text="Journal entries that one commit round of an owner here made durable.",
    series="12 buckets",
)
ROUND_SECONDS: Final = Family(
    name="fencekv_round_seconds",
    kind=Kind.HISTOGRAM,
    text="From the first request of a commit round until the round was committed, by standbys too where they "
    "count: its answers leave then.",
    series="13 buckets",
)
GATHER_SECONDS: Final = Family(
    name="fencekv_round_gather_seconds",
    kind=Kind.HISTOGRAM,
    text="How long a round waited for clients that were just answered; rounds that did not wait are left out.",
    series="8 buckets",
)
TAKEOVER_SECONDS: Final = Family(
    name="fencekv_takeover_seconds",
    kind=Kind.HISTOGRAM,
    text="From the grant that this shard saw to its serving the partition.",
    series="12 buckets",
)
MOVE_SECONDS: Final = Family(
    name="fencekv_planned_move_seconds",
    kind=Kind.HISTOGRAM,
    text="From the start of a planned move away to the release on the partition Lease.",
    series="12 buckets",
)
DEPTH: Final = Family(
    name="fencekv_queue_depth",
    kind=Kind.GAUGE,
    text="What waits: commits for a writer thread, requests held during a planned move, requests for a round, "
    "requests that are fsynced for standbys.",
    labels=("queue",),
    series="queues",
)
DISK_FREE: Final = Family(
    name="fencekv_disk_free_bytes", kind=Kind.GAUGE, text="Bytes that are free on the disk of the replicas."
)
DISK_RESERVE: Final = Family(
    name="fencekv_disk_reserve_bytes",
    kind=Kind.GAUGE,
    text="Bytes of them that are kept for deletes and ownership: with less, writes are refused.",
)
_FROM_METERS: Final = (
    # family, member of the report's `meters`
    (REFUSALS, "refusals"),
    (CHANGES, "changes"),
    (DEPTH, "depths"),
    (COMMIT_SECONDS, "commitSeconds"),
    (ROUND_ENTRIES, "roundEntries"),
    (ROUND_SECONDS, "roundSeconds"),
    (GATHER_SECONDS, "gatherSeconds"),
    (TAKEOVER_SECONDS, "takeoverSeconds"),
    (MOVE_SECONDS, "moveSeconds"),
)


def _of_partition(name: str, what: str) -> Family:
    return Family(
        name=f"fencekv_partition_{name}",
        kind=Kind.GAUGE,
        text=what,
        labels=("partition", "role"),
        series=_PARTITIONS,
    )


def _summed(name: str, what: str) -> Family:
    labels = ("role",)
    return Family(name=f"fencekv_partition_{name}", kind=Kind.GAUGE, text=what, labels=labels, series="roles")


_REPLICAS: Final = (
    # family, member of a replica in the report
    (_of_partition("epoch", "Highest epoch that this replica knows."), "epoch"),
    (_of_partition("last_seq", "Last journal entry that this replica holds."), "lastSeq"),
    (_of_partition("commit_seq", "Last journal entry known to be committed."), "commitSeq"),
    (_of_partition("serving", "1 if this replica serves as owner."), "serving"),
)
IN_SYNC: Final = _of_partition("in_sync", "Members of the in-sync set, the owner included; its owner alone tells.")
_SUMS: Final = (
    (_summed("open_seconds", "How long opening took, replay included; a sum over replicas."), "openSeconds"),
    (_summed("replayed_entries", "Journal entries replayed by opening; a sum over replicas."), "replayedEntries"),
    (
        _summed("overlay_entries", "Journal entries in memory, not yet in the tables; a sum over replicas."),
        "overlayEntries",
    ),
    (_summed("overlay_bytes", "Bytes of them; a sum over replicas."), "overlayBytes"),
)

FAMILIES: Final[tuple[Family, ...]] = (
    *(REQUESTS, REQUEST_SECONDS, READY, RENEWAL, VALID, LATENESS, DISK_FREE, DISK_RESERVE),
    *(family for family, _ in _FROM_METERS),
    *(family for family, _ in _REPLICAS),
    IN_SYNC,
    *(family for family, _ in _SUMS),
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
        return text(self._collect(report, ready=ready)).decode()

    def _collect(self, report: Mapping[str, Any], *, ready: bool) -> Iterator[tuple[Family, Samples]]:
        yield REQUESTS, dict(sorted(self._requests.items()))
        yield REQUEST_SECONDS, {(route,): seconds for route, seconds in sorted(self._seconds.items())}
        yield READY, {(): float(ready)}
        yield RENEWAL, {(): float(report.get("renewal") or 0)}
        yield VALID, _single(report.get("validSeconds"))
        yield LATENESS, _single(report.get("renewalLateness"))
        yield DISK_FREE, _single(report.get("diskFreeBytes"))
        yield DISK_RESERVE, _single(report.get("diskReserveBytes"))
        told = report.get("meters") or {}
        for family, member in _FROM_METERS:
            yield family, _by_label(told.get(member)) if family.labels else _single(told.get(member))
        yield from _of_replicas(report.get("replicas") or [])


def _single(value: Value | None) -> Samples:
    return {} if value is None else {(): value}


def _by_label(values: Mapping[str, float] | None) -> Samples:
    return {(label,): value for label, value in (values or {}).items()}


def _of_replicas(replicas: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Family, Samples]]:
    named = [((str(replica["partition"]), str(replica["role"])), replica) for replica in replicas]
    for family, member in _REPLICAS:
        yield family, {labels: float(replica[member]) for labels, replica in named if member in replica}
    owned = [(labels, replica) for labels, replica in named if labels[1] == "owner"]
    yield IN_SYNC, {labels: float(len(replica["members"])) for labels, replica in owned if "members" in replica}
    for family, member in _SUMS:
        yield family, _sums(replicas, member)


def _sums(replicas: Iterable[Mapping[str, Any]], member: str) -> Samples:
    sums: dict[tuple[str, ...], float] = {}
    for replica in replicas:
        if member in replica:
            role = (str(replica["role"]),)
            sums[role] = sums.get(role, 0.0) + float(replica[member])
    return sums
