"""What the failover loop knows at a moment, put together for a decision or for people. No input or output.

Invariants:
  * Caches and polled reports only say where to look (`needs_attention`). A view that a grant rests on is made of
    reports of one round, of sessions that a quorum read shows in place, and of a Lease that was read after those
    reports, or that the CAS of the grant proves unchanged since.
  * `known_epoch` of a partition never falls while this process lives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

from fencekv.clock import Clock
from fencekv.leases import MalformedLease, PartitionLease, Session, pod_of
from fencekv_operator.facts import PartitionFacts, ReplicaFacts, Trouble
from fencekv_operator.ownership import Answer, Partition, View, contradicts
from fencekv_operator.reports import Replica, Report
from fencekv_operator.sessions import Sessions, Track
from fencekv_operator.silence import DURATION_SECONDS

Object = dict[str, Any]
Key = tuple[str, str]  # Kubernetes namespace and partition (or KVNamespace, or pod)
Reports = Mapping[Key, Report]

NEW_SECONDS: Final = 10.0  # for how long a partition that has no record is new rather than without one
LEASE_PREFIX: Final = "partition-"
UNREADABLE: Final = "its Lease is not one of ours: "


class Knowledge:
    """Everything the loop remembers; all of it can be lost at any moment."""

    def __init__(self, clock: Clock) -> None:
        self.partitions: dict[Key, Partition] = {}
        self.leases: dict[Key, PartitionLease] = {}
        self.sessions: dict[str, Sessions] = {}  # by Kubernetes namespace
        self.reports: dict[Key, Report] = {}  # by pod: the last ones, fresh or not
        self.doubtful: set[str] = set()  # partitions (UID) whose Lease a polled report contradicted
        self.troubles: dict[str, tuple[Trouble, str]] = {}  # by partition UID
        self.signs: dict[str, float] = {}  # by partition UID: since when it has needed attention
        self._clock = clock
        self._durations: dict[Key, float] = {}
        self._epochs: dict[str, int] = {}  # by partition UID
        self._planned: dict[str, int] = {}  # by partition UID: the last epoch that was granted after a release
        self._absent_since: dict[str, float] = {}  # by partition UID: when a quorum read first found no Lease
        self._born: dict[str, tuple[float, frozenset[Session]]] = {}  # by partition UID: when, and see `born`
        self._cleared: dict[str, tuple[int, frozenset[Session]]] = {}  # by partition UID

    # What comes in

    def partition_changed(self, kind: str, item: Object) -> Partition:
        """Takes a KVPartition; gives it."""
        partition = Partition.parse(item)
        key = (partition.namespace, partition.name)
        if kind == "DELETED":
            self.partitions.pop(key, None)
            for memory in (self.troubles, self.signs, self._epochs, self._absent_since, self._cleared, self._born):
                memory.pop(partition.uid, None)
            self._planned.pop(partition.uid, None)
            self.doubtful.discard(partition.uid)
        else:
            self.partitions[key] = partition
        return partition

    def lease_changed(self, kind: str, item: Object) -> tuple[Key, bool]:
        """Takes a partition Lease; gives the partition's key, and whether it had an owner and has a Lease."""
        metadata = item["metadata"]
        key = (metadata["namespace"], metadata["name"].removeprefix(LEASE_PREFIX))
        before = self.leases.pop(key, None)
        if kind != "DELETED":
            try:
                lease = PartitionLease.parse(item)
            except MalformedLease:
                return key, False  # As good as none; a quorum read will say what is wrong with it.
            self.leases[key] = lease
            self._born.pop(lease.partition_uid, None)
            self._saw_epoch(lease.partition_uid, lease.epoch)
            if before is not None and before.is_released and lease.epoch == before.epoch + 1:
                self._planned[lease.partition_uid] = lease.epoch
        return key, kind != "DELETED" and before is not None and before.session is not None

    def space_changed(self, kind: str, item: Object) -> None:
        """Takes a KVNamespace: its D."""
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        times = (item.get("spec") or {}).get("lease") or {}
        if kind == "DELETED":
            self._durations.pop(key, None)
        else:
            self._durations[key] = float(times.get("durationSeconds") or DURATION_SECONDS)

    def reported(self, namespace: str, report: Report) -> list[str]:
        """Takes a report; gives the partitions (names) of which it changes what people are shown."""
        key = (namespace, report.pod)
        before = self.reports.get(key)
        self.reports[key] = report
        changed: list[str] = []
        for uid, replica in sorted(report.replicas.items()):
            self._saw_epoch(uid, replica.epoch)
            lease = self.leases.get((namespace, replica.partition))
            if lease is not None and lease.partition_uid == uid:
                cleared = report.session in self._cleared_under(lease)
                if contradicts(replica, lease, cleared=cleared):
                    self.doubtful.add(uid)
            old = before.replicas.get(uid) if before else None
            if old is None or _shown(old) != _shown(replica):
                changed.append(replica.partition)
        return changed

    def lease_read(self, partition: Partition, lease: PartitionLease | None) -> None:
        """Takes what a quorum read of a partition Lease showed."""
        if lease is None:
            self._absent_since.setdefault(partition.uid, self._clock.now())
        else:
            self._absent_since.pop(partition.uid, None)
            self._born.pop(partition.uid, None)
            self._saw_epoch(lease.partition_uid, lease.epoch)

    def born(self, partition: Partition) -> bool:
        """Takes a partition that this process has just made; whether all of its pods have sessions.

        What those sessions report of it is all that there is: they held these pods when the answer came, and
        whoever held them before was deposed before this process could have granted it.
        """
        book = self.book(partition.namespace)
        sessions = [seen.lease.session for pod in partition.replicas if (seen := book.live(pod)) is not None]
        if len(sessions) == len(partition.replicas):
            self._born[partition.uid] = self._clock.now(), frozenset(sessions)
        return self.is_new(partition)

    def birth_spent(self, partition: Partition) -> None:
        """From now on the partition is like any other."""
        self._born.pop(partition.uid, None)

    def granted(self, partition: Partition, epoch: int, reports: Reports) -> None:
        """Takes note of a grant that this process made on these reports."""
        self._saw_epoch(partition.uid, epoch)
        suspicious = frozenset(
            report.session
            for (namespace, _), report in reports.items()
            if namespace == partition.namespace
            and partition.uid in report.replicas
            and report.replicas[partition.uid].suspect
        )
        self._cleared[partition.uid] = (epoch, suspicious)
        self.doubtful.discard(partition.uid)
        self.signs.pop(partition.uid, None)

    def troubled(self, partition: Partition, trouble: Trouble, detail: str) -> bool:
        """Takes note of what is wrong with a partition; whether that is news."""
        news = self.troubles.get(partition.uid, (Trouble.NONE, "")) != (trouble, detail)
        if trouble is Trouble.NONE and not detail:
            self.troubles.pop(partition.uid, None)
        else:
            self.troubles[partition.uid] = (trouble, detail)
        return news

    def book(self, namespace: str) -> Sessions:
        """The sessions of a Kubernetes namespace."""
        return self.sessions.setdefault(namespace, Sessions())

    # What is asked

    def duration_seconds(self, namespace: str, kvns: str) -> float:
        """D of a KVNamespace."""
        return self._durations.get((namespace, kvns), DURATION_SECONDS)

    def namespaces(self) -> list[str]:
        """Every Kubernetes namespace in which there is something of ours."""
        return sorted({namespace for namespace, _ in self.partitions} | self.sessions.keys())

    def holders(self) -> dict[str, dict[Session, str]]:
        """By Kubernetes namespace: the sessions that partition Leases name, and their KVNamespaces."""
        found: dict[str, dict[Session, str]] = {}
        for key, partition in self.partitions.items():
            lease = self.leases.get(key)
            if lease is not None and lease.session is not None:
                found.setdefault(key[0], {})[lease.session] = partition.kvns
        return found

    def placed_pods(self) -> dict[str, set[str]]:
        """By Kubernetes namespace: the pods that partitions or their in-sync sets name."""
        found: dict[str, set[str]] = {}
        for key, partition in self.partitions.items():
            found.setdefault(key[0], set()).update(self.pods_of(partition))
        return found

    def session_states(self) -> dict[str, int]:
        """How many sessions are live, doubted and over."""
        counts = {"live": 0, "doubted": 0, "over": 0}
        for book in self.sessions.values():
            for session, track in book.tracks.items():
                state = "over" if session in book.over else "doubted" if track.doubted else "live"
                counts[state] += 1
        return counts

    def renews(self, namespace: str, pods: Iterable[str]) -> bool:
        """Whether one of these pods is heard to renew its session: others than this process may reach it."""
        book = self.book(namespace)
        alive = [seen.lease.session for pod in pods if (seen := book.live(pod)) is not None]
        return any(not book.tracks[session].doubted for session in alive if session in book.tracks)

    def pods_of(self, partition: Partition) -> set[str]:
        """The pods that may hold a replica of a partition."""
        lease = self.leases.get((partition.namespace, partition.name))
        members = lease.in_sync if lease is not None else ()
        return {*partition.replicas, *(pod_of(member) for member in members)}

    def needs_attention(self, key: Key) -> bool:
        """Whether the caches hint that something is to be decided about a partition."""
        partition, lease = self.partitions.get(key), self.leases.get(key)
        if partition is None or partition.deleting:
            return False
        if lease is None or lease.partition_uid != partition.uid or lease.session is None or lease.is_released:
            return True
        return (
            partition.uid in self.doubtful
            or lease.session in self.book(key[0]).over
            or lease.alone_since == lease.epoch
            or self.known_epoch(partition) > lease.epoch
        )

    def is_new(self, partition: Partition) -> bool:
        """Whether this process made the partition a moment ago, and no record of it was ever seen."""
        began, _ = self._born.get(partition.uid, (-math.inf, frozenset()))
        return self._clock.now() < began + NEW_SECONDS

    def shows_less(self, partition: Partition, epoch: int) -> bool:
        """Whether the status of a partition that is there tells a lower epoch."""
        current = self.partitions.get((partition.namespace, partition.name))
        return current is not None and current.uid == partition.uid and current.epoch < epoch

    def known_epoch(self, partition: Partition) -> int:
        """The highest epoch that was ever seen, wherever."""
        return max(partition.epoch, self._epochs.get(partition.uid, 0))

    def seconds_to_next_proof(self) -> float:
        """How long the next session that is doubted must be heard yet, until proof (c) is complete."""
        lacking = (
            self.book(namespace).lacking_seconds(partial(self.duration_seconds, namespace))
            for namespace in self.namespaces()
        )
        return min(lacking, default=math.inf)

    def doubt(self, partition: Partition, lease: PartitionLease) -> str:
        """Why the owner is doubted, for people; empty: it is heard, or over."""
        book = self.book(partition.namespace)
        track = book.tracks.get(lease.session) if lease.session else None
        if track is None or track.session in book.over or not (track.silent or not track.held):
            return ""
        duration = self.duration_seconds(partition.namespace, partition.kvns)
        wait = book.wait_seconds(track.session, duration)
        what = _what_is_heard(track)
        together = book.fell_together(track.kvns)
        more = "; more than half of the sessions fell silent together, so one further D is waited"
        return f"{what}; waiting for proof of its end, or for {wait:g} s heard{more if together else ''}"

    def view(self, partition: Partition, lease: PartitionLease | None, reports: Reports) -> View:
        """All that a decision about a partition rests on, given the reports of this round."""
        namespace, book = partition.namespace, self.book(partition.namespace)
        pods = {*partition.replicas, *(pod_of(member) for member in (lease.in_sync if lease else ()))}
        answers: dict[str, Answer] = {}
        for pod in sorted(pods):
            seen, report = book.live(pod), reports.get((namespace, pod))
            # A report of a session that does not hold its pod's Lease is the word of somebody deposed.
            if seen is None or report is None or report.session != seen.lease.session:
                continue
            track = book.tracks.get(report.session)
            answers[pod] = Answer(
                session=report.session,
                http=seen.lease.http,
                peer=seen.lease.peer,
                replica=report.replicas.get(partition.uid),
                doubtful=track is None or track.doubted,
            )
        duration = self.duration_seconds(namespace, partition.kvns)
        absent_since = self._absent_since.get(partition.uid, self._clock.now())
        return View(
            partition=partition,
            lease=lease,
            absent_seconds=self._clock.now() - absent_since if lease is None else 0.0,
            answers=answers,
            over=book.over.get(lease.session) if lease and lease.session else None,
            doubt=self.doubt(partition, lease) if lease else "",
            known_epoch=self.known_epoch(partition),
            unsettled=frozenset(
                pod
                for pod in partition.replicas
                if not book.settled(pod, duration, answered=answers[pod].session if pod in answers else None)
            ),
            cleared=self._cleared_under(lease) if lease else frozenset(),
            born=self._born[partition.uid][1] if lease is None and self.is_new(partition) else frozenset(),
        )

    def facts(self, key: Key) -> PartitionFacts | None:
        """What is known of a partition, for the reconciler; None: it is not known itself."""
        partition, lease = self.partitions.get(key), self.leases.get(key)
        if partition is None:
            return None
        if lease is not None and lease.partition_uid != partition.uid:
            lease = None
        book = self.book(partition.namespace)
        track = book.tracks.get(lease.session) if lease and lease.session else None
        trouble, detail = self.troubles.get(partition.uid, (Trouble.NONE, ""))
        return PartitionFacts(
            name=partition.name,
            uid=partition.uid,
            lease=lease,
            owner_alive=track is not None and track.held and track.session not in book.over,
            replicas=tuple(self._replica_facts(partition)),
            trouble=trouble,
            detail=detail,
            is_new=self.is_new(partition),
            planned=lease is not None and self._planned.get(partition.uid) == lease.epoch,
        )

    def _replica_facts(self, partition: Partition) -> Iterable[ReplicaFacts]:
        for pod in sorted(self.pods_of(partition)):
            report = self.reports.get((partition.namespace, pod))
            replica = report.replicas.get(partition.uid) if report else None
            if replica is not None:
                yield ReplicaFacts(
                    pod=pod,
                    replica_id=replica.replica,
                    role=replica.role,
                    serving=replica.serving,
                    known_epoch=replica.epoch,
                    last_epoch=replica.last_epoch,
                    last_seq=replica.last_seq,
                    last_txid=replica.last_txid,
                    commit_seq=replica.commit_seq,
                    set_version=replica.set_version,
                )

    def _saw_epoch(self, uid: str, epoch: int) -> None:
        self._epochs[uid] = max(epoch, self._epochs.get(uid, 0))

    def _cleared_under(self, lease: PartitionLease) -> frozenset[Session]:
        epoch, sessions = self._cleared.get(lease.partition_uid, (0, frozenset()))
        return sessions if epoch == lease.epoch else frozenset()


def _shown(replica: Replica) -> tuple[object, ...]:
    return replica.replica, replica.role, replica.serving, replica.epoch, replica.suspect


def _what_is_heard(track: Track) -> str:
    pod = track.session.pod
    if track.absent:
        return f"the session Lease of {pod} is gone"
    if not track.held:
        return f"a new session of {pod} has begun, and the end of the one that owns is not proven"
    return f"{pod} has not been heard for {track.heard.seconds:.0f} s"
