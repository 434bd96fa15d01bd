"""This process's session: taking its pod's Lease once, and renewing it.

Invariants:
  * The deadline is `t_send + V` of a renewal that is known to have been carried out; t_send was read from
    CLOCK_BOOTTIME before that request left.
  * A session takes the Lease once. When the Lease is gone, another one, another session's, or fenced, the
    session is over for good: it never creates or takes the Lease again.
  * A larger V counts only with a renewal that carried it; a smaller one counts at once.
  * Renewals are due on a grid of `renew_seconds`, from one departure to the next: what one took does not put off
    the next. They never overlap, each being a CAS on the one before: one that takes longer than that
    makes the next one late, which then leaves at once; what else it missed is not made up for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fencekv import leases
from fencekv.clock import Clock
from fencekv.exposition import Histogram
from fencekv.kube import LEASES, Kube, KubeAlreadyExists, KubeConflict, KubeError, KubeNotFound, Unclear
from fencekv.leases import Session, SessionLease

logger = logging.getLogger(__name__)

RENEWAL_TIMEOUT_SECONDS: Final = 1.0
TAKE_RETRY_SECONDS: Final = 0.2
RELEASE_ATTEMPTS: Final = 10
LATENESS_BUCKETS: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class SessionOver(Exception):
    """This session ended; the process must end too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How long a renewal is trusted and how often one is sent, whole seconds, from the KVNamespace."""

    valid_seconds: int = 4
    renew_seconds: float = 1.0

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> LeaseTimes:
        """What a KVNamespace's spec says."""
        times = spec.get("lease") or {}
        valid, renew = times.get("validSeconds", 4), times.get("renewSeconds", 1)
        return cls(valid_seconds=int(valid), renew_seconds=float(renew))


class Memory(Protocol):
    """What this pod remembers on disk of its own renewals."""

    renewal: int

    def remember(self, renewal: int) -> None:
        """Stores the number of a renewal that is known to have been carried out."""
        ...

    def suspect(self) -> None:
        """Marks the records of all replicas of this pod as suspect."""
        ...


class SessionKeeper:
    """Holds the session Lease of this pod for one session."""

    def __init__(
        self,
        *,
        kube: Kube,
        clock: Clock,
        memory: Memory,
        session: Session,
        kvns: str,
        namespace: str,
        times: LeaseTimes,
    ) -> None:
        self.session = session
        self.times = times
        self.lateness = Histogram(LATENESS_BUCKETS)  # how late renewals left
        self._kube, self._clock, self._memory = kube, clock, memory
        self._kvns, self._namespace = kvns, namespace
        self._lease: dict[str, Any] = {}
        self._uid = ""
        self._sent = 0.0  # when the last renewal that is known to be carried out left
        self._trusted_seconds = 0  # V of that renewal; 0: there was none yet
        self._number = 0
        self._over = ""

    @property
    def deadline(self) -> float:
        """Until when this session may act, CLOCK_BOOTTIME in seconds; 0 once it is over."""
        if self._over:
            return 0.0
        # A smaller V counts at once, also for a renewal that carried a larger one.
        return self._sent + min(self._trusted_seconds, self.times.valid_seconds)

    @property
    def number(self) -> int:
        """The number of the last renewal sent."""
        return self._number

    @property
    def over(self) -> bool:
        """Whether the session is over for good."""
        return bool(self._over)

    def valid(self) -> bool:
        """Whether the session may act now."""
        return self._clock.now() < self.deadline

    def end(self, reason: str) -> None:
        """Ends the session in this process: nothing is acknowledged from here on."""
        self._over = self._over or reason

    async def take(self, *, http: str, peer: str) -> None:
        """Takes the pod's Lease: creates it, or takes it over from an earlier session.

        Waits for the API server as long as it takes. Raises SessionOver if this very session is fenced.
        """
        while True:
            try:
                await self._take_once(http=http, peer=peer)
                return
            except (Unclear, KubeConflict, KubeAlreadyExists) as error:
                logger.warning("session Lease not taken yet: %s", error)
            except KubeError as error:
                logger.error("session Lease refused: %s", error)
            await asyncio.sleep(TAKE_RETRY_SECONDS)

    async def run(self) -> None:
        """Renews until the session is over.

        Raises:
            SessionOver: naming why; the process must end.
        """
        # Without one that is known to be carried out, the first is due now.
        last_due = self._sent or self._clock.now() - self.times.renew_seconds
        while True:
            due = last_due + self.times.renew_seconds
            await asyncio.sleep(max(0.0, due - self._clock.now()))
            late = max(0.0, self._clock.now() - due)
            self.lateness.add(late)
            last_due = due + late // self.times.renew_seconds * self.times.renew_seconds
            await self.renew()

    async def renew(self) -> None:
        """One renewal. Raises SessionOver."""
        self._check_over()
        self._number += 1
        valid = self.times.valid_seconds
        body = leases.renewed(
            self._lease, renewal=self._number, valid_seconds=valid, unix_seconds=self._clock.unix()
        )
        sent = self._clock.now()
        try:
            lease = await self._kube.replace(LEASES, self._namespace, body, timeout=RENEWAL_TIMEOUT_SECONDS)
        except KubeNotFound as error:
            self._lost(f"the session Lease is gone: {error}")
        except (Unclear, KubeConflict) as error:
            logger.warning("renewal %d: %s", self._number, error)
            await self._read_again(sent, valid)
        except KubeError as error:
            logger.warning("renewal %d refused: %s", self._number, error)
        else:
            self._adopt(lease)
            self._renewed(sent, valid)

    async def release(self) -> None:
        """Says on the Lease that this session is over, once nothing is served any more."""
        assert self._over, "a session is released after it ended"
        for _ in range(RELEASE_ATTEMPTS):
            try:
                lease = await self._kube.get(LEASES, self._namespace, leases.session_lease_name(self.session.pod))
                seen = SessionLease.parse(lease)
                if seen.session != self.session or seen.over(self.session):
                    return
                body = leases.released_session(lease, self.session)
                await self._kube.replace(LEASES, self._namespace, body, timeout=RENEWAL_TIMEOUT_SECONDS)
                return
            except KubeNotFound:
                return
            except (Unclear, KubeError) as error:
                logger.warning("session not released yet: %s", error)
                await asyncio.sleep(TAKE_RETRY_SECONDS)

    async def _take_once(self, *, http: str, peer: str) -> None:
        name = leases.session_lease_name(self.session.pod)
        valid = self.times.valid_seconds
        try:
            lease = await self._kube.get(LEASES, self._namespace, name, timeout=RENEWAL_TIMEOUT_SECONDS)
        except KubeNotFound:
            lease = {}
        last = SessionLease.parse(lease).renewal if lease else 0
        is_behind = last < self._memory.renewal
        if is_behind:
            # Deleted, or put back to an earlier copy: what partition Leases say may be as old.
            logger.error("session Lease is behind: %d, remembered %d", last, self._memory.renewal)
            self._memory.suspect()
        self._number = max(last, self._memory.renewal, self._number) + 1
        sent = self._clock.now()
        if not lease:
            body = leases.new_session_lease(
                session=self.session,
                kvns=self._kvns,
                namespace=self._namespace,
                valid_seconds=valid,
                renewal=self._number,
                http=http,
                peer=peer,
                unix_seconds=self._clock.unix(),
            )
            taken = await self._kube.create(LEASES, self._namespace, body, timeout=RENEWAL_TIMEOUT_SECONDS)
        elif SessionLease.parse(lease).session == self.session:
            # An earlier attempt of ours whose outcome was unclear has landed; it counts only if not fenced.
            self._adopt_after_take(lease)
            return
        else:
            body = leases.taken_over(
                lease,
                session=self.session,
                renewal=self._number,
                valid_seconds=valid,
                http=http,
                peer=peer,
                unix_seconds=self._clock.unix(),
                is_last_word=not is_behind,
            )
            taken = await self._kube.replace(LEASES, self._namespace, body, timeout=RENEWAL_TIMEOUT_SECONDS)
        self._adopt_after_take(taken)
        self._renewed(sent, valid)

    def _adopt_after_take(self, lease: dict[str, Any]) -> None:
        self._uid = lease["metadata"]["uid"]
        self._adopt(lease)

    def _adopt(self, lease: dict[str, Any]) -> None:
        """Takes over what a quorum read or an answered write shows, unless it ends the session."""
        seen = SessionLease.parse(lease)
        if seen.uid != self._uid:
            self._lost("the session Lease was deleted and made anew")
        if seen.session != self.session:
            self._lost(f"the session Lease was taken over by {seen.session}")
        if seen.over(self.session):
            self._lost("the session was fenced")
        self._lease = lease

    async def _read_again(self, sent: float, valid: int) -> None:
        name = leases.session_lease_name(self.session.pod)
        try:
            lease = await self._kube.get(LEASES, self._namespace, name, timeout=RENEWAL_TIMEOUT_SECONDS)
        except KubeNotFound as error:
            self._lost(f"the session Lease is gone: {error}")
        except (Unclear, KubeError) as error:
            logger.warning("renewal %d: outcome still unclear: %s", self._number, error)
            return
        self._adopt(lease)
        number = SessionLease.parse(lease).renewal
        if number == self._number:
            self._renewed(sent, valid)
        elif number < self._memory.renewal:
            logger.error("session Lease fell back to renewal %d, remembered %d", number, self._memory.renewal)
            self._memory.suspect()

    def _renewed(self, sent: float, valid: int) -> None:
        assert self._sent <= sent <= self._clock.now(), (self._sent, sent, self._clock.now())
        self._sent, self._trusted_seconds = sent, valid
        self._memory.remember(self._number)

    def _check_over(self) -> None:
        if self._over:
            raise SessionOver(self._over)

    def _lost(self, reason: str) -> None:
        self._over = self._over or reason
        raise SessionOver(reason)


async def is_over(kube: Kube, namespace: str, session: Session) -> bool:
    """Whether a session's Lease says that it is over; False as well if that cannot be read."""
    try:
        name = leases.session_lease_name(session.pod)
        raw = await kube.get(LEASES, namespace, name, timeout=RENEWAL_TIMEOUT_SECONDS)
        return SessionLease.parse(raw).over(session)
    except (KubeError, Unclear, leases.MalformedLease):
        return False
