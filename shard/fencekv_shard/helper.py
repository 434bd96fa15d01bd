"""The helper process of a shard's pod: carries out the faults that a drill orders, and undoes them.

The supervisor forks it beside each shard process. It is neither PID 1 nor the shard, so it is there while the
shard is frozen. It watches the pod's session Lease for an order (`fencekv.faults`). Kept to the standard library,
as the supervisor is, whose memory it shares.

Invariants:
  * Whatever it does is undone when the order's seconds are over, or the order is taken back, whichever comes
    first. A timer of the kernel sees to it, so an API server that is away does not prolong a fault. Should the
    helper itself die, the supervisor wakes the shard, and the cuts in the shard end by themselves.
  * An order is carried out once, and only by the helper of the session that it names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any, Final, NoReturn, Protocol

from fencekv.errors import Invalid
from fencekv.faults import CUTS, Fault, Order
from fencekv.leases import Session, session_lease_name

logger = logging.getLogger(__name__)

WATCH_SECONDS: Final = 60


class Watch(Protocol):
    """What the helper asks of an API server."""

    def watch(self, name: str, seconds: int) -> Iterator[dict[str, Any]]:
        """The watch events of one Lease, its present state first; ends by itself. Raises OSError."""
        ...


class Shard(Protocol):
    """What can be done to the shard process."""

    def signal(self, number: signal.Signals) -> None:
        """Signals it."""
        ...

    def cut(self, fault: Fault, seconds: float) -> None:
        """Cuts its connections for so long; 0: no longer."""
        ...


class Process:
    """`Shard`: a process, and a pipe on which it hears of cuts."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid, self._pipe = pid, pipe

    def signal(self, number: signal.Signals) -> None:
        """Signals it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def cut(self, fault: Fault, seconds: float) -> None:
        """Writes a line into the pipe: shorter than a pipe writes at once, so lines never mix."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, json.dumps({"fault": str(fault), "seconds": seconds}).encode() + b"\n")


class Helper:
    """Follows the orders for one session.

    `alarm(seconds)` has `expired` called then; 0: never. `successor`: of a helper that died, so that an order
    which stands there already is not carried out again.
    """

    def __init__(
        self, session: Session, shard: Shard, *, alarm: Callable[[float], None], successor: bool = False
    ) -> None:
        self._session, self._shard, self._alarm = session, shard, alarm
        self._successor = successor
        self._done: Order | None = None  # the last order that was carried out
        self._undo: Callable[[], None] | None = None  # None: nothing is to be undone

    def seen(self, lease: dict[str, Any]) -> None:
        """Takes the session Lease as it stands now."""
        try:
            order = Order.of(lease)
        except Invalid as error:
            logger.warning("an order that cannot be read: %s", error)
            order = None
        if order is not None and order.session != str(self._session):
            order = None
        if self._successor:
            self._successor, self._done = False, order
        if order == self._done:
            return
        self.expired()
        self._done = order
        if order is not None:
            logger.warning("ordered: %s, for %d s", order.fault, order.seconds)
            # First the timer, then the fault: there is no moment at which nobody would end it.
            self._alarm(order.seconds)
            self._carry_out(order)

    def expired(self) -> None:
        """Undoes what was done, if anything was."""
        undo, self._undo = self._undo, None
        self._alarm(0)
        if undo is not None:
            undo()

    def _carry_out(self, order: Order) -> None:
        shard = self._shard
        if order.fault is Fault.FREEZE:
            self._undo = lambda: shard.signal(signal.SIGCONT)
            shard.signal(signal.SIGSTOP)
        elif order.fault in CUTS:
            self._undo = lambda: shard.cut(order.fault, 0)
            shard.cut(order.fault, order.seconds)
        else:
            assert order.fault is Fault.KILL, order
            shard.signal(signal.SIGKILL)


def run(session: Session, shard: Shard, api: Watch, *, pause: Callable[[], None], successor: bool) -> NoReturn:
    """Watches and obeys until it is killed."""

    def alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    helper = Helper(session, shard, alarm=alarm, successor=successor)
    signal.signal(signal.SIGALRM, lambda *_: helper.expired())
    while True:
        try:
            for event in api.watch(session_lease_name(session.pod), WATCH_SECONDS):
                if event.get("type") in {"ADDED", "MODIFIED"}:
                    helper.seen(event["object"])
        except (OSError, HTTPException, ValueError) as error:
            logger.info("orders cannot be heard: %s", error)
        pause()
