"""Which operator acts: a Lease of our own, because the shipped electors go on leading through a frozen API server.

Two leaders at once would only waste work, since every ownership write is a compare-and-swap. So this elector is
about not wasting it, and about taking over fast.

Invariants:
  * `leading` is true only while the last renewal that is known to be carried out was *sent* less than two thirds
    of the Lease's time ago, by this process's own clock: no answers, no leading.
  * Another one's Lease is taken over only after it was heard to stand still for its time (see `silence`), or was
    given back, and only by a CAS on what was heard.
  * Who steps down does not lead from that moment on, whatever write of its own is still on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

from fencekv.clock import Clock
from fencekv.kube import LEASES, Kube, KubeConflict, KubeError, KubeNotFound, Unclear
from fencekv.leases import RENEWAL, micro_time
from fencekv_operator.silence import Heard, Reading
from fencekv_operator.waiting import event_within

logger = logging.getLogger(__name__)

Object = dict[str, Any]

NAME: Final = "fencekv-operator"
REQUEST_SECONDS: Final = 1.0
TRUSTED_PART: Final = 2 / 3
LEASE_SECONDS: Final = 4  # below D: a node that takes an owner and the leader along costs no more than the owner
RESTING_SECONDS: Final = 3.0  # after stepping down: another candidate, which looks each second, comes first
STEPS_DOWN_EACH_SECONDS: Final = 10.0  # at most: it did not help, or there is nobody else


class Leader:
    """One candidate. Run it as a task of its own, and ask `leading` before each write."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        identity: str,
        clock: Clock,
        lease_seconds: int = LEASE_SECONDS,
        renew_seconds: float = 1,
    ) -> None:
        self._kube, self._clock = kube, clock
        self._namespace, self._identity = namespace, identity
        self._lease_seconds, self._renew_seconds = lease_seconds, renew_seconds
        self._sent: float | None = None  # of the last renewal known to be carried out; None: we do not hold it.
        self._written: Object | None = None  # the Lease as this process wrote it last; None: it is to be read
        self._heard: Heard | None = None  # None: nothing was read yet.
        self._released = False
        self._rests_until = self._stepped_down_at = float("-inf")
        self._roused = asyncio.Event()

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        if self._sent is None or self._released or self._rests:
            return False
        return self._clock.now() < self._sent + self._lease_seconds * TRUSTED_PART

    @property
    def _rests(self) -> bool:
        return self._clock.now() < self._rests_until

    def step_down(self, why: str) -> None:
        """Lets another candidate lead, if there is one: this one cannot do what is to be done."""
        now = self._clock.now()
        if not self.leading or now < self._stepped_down_at + STEPS_DOWN_EACH_SECONDS:
            return
        logger.warning("%s steps down: %s", self._identity, why)
        self._stepped_down_at, self._rests_until = now, now + RESTING_SECONDS
        self._roused.set()

    async def run(self) -> None:
        """Takes part until it is cancelled."""
        while True:
            was_leading = self.leading
            try:
                await self._step()
            except (KubeError, Unclear) as error:
                logger.warning("leader Lease: %s", error)
            if self.leading != was_leading:
                logger.info("%s %s", self._identity, "leads" if self.leading else "does not lead")
            self._roused.clear()
            await event_within(self._roused, self._renew_seconds)

    async def release(self) -> None:
        """Gives the Lease back, so that another one need not wait. Nothing is led from here on."""
        held, self._released = self._sent is not None, True
        if not held:
            return
        try:
            await self._give_back(await self._kube.get(LEASES, self._namespace, NAME, timeout=REQUEST_SECONDS))
        except (KubeError, Unclear) as error:
            logger.info("leader Lease not given back: %s", error)

    async def _give_back(self, lease: Object) -> None:
        if lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"].pop("holderIdentity")
            await self._kube.replace(LEASES, self._namespace, lease, timeout=REQUEST_SECONDS)

    async def _step(self) -> None:
        """One renewal on what was written last; else a look, and a write if it is ours, free, or stands still."""
        if self._released:
            return
        if self._written is not None and self.leading:
            # Most renewals are this one request: under load a reading before each would be one too many.
            lease, self._written = self._written, None
            with contextlib.suppress(KubeConflict, KubeNotFound):  # somebody else wrote it: read what stands there
                await self._write(lease)
                return
        sent = self._clock.now()
        try:
            lease = await self._kube.get(LEASES, self._namespace, NAME, timeout=REQUEST_SECONDS)
        except KubeNotFound:
            self._sent, self._heard = None, None
            await self._write(None)
            return
        reading = Reading(sent=sent, answered=self._clock.now())
        holder = lease["spec"].get("holderIdentity") or ""
        self._hear(lease, holder, reading)
        if self._rests:
            self._sent = None
            await self._give_back(lease)
            return
        # Its name is its pod's: an earlier process of that pod has ended before this one began.
        if holder in {"", self._identity} or self._is_silent(lease):
            await self._write(lease)
        else:
            self._sent = None

    def _hear(self, lease: Object, holder: str, reading: Reading) -> None:
        metadata = lease["metadata"]
        renewal = (metadata.get("annotations") or {}).get(RENEWAL, "")
        observation = (metadata["uid"], metadata["resourceVersion"], holder, renewal)
        known = self._heard
        self._heard = Heard.first(observation, reading) if known is None else known.fed(observation, reading)

    def _is_silent(self, lease: Object) -> bool:
        assert self._heard is not None, lease
        theirs = int(lease["spec"].get("leaseDurationSeconds") or 0)
        return self._heard.seconds >= max(self._lease_seconds, theirs)

    async def _write(self, lease: Object | None) -> None:
        """Renews or takes the Lease, by a CAS on what was read. An unclear outcome counts for nothing."""
        if self._released:
            return
        sent = self._clock.now()
        body = self._body(lease)
        if lease is None:
            self._written = await self._kube.create(LEASES, self._namespace, body, timeout=REQUEST_SECONDS)
        else:
            self._written = await self._kube.replace(LEASES, self._namespace, body, timeout=REQUEST_SECONDS)
        self._sent = sent

    def _body(self, lease: Object | None) -> Object:
        now = micro_time(self._clock.unix())
        body: Object = lease or {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": NAME, "namespace": self._namespace},
            "spec": {"leaseTransitions": -1},
        }
        spec, notes = body["spec"], body["metadata"].setdefault("annotations", {})
        notes[RENEWAL] = str(int(notes.get(RENEWAL) or 0) + 1)
        if spec.get("holderIdentity") != self._identity:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = now
        spec.update(holderIdentity=self._identity, leaseDurationSeconds=self._lease_seconds, renewTime=now)
        return body
