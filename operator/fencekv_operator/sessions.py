"""The sessions of one Kubernetes namespace: who holds which Lease, who has been silent for how long, who is over.

Fed by quorum reads, and asked by the failover loop. No input or output.

Invariants:
  * `over` only grows while a session is of interest: a session is never reused, so its end is a fact for good.
    It is entered for one of three proofs: the Lease says that this very session released it or was fenced; the
    kubelet reported that very container terminated, and the Lease was fenced; D was heard, and the
    Lease was fenced by a CAS on what was heard to stand still.
  * A session that was taken over, or whose Lease is absent, is gone. That proves no death, and is a change like
    any other: the count starts there. Only where the successor names what it replaced, and that is the very
    reading that is being heard, does the count go on: the takeover was a CAS on it, so no renewal lay in between.
  * A session that is gone can never renew again, so how it went stands whatever its successors write.
  * `live` names only sessions that held their pod's Lease at the last successful quorum read and are not over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fencekv.leases import (
    KIND_SESSION,
    LABEL_KIND,
    LABEL_NAMESPACE,
    LastWord,
    MalformedLease,
    Session,
    SessionLease,
    session_lease_name,
)
from fencekv_operator.facts import Reason
from fencekv_operator.silence import Heard, Reading, fell_together

logger = logging.getLogger(__name__)

Object = dict[str, Any]

GONE: Final = "gone"
DOUBT_SECONDS: Final = 2.0  # heard silence after which proof of death is looked for
POLICY_FILE: Final = "File"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A session Lease as the last quorum read showed it."""

    lease: SessionLease
    raw: Object
    kvns: str


@dataclass(slots=True, kw_only=True)
class Track:
    """What has been heard of one session."""

    session: Session
    kvns: str
    heard: Heard
    held: bool  # whether it holds its pod's Lease
    absent: bool  # whether there is no Lease of that pod
    gone: Hashable = GONE  # how it went, as far as that is known; of meaning only while it does not hold its Lease

    @property
    def doubted(self) -> bool:
        """Whether it is time to look for proof of its death."""
        return not self.held or self.heard.seconds >= DOUBT_SECONDS

    @property
    def silent(self) -> bool:
        """Whether it has missed so much that its own deadline has passed."""
        return self.heard.seconds >= max(self.heard.valid_seconds, DOUBT_SECONDS)


class Sessions:
    """All sessions of a Kubernetes namespace that hold a Lease or that a partition names."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}  # by pod
        self.tracks: dict[Session, Track] = {}
        self.over: dict[Session, Reason] = {}
        self.signs: dict[Session, float] = {}  # when the end of a session first showed, for those that are over
        self.undone: list[Session] = []  # over, yet the last reading shows their Leases without a word of it
        self._tenures: dict[str, Heard] = {}  # by pod: how long the same session, or none, has been there
        self._valid_seconds_max: dict[str, float] = {}  # by KVNamespace: largest V ever read

    def observe(self, items: Iterable[Object], reading: Reading, named: Mapping[Session, str]) -> list[Session]:
        """Takes a successful quorum read of all session Leases; gives the sessions that it showed to be over.

        Args:
            items: the Leases.
            reading: when they were read.
            named: sessions that partition Leases name as holders, and their KVNamespaces.
        """
        self.seen = _parsed(items)
        for seen in self.seen.values():
            known = self._valid_seconds_max.get(seen.kvns, 0.0)
            self._valid_seconds_max[seen.kvns] = max(known, float(seen.lease.valid_seconds))
        interesting = dict(named) | {seen.lease.session: seen.kvns for seen in self.seen.values()}
        for session in [one for one in self.tracks if one not in interesting]:
            del self.tracks[session]
            self.over.pop(session, None)
            self.signs.pop(session, None)
        for session in sorted(interesting):
            self._feed(session, interesting[session], reading)
        self._feed_tenures(reading)
        # A store that was put back to an earlier copy shows a fence undone: the session could renew again.
        self.undone = [
            session
            for session in sorted(self.over)
            if self.tracks[session].held and not self.seen[session.pod].lease.over(session)
        ]
        ended = [session for session in sorted(self.tracks) if self._ended(session)]
        for session in ended:
            self.mark_over(session, self._how_ended(session), sign=reading.answered)
        return ended

    def mark_over(self, session: Session, reason: Reason, *, sign: float) -> None:
        """Enters a proof; `sign` is when the session's end first showed."""
        if session not in self.over:
            self.over[session], self.signs[session] = reason, sign

    def restart(self, session: Session) -> None:
        """A CAS on what was heard failed: the wait starts again."""
        track = self.tracks.get(session)
        if track is not None:
            heard = track.heard
            track.heard = heard.fed(object(), Reading(sent=heard.answered, answered=heard.answered))

    def live(self, pod: str) -> Seen | None:
        """The pod's Lease, if the session that holds it is not known to be over."""
        seen = self.seen.get(pod)
        return seen if seen is not None and seen.lease.session not in self.over else None

    def wait_seconds(self, session: Session, duration_seconds: float) -> float:
        """How long this session must be heard silent before it may be fenced."""
        track = self.tracks[session]
        wait = track.heard.wait_seconds(duration_seconds)
        return wait + duration_seconds if self.fell_together(track.kvns) else wait

    def is_due(self, session: Session, duration_seconds: float) -> bool:
        """Whether proof (c) is complete but for the CAS."""
        return self.tracks[session].heard.seconds >= self.wait_seconds(session, duration_seconds)

    def lacking_seconds(self, duration_seconds: Callable[[str], float]) -> float:
        """What the doubted session that lacks least must still be heard; the argument gives D by KVNamespace."""
        lacking = (
            self.wait_seconds(session, duration_seconds(track.kvns)) - track.heard.seconds
            for session, track in self.tracks.items()
            if track.doubted and session not in self.over
        )
        return min((seconds for seconds in lacking if seconds > 0), default=math.inf)

    def fell_together(self, kvns: str) -> bool:
        """Whether more than half of a KVNamespace's sessions are silent now."""
        pool = [
            track
            for track in self.tracks.values()
            if track.kvns == kvns and track.session not in self.over and (track.held or track.absent)
        ]
        return fell_together(silent=sum(track.silent for track in pool), sessions=len(pool))

    def settled(self, pod: str, duration_seconds: float, *, answered: Session | None) -> bool:
        """Whether no session of `pod` but the one that `answered` can still be alive."""
        tenure = self._tenures.get(pod)
        if tenure is None or tenure.seconds < tenure.wait_seconds(duration_seconds):
            return False
        seen = self.seen.get(pod)
        return seen is None or seen.lease.session in self.over or seen.lease.session == answered

    def watch_pods(self, pods: Iterable[str], reading: Reading) -> None:
        """Begins to hear pods that partitions name and that have no Lease."""
        for pod in pods:
            if pod not in self._tenures and pod not in self.seen:
                self._tenures[pod] = Heard.first(None, reading)

    def _feed(self, session: Session, kvns: str, reading: Reading) -> None:
        seen, track = self.seen.get(session.pod), self.tracks.get(session)
        held = seen is not None and seen.lease.session == session
        valid: float | None = None
        if held and seen is not None:
            lease, valid = seen.lease, float(seen.lease.valid_seconds)
            observation = _observation(lease.uid, LastWord(session, lease.renewal, lease.resource_version))
        else:
            observation = _how_gone(session, seen, track)
        if track is None:
            # Of a session that was gone before we looked nobody can say which V it trusted: the largest read here.
            unknown = self._valid_seconds_max.get(kvns)
            heard = Heard.first(observation, reading, valid_seconds=valid if held else unknown)
            track = Track(session=session, kvns=kvns, heard=heard, held=held, absent=seen is None)
            self.tracks[session] = track
        else:
            if held and not track.held:
                self.restart(session)  # A store that was put back: what was heard of it is of another past.
            track.heard = track.heard.fed(observation, reading, valid_seconds=valid)
        track.held, track.absent = held, seen is None
        track.gone = GONE if held else observation

    def _feed_tenures(self, reading: Reading) -> None:
        for pod in sorted(self._tenures.keys() | self.seen.keys()):
            seen, tenure = self.seen.get(pod), self._tenures.get(pod)
            holder = seen.lease.session if seen else None
            valid = float(seen.lease.valid_seconds) if seen else None
            if tenure is None:
                self._tenures[pod] = Heard.first(holder, reading, valid_seconds=valid)
            else:
                self._tenures[pod] = tenure.fed(holder, reading, valid_seconds=valid)

    def _ended(self, session: Session) -> bool:
        seen = self.seen.get(session.pod)
        return session not in self.over and seen is not None and seen.lease.over(session)

    def _how_ended(self, session: Session) -> Reason:
        released = self.seen[session.pod].lease.released == str(session)
        # Fenced, but not by this process: by which proof its predecessor did it is not written down.
        return Reason.SESSION_RELEASED if released else Reason.SILENT


def _observation(lease_uid: str, word: LastWord) -> Hashable:
    """What is compared from one reading to the next."""
    return (lease_uid, word)


def _how_gone(session: Session, seen: Seen | None, track: Track | None) -> Hashable:
    """What is heard of a session that does not hold its Lease.

    The last that it wrote, if the Lease says so of this very session; else how it went when that was seen.
    """
    word = seen.lease.taken_from if seen is not None else None
    if seen is not None and word is not None and word.session == session:
        return _observation(seen.lease.uid, word)
    return track.gone if track is not None else GONE


def _parsed(items: Iterable[Object]) -> dict[str, Seen]:
    """The readable Leases by pod. One that cannot be read counts as absent: only a CAS can fence its session."""
    found: dict[str, Seen] = {}
    for item in items:
        metadata = item["metadata"]
        try:
            lease = SessionLease.parse(item)
        except MalformedLease as error:
            logger.warning("session Lease %s: %s", metadata["name"], error)
            continue
        labels = metadata.get("labels") or {}
        if labels.get(LABEL_KIND) == KIND_SESSION and lease.name == session_lease_name(lease.session.pod):
            found[lease.session.pod] = Seen(lease=lease, raw=item, kvns=labels.get(LABEL_NAMESPACE, ""))
    return found


def proves_death(pod: Mapping[str, Any], session: Session) -> bool:
    """Whether the kubelet reports that the container of this very session terminated.

    The container wrote the session to its termination message before its first Lease write, so a status that
    carries it speaks of that process; a container's ID would not do, because a lagging status pairs an
    old container with a new session.
    """
    return pod["metadata"].get("uid") == session.pod_uid and str(session) in terminated_messages(pod)


def terminated_messages(pod: Mapping[str, Any]) -> list[str]:
    """What the terminated containers of a pod left in their termination message files."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    policies = {
        container.get("name"): container.get("terminationMessagePolicy") or POLICY_FILE
        for container in spec.get("containers") or []
    }
    messages: list[str] = []
    for container in status.get("containerStatuses") or []:
        if policies.get(container.get("name")) != POLICY_FILE:
            continue  # The message may be a piece of its log, which a process can make say anything.
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            message = (state.get("terminated") or {}).get("message") or ""
            messages += [message.strip()] if message.strip() else []
    return messages
