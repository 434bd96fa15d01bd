"""What the records of a load say: pauses, failures, losses, stale acknowledgements. Pure.

Invariants:
  * Times are of one clock, the client's: nothing here compares clocks of two machines.
  * Nothing is forgiven: a put that was acknowledged must be there with its value and its very version; one that
    was not may be there or not.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """An acknowledged put."""

    key: str
    partition: str
    epoch: int
    seq: int
    sent: float
    answered: float
    shard: str  # empty: of the steady writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A put that was not acknowledged."""

    key: str
    partition: str  # empty: not known
    error: str
    detail: str
    sent: float
    answered: float
    shard: str


@dataclass(slots=True, kw_only=True)
class Records:
    """What a load wrote down."""

    puts: list[Put] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    found: dict[str, tuple[str, str]] = field(default_factory=dict)  # key: value and version, at the end
    partitions: tuple[str, ...] = ()
    stopped: float | None = None  # when the load was told to stop. None: it was not.
    read_error: str = ""

    def add(self, line: Line) -> None:
        """Takes a line of the load."""
        if "read" in line:
            self.found[line["read"]] = (line["value"], line["version"])
        elif "end" in line:
            self.stopped, self.read_error = line["stopped"], line["read_error"]
        elif "begin" in line:
            self.partitions = tuple(line["partitions"])
        elif "error" in line:
            self.failures.append(
                Failure(
                    key=line["key"],
                    partition=line.get("partition", ""),
                    error=line["error"],
                    detail=line["detail"],
                    sent=line["sent"],
                    answered=line["at"],
                    shard=line.get("shard", ""),
                )
            )
        else:
            epoch, _, seq = line["version"].partition(".")
            self.puts.append(
                Put(
                    key=line["key"],
                    partition=line["partition"],
                    epoch=int(epoch),
                    seq=int(seq),
                    sent=line["sent"],
                    answered=line["at"],
                    shard=line.get("shard", ""),
                )
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The figures of one load.

    `failed` and `unknown` are requests of the steady writer, whose SDK repeats what may be repeated for 10 s; what
    the stubborn ones were refused is as it should be. `lost` and `stale` count the acknowledged puts of both.
    """

    acknowledged: int
    pause_seconds: float  # the longest between two acknowledgements of one partition
    slowest_seconds: float  # the longest that one acknowledged request took
    failed: int
    unknown: int
    lost: int
    stale: int
    doubled: int  # puts that share a place in a journal
    stubborn_acknowledged: int
    examples: tuple[str, ...]  # of what is wrong


def judge(records: Records) -> Verdict:
    """Counts.

    Raises:
        ValueError: the load did not end, or could not read.
    """
    if records.stopped is None or records.read_error:
        raise ValueError(f"the load has no end, or could not be read back: {records.read_error or 'cut short'}")
    steady = [put for put in records.puts if not put.shard]
    failures = [failure for failure in records.failures if not failure.shard]
    lost = [put for put in records.puts if not _is_there(records, put)]
    stale = list(stale_puts(records.puts))
    places = {(put.partition, put.seq) for put in records.puts}
    return Verdict(
        acknowledged=len(records.puts),
        pause_seconds=max(pauses(steady, records.partitions, until=records.stopped).values()),
        slowest_seconds=max((put.answered - put.sent for put in steady), default=0.0),
        failed=sum(failure.error != "Unknown" for failure in failures),
        unknown=sum(failure.error == "Unknown" for failure in failures),
        lost=len(lost),
        stale=len(stale),
        doubled=len(records.puts) - len(places),
        stubborn_acknowledged=len(records.puts) - len(steady),
        examples=(
            *(f"lost: {put}, found {records.found.get(put.key)}" for put in lost[:3]),
            *(f"stale: {put}" for put in stale[:3]),
            *(f"failed: {failure}" for failure in failures[:3]),
        ),
    )


def pauses(puts: Iterable[Put], partitions: Iterable[str], *, until: float) -> dict[str, float]:
    """The longest time between two acknowledgements, or without one up to `until`, for each partition.

    A partition that acknowledged nothing was paused without end.
    """
    times: dict[str, list[float]] = {partition: [] for partition in partitions}
    for put in puts:
        times[put.partition].append(put.answered)
    longest: dict[str, float] = {}
    for partition, each in times.items():
        ends = [*sorted(each), max(until, *each)] if each else [-math.inf, until]
        longest[partition] = max(after - before for before, after in itertools.pairwise(ends))
    return longest


def handovers(records: Records) -> list[float]:
    """How long each partition acknowledged nothing at each change of its owner, in seconds.

    From the steady writer's last acknowledgement under an epoch to its first one under a higher.
    """
    last: dict[str, Put] = {}  # by partition, of the highest epoch so far
    found: list[float] = []
    for put in sorted(records.puts, key=lambda put: put.answered):
        before = last.get(put.partition)
        if put.shard or (before is not None and put.epoch < before.epoch):
            continue
        if before is not None and put.epoch > before.epoch:
            found.append(put.answered - before.answered)
        last[put.partition] = put
    return found


def again_seconds(records: Records, *, since: float) -> float:
    """From a moment on, until every partition had acknowledged a put; without end if one did not."""
    first = dict.fromkeys(records.partitions, math.inf)
    for put in records.puts:
        if not put.shard and put.answered >= since:
            first[put.partition] = min(first[put.partition], put.answered)
    return max(first.values()) - since


def strays(records: Records, *, since: float, epochs: Mapping[str, int]) -> list[Failure]:
    """Failures of the steady writer that the fault does not explain.

    Explained is what was under way at some time from `since`, a moment before the fault, until the partition was
    back: the first acknowledgement under a higher epoch than `epochs`, which names the partitions that were hit.
    """
    back = _back(records.puts, epochs)
    return [
        failure
        for failure in records.failures
        if not failure.shard
        and not (
            failure.partition in epochs
            and failure.answered >= since
            and failure.sent < back.get(failure.partition, math.inf)
        )
    ]


def waited_seconds(records: Records, *, since: float, epochs: Mapping[str, int]) -> float:
    """How long the last of the partitions of `epochs` was missed; without end if one did not come back.

    A partition is missed from the first request to it on that was not carried out under its old epoch, sent before
    or after `since`, which is a moment before the fault, until the first acknowledgement under a higher one. That
    is no longer than its users waited, also where each partition is asked for only now and then.
    """
    back, longest = _back((put for put in records.puts if not put.shard), epochs), 0.0
    asked: defaultdict[str, list[float]] = defaultdict(list)
    requests: list[Put | Failure] = [*records.puts, *records.failures]
    for request in requests:
        was_served = isinstance(request, Put) and request.epoch <= epochs.get(request.partition, 0)
        if not request.shard and not was_served and request.answered >= since:
            asked[request.partition].append(max(request.sent, since))
    for partition in epochs:
        began = min(asked[partition], default=since)
        longest = max(longest, back.get(partition, math.inf) - began)
    return longest


def _back(puts: Iterable[Put], epochs: Mapping[str, int]) -> dict[str, float]:
    """When each partition first acknowledged under a higher epoch; without those that did not."""
    first: dict[str, float] = {}
    for put in puts:
        if put.partition in epochs and put.epoch > epochs[put.partition]:
            first[put.partition] = min(put.answered, first.get(put.partition, math.inf))
    return first


def stale_puts(puts: Iterable[Put]) -> Iterable[Put]:
    """Puts acknowledged under an epoch though a higher one had acknowledged before they were even sent."""
    first: defaultdict[str, dict[int, float]] = defaultdict(dict)
    chosen = list(puts)
    for put in chosen:
        known = first[put.partition].get(put.epoch)
        first[put.partition][put.epoch] = put.answered if known is None else min(known, put.answered)
    for put in chosen:
        higher = [at for epoch, at in first[put.partition].items() if epoch > put.epoch]
        if higher and min(higher) < put.sent:
            yield put


def _is_there(records: Records, put: Put) -> bool:
    return records.found.get(put.key) == (f"value of {put.key}", f"{put.epoch}.{put.seq}")
