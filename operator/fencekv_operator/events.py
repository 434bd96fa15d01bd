"""Kubernetes Events: one for each transition, for people who ask `kubectl describe` what happened.

Invariants:
  * An Event is an aid, never a record that something decides by: when the API server is away, or too many come at
    once, Events are dropped and counted, and nothing waits for them.
  * The same transition has the same name, whoever reports it and however often: repetition raises a count.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fencekv.clock import Clock
from fencekv.kube import EVENTS, KV_PARTITIONS, Kube, KubeAlreadyExists, KubeError, Unclear
from fencekv_operator.facts import Reason, Transition
from fencekv_operator.status import timestamp

Object = dict[str, Any]
log = logging.getLogger(__name__)

COMPONENT: Final = "fencekv-operator"
QUEUE_MAX: Final = 512
BACKLOG_PAUSE_SECONDS: Final = 0.05  # after a Normal one while more wait: others need the API server
COUNTS_MAX: Final = 2048
MESSAGE_CHARACTERS_MAX: Final = 1000
# Conditions whose first appearance as False says nothing.
SHOWN: Final = ("Ready", "Stalled", "Degraded", "Unprotected", "Blocked", "RecordSuspect")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What an Event will say. `about` is a reference to the object."""

    namespace: str
    about_kind: str
    about_api_version: str
    about_name: str
    about_uid: str
    warning: bool
    reason: str
    message: str
    once: str = ""  # names one single occurrence, such as an epoch; empty: repetitions count as one Event.

    @property
    def name(self) -> str:
        """The Event's name: the same for the same occurrence."""
        text = "\n".join((self.about_uid, self.about_kind, self.reason, self.once or self.message))
        return f"{self.about_name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def notice(obj: Mapping[str, Any], *, warning: bool, reason: str, message: str, once: str = "") -> Notice:
    """A Notice about an object."""
    return Notice(
        namespace=obj["metadata"]["namespace"],
        about_kind=obj["kind"],
        about_api_version=obj["apiVersion"],
        about_name=obj["metadata"]["name"],
        about_uid=obj["metadata"]["uid"],
        warning=warning,
        reason=reason,
        message=message[:MESSAGE_CHARACTERS_MAX],
        once=once,
    )


def condition_notices(obj: Mapping[str, Any], new: Sequence[Mapping[str, Any]]) -> list[Notice]:
    """One Notice for each condition whose status the new conditions change."""
    old = {each["type"]: each.get("status") for each in (obj.get("status") or {}).get("conditions") or ()}
    notices = []
    # Of a new table's partitions each becomes ready: the table says so.
    is_born = obj["kind"] == KV_PARTITIONS.kind and not old
    for condition in new:
        kind, status = condition["type"], condition["status"]
        good_when = "True" if kind == "Ready" else "False"
        first = kind not in old
        if kind not in SHOWN or status == old.get(kind) or (first and (status == "False")):
            continue
        if is_born and kind == "Ready":
            continue
        good = status == good_when
        reason = kind if status == "True" else f"Not{kind}"
        message = ": ".join(part for part in (condition["reason"], condition["message"]) if part)
        notices.append(
            notice(obj, warning=not good, reason=reason, message=message, once=condition["lastTransitionTime"])
        )
    return notices


def transition_notice(partition: Mapping[str, Any], transition: Transition) -> Notice | None:
    """The Notice of an owner change. None: it is the first owner, and that the partition is Ready will be said."""
    change = transition
    if change.reason is Reason.CREATED:
        return None
    was = change.from_pod or "nobody"
    text = (
        f"owner {was} with epoch {change.from_epoch} -> {change.to_pod} with epoch {change.to_epoch} "
        f"after {change.seconds:.2f} s: {change.reason}"
    )
    planned = change.reason in {Reason.RELEASED, Reason.SESSION_RELEASED}
    return notice(partition, warning=not planned, reason="OwnerChanged", message=text, once=str(change.to_epoch))


def event_object(what: Notice, *, count: int, unix_seconds: float, reporter: str) -> Object:
    """The Event."""
    stamp = timestamp(unix_seconds)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": what.name, "namespace": what.namespace},
        "involvedObject": {
            "apiVersion": what.about_api_version,
            "kind": what.about_kind,
            "name": what.about_name,
            "namespace": what.namespace,
            "uid": what.about_uid,
        },
        "type": "Warning" if what.warning else "Normal",
        "reason": what.reason,
        "message": what.message,
        "source": {"component": COMPONENT},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "reportingComponent": COMPONENT,
        "reportingInstance": reporter[:128],
        "count": count,
    }


class Recorder:
    """Posts Events in the background, a bounded number of them."""

    def __init__(
        self, *, kube: Kube, clock: Clock, reporter: str, calm: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`calm` returns when Events may be written: not so many partitions change hands."""
        self._kube, self._clock, self._reporter, self._calm = kube, clock, reporter, calm
        self._queue: asyncio.Queue[Notice] = asyncio.Queue(maxsize=QUEUE_MAX)
        self._counts: OrderedDict[str, int] = OrderedDict()
        self.dropped = 0

    def post(self, what: Notice) -> None:
        """Queues an Event; drops it when too many wait."""
        try:
            self._queue.put_nowait(what)
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Posts until it is cancelled."""
        while True:
            what = await self._queue.get()
            if self._calm is not None:
                await self._calm()
            try:
                await self._write(what)
            except (KubeError, Unclear) as error:
                self.dropped += 1
                log.info("event %s of %s not posted: %s", what.reason, what.about_name, error)
            if not what.warning and not self._queue.empty():
                await asyncio.sleep(BACKLOG_PAUSE_SECONDS)

    async def _write(self, what: Notice) -> None:
        body = event_object(what, count=1, unix_seconds=self._clock.unix(), reporter=self._reporter)
        count = self._counts.pop(what.name, 0)
        if count == 0:
            try:
                await self._kube.create(EVENTS, what.namespace, body)
                self._remember(what.name, 1)
                return
            except KubeAlreadyExists:
                if what.once:
                    return  # Somebody reported this very occurrence.
        # The answer to a PATCH carries the count, so that a restart goes on from it without a right to read.
        patch: Object = {"lastTimestamp": body["lastTimestamp"], **({"count": count + 1} if count else {})}
        seen = await self._kube.patch(EVENTS, what.namespace, what.name, patch)
        self._remember(what.name, int(seen.get("count") or 1))

    def _remember(self, name: str, count: int) -> None:
        self._counts[name] = count
        while len(self._counts) > COUNTS_MAX:
            self._counts.popitem(last=False)
