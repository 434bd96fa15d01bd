"""One partition on this shard: its replica, its role, and what it does when its Lease changes.

The Lease's watch tells what to become; `fence` tells what is allowed; `Owned` acts as the owner, `tail` as a
standby. This module joins them.

Invariants:
  * There is an `Owned` exactly while the role is GRANTED, OWNER or CLOSED, and it has the fence's epoch.
  * An older Lease than the one acted on last changes nothing: epochs only rise.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from fencekv.errors import Exhausted, FenceKVError, NotOwner, Unavailable, Unknown
from fencekv.leases import PartitionLease
from fencekv.token import Token
from fencekv_shard import api, limits
from fencekv_shard.api import Committed, Consistency, Durability, Options
from fencekv_shard.applier import Applier
from fencekv_shard.doubts import settle
from fencekv_shard.engine import Engine
from fencekv_shard.fence import Event, Fence, Role
from fencekv_shard.folder import Seed
from fencekv_shard.freshness import Freshness, judge
from fencekv_shard.granting import OPEN_PAUSE_SECONDS, taken
from fencekv_shard.holding import Holding
from fencekv_shard.membership import Membership
from fencekv_shard.meters import Change, Gate
from fencekv_shard.owned import Owned
from fencekv_shard.quorum import is_needed
from fencekv_shard.replica import Replica
from fencekv_shard.spec import PartitionSpec
from fencekv_shard.store import CommitFailed, DiskFull, Unreadable
from fencekv_shard.surroundings import Surroundings
from fencekv_shard.transaction import Transaction
from fencekv_shard.trimmer import Trimmer
from fencekv_shard.view import Closed

logger = logging.getLogger(__name__)


class Partition:
    """A replica with its role. Implements `api.Partition` and `tail.Following`."""

    def __init__(self, spec: PartitionSpec, replica: Replica, around: Surroundings) -> None:
        self.spec, self.replica, self._around = spec, replica, around
        self.fence = Fence()
        self.owned: Owned | None = None
        self.lease: PartitionLease | None = None  # None: none was seen yet.
        self._raw: dict[str, Any] | None = None
        self._settling = False
        self._moving = False
        self.waiting = Holding()
        self._grown_to = -1  # the last entry that a round of ours is known to have made durable
        self._progress = asyncio.Event()
        self._trimmer = Trimmer(
            name=spec.name,
            replica=lambda: self.replica,
            engine=lambda: self.owned.engine if self.owned and self.fence.role is Role.OWNER else None,
            window_seconds=lambda: self.spec.history_seconds,
            clock=around.clock,
            spawn=around.spawn,
            on_fatal=around.on_fatal,
            on_standing=partial(settle, self),
        )
        self._applier = Applier(
            name=spec.name,
            replica=lambda: self.replica,
            spawn=around.spawn,
            on_fatal=around.on_fatal,
            on_applied=self._trimmer.progressed,
        )
        self._replica_changes = asyncio.Lock()  # a replica is not exchanged while it is being granted
        self._closed = False

    @property
    def name(self) -> str:
        """The KVPartition's name."""
        return self.spec.name

    @property
    def durability(self) -> Durability:
        """What writes are acknowledged under, unless they ask for more."""
        return self.spec.durability

    @property
    def member(self) -> str:
        """This replica as an in-sync set names it."""
        return f"{self._around.session.session.pod}/{self.replica.replica_id}"

    @property
    def serving(self) -> bool:
        """Whether it acts as the owner now."""
        return (
            self.fence.role is Role.OWNER
            and not self._moving
            and self._around.clock.now() < self._around.session.deadline
        )

    # -- requests ---------------------------------------------------------------------------------------------

    def begin(self, transaction: Transaction, options: Options, waiter: api.Waiter) -> None:
        """Takes a validated transaction as the owner, if nothing has to be waited for."""
        owned = self._admit(options)
        self._check_fresh(options)
        owned.begin(transaction, options, waiter)

    def read_now(self, key: str, options: Options) -> api.ReadAnswer:
        """Reads a key, if nothing has to be waited for."""
        primary = options.consistency is Consistency.PRIMARY
        if primary:
            self._admit(options)
        if self.replica.closed:
            raise Unavailable(f"{self.name}: its replica here is not open")
        self._check_fresh(options)
        record = self.replica.read(key, self.replica.commit_seq)
        answer = api.ReadAnswer(record=record, token=self.token())
        if primary:
            self._admit(options)
        return answer

    def _check_fresh(self, options: Options) -> None:
        token = options.min_token
        if token is not None and judge(token, at=self.token(), ends=self.replica.ends) is not Freshness.SATISFIED:
            raise api.MustWait

    async def submit(self, transaction: Transaction, options: Options) -> Committed:
        """Commits a validated transaction as the owner."""
        owned = self._admit(options)
        if options.min_token is not None:
            await self._fresh(options.min_token, owner=True)
            owned = self._admit(options)
        return await owned.submit(transaction, options)

    async def read(self, key: str, options: Options) -> api.ReadAnswer:
        """Reads a key."""
        await self._prepare(options)
        return self.read_now(key, options)

    async def scan(self, span: api.Range, options: Options) -> api.Page:
        """Reads a page of keys."""
        await self._prepare(options)
        at = self.replica.commit_seq
        if span.at is not None and span.at > at:
            raise Unavailable("this replica has not reached the page's state yet")
        at = at if span.at is None else span.at
        found, more = self.replica.scan(start=span.start, end=span.end, after=span.after, limit=span.limit, at=at)
        items = [api.Item(key, record) for key, record in found]
        page = api.Page(items=items, more=more, token=self._token_at(at), seq=at)
        self._confirm_read(options)
        return page

    async def history(self, key: str, *, before: int | None, limit: int, options: Options) -> api.HistoryPage:
        """Reads versions of a key, newest first."""
        await self._prepare(options)
        at = self.replica.commit_seq
        changes, more = self.replica.history(key, before=before, limit=limit, at=at)
        page = api.HistoryPage(changes=changes, more=more, token=self.token())
        self._confirm_read(options)
        return page

    def committed_token(self) -> Token | None:
        """`token`; None: the replica is not open."""
        return None if self.replica.closed else self.token()

    def token(self) -> Token:
        """Where this replica's committed state stands."""
        return self._token_at(self.replica.commit_seq)

    def _token_at(self, seq: int) -> Token:
        position = self.replica.position_at(seq)
        return Token(position.epoch, position.txid)

    def _admit(self, options: Options) -> Owned:
        around = self._around
        now, deadline = around.clock.now(), around.session.deadline
        try:
            self.fence.admit(now=now, deadline=deadline, client_epoch=options.epoch)
        except NotOwner:
            around.meters.refused(role=self.fence.role, now=now, deadline=deadline)
            raise
        if self._moving:
            raise NotOwner("the partition is being moved", epoch=self.fence.epoch)
        assert self.owned is not None, self.fence
        return self.owned

    async def _prepare(self, options: Options) -> None:
        """Before a read: as fresh as was asked for. What is read next is one snapshot: no await comes between."""
        primary = options.consistency is Consistency.PRIMARY
        if primary:
            self._admit(options)
        if options.min_token is not None:
            await self._fresh(options.min_token, owner=primary)
        if primary:
            self._admit(options)
        if self.replica.closed:
            raise Unavailable(f"{self.name}: its replica here is not open")

    def _confirm_read(self, options: Options) -> None:
        """After the snapshot of a primary read: the deadline must not have passed meanwhile."""
        if options.consistency is Consistency.PRIMARY:
            self._admit(options)

    async def _fresh(self, token: Token, *, owner: bool) -> None:
        """Waits until this replica has reached `token`."""
        try:
            async with asyncio.timeout(limits.FRESH_SECONDS_MAX):
                while judge(token, at=self.token(), ends=self.replica.ends) is not Freshness.SATISFIED:
                    if owner and token.epoch > self.fence.epoch:
                        raise NotOwner(f"a newer owner exists: epoch {token.epoch}", epoch=token.epoch)
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError as error:
            text = f"token {token} was not reached in time, this replica is at {self.token()}"
            raise (Unavailable(text) if owner else NotOwner(text)) from error

    # -- the Lease --------------------------------------------------------------------------------------------

    def lease_changed(self, raw: dict[str, Any]) -> None:
        """Takes note of the partition Lease as a watch or a list showed it."""
        self._raw = raw
        if not self._settling and not self._closed:
            self._settling = True
            self._around.spawn(self._settle())

    async def _settle(self) -> None:
        try:
            while self._raw is not None and not self._closed:
                raw, self._raw = self._raw, None
                await self._become(PartitionLease.parse(raw))
        finally:
            self._settling = False

    async def _become(self, seen: PartitionLease) -> None:
        known = max(self.fence.epoch, self.lease.epoch if self.lease else 0)
        if seen.partition_uid != self.spec.uid or seen.epoch < known:
            return  # of an earlier partition of that name, or an older state of the Lease
        self.lease = seen
        self.waiting.changed()
        self._around.memory.granted(self.spec.uid, seen.epoch)
        if seen.session == self._around.session.session:
            if seen.epoch > self.fence.epoch and not seen.is_released:
                async with self._replica_changes:
                    await self._begin(seen)
            return
        self._depose(NotOwner("another session owns the partition", epoch=seen.epoch))
        own_pod = self._around.session.session.pod
        if seen.session is not None and seen.session.pod != own_pod and not seen.is_released:
            urgent = is_needed(
                self.member,
                members=seen.in_sync,
                has_epoch=self.replica.last.epoch >= seen.epoch,
                min_in_sync=self.spec.min_in_sync,
            )
            self._around.links.follow(self.spec.uid, self, seen.owner_peer, urgent=urgent)

    async def _begin(self, seen: PartitionLease) -> None:
        """The Lease grants us a new epoch."""
        self._around.links.unfollow(self.spec.uid)
        self._depose(NotOwner("granted anew", epoch=seen.epoch))
        # From here on this shard reports the epoch, so that no other grant uses it again.
        self.fence = self.fence.on(Event.GRANT, epoch=seen.epoch)
        current = await taken(
            seen,
            replica=self.replica,
            member=self.member,
            spec=self.spec,
            around=self._around,
            wanted=self._wanted,
        )
        if self.fence != Fence(role=Role.GRANTED, epoch=seen.epoch):
            return  # closed meanwhile
        if current is None:
            self.fence = self.fence.on(Event.DEPOSED)
            return
        around = self._around
        around.meters.changes[Change.GRANTED] += 1
        self._grown_to = self.replica.last.seq
        engine = Engine(
            replica=self.replica,
            epoch=seen.epoch,
            member=self.member,
            session=around.session,
            clock=around.clock,
            spec=self.spec,
            on_growth=self._grown,
            on_deposed=partial(self._deposed_under, seen.epoch, Gate.PROMISE),
            on_fatal=around.on_fatal,
            meters=around.meters,
        )
        membership = Membership(
            kube=around.kube,
            namespace=around.namespace,
            session=around.session.session,
            engine=engine,
            lease=current,
            on_deposed=partial(self._deposed_under, seen.epoch),
        )
        rota, doubt = around.rota, self._trimmer.check
        self.owned = Owned(engine=engine, membership=membership, rota=rota, spawn=around.spawn, on_doubt=doubt)
        around.begun(self.spec.uid)
        around.spawn(self._open(self.owned, seen))

    def _wanted(self) -> bool:
        return not self._closed and not self._around.session.over

    async def _open(self, owned: Owned, seen: PartitionLease) -> None:
        session, began = str(self._around.session.session), self._around.clock.now()
        while self.owned is owned:
            try:
                await owned.engine.open(
                    session=session,
                    members=seen.in_sync,
                    set_version=seen.set_version,
                    accepted_loss=seen.accepted_loss,
                )
                break
            except Exhausted as error:
                logger.warning("%s: epoch %d not opened yet: %s", self.name, seen.epoch, error)
                await asyncio.sleep(OPEN_PAUSE_SECONDS)
            except FenceKVError as error:
                logger.info("%s: epoch %d not opened: %s", self.name, seen.epoch, error)
                return
        if self.owned is owned and self.fence.role is Role.GRANTED:
            self.fence = self.fence.on(Event.OPENED)
            self.waiting.changed()
            self._around.meters.opened(self._around.clock.now() - began)
            logger.info("%s: owner with epoch %d", self.name, seen.epoch)

    def _deposed_under(self, epoch: int, gate: Gate | None = None) -> None:
        """What worked for `epoch` found out that a newer one exists: which may be ours as well."""
        if gate is not None:
            self._around.meters.refusals[gate] += 1
        if self.fence.epoch == epoch:
            self._depose(NotOwner("a newer owner exists", epoch=epoch))

    def _depose(self, error: FenceKVError) -> None:
        if self.owned is not None:
            self._around.meters.changes[Change.DEPOSED] += self.fence.role is not Role.CLOSED
            self.owned.stop(error)
            self.owned = None
        if self.fence.role is not Role.STANDBY:
            self.fence = self.fence.on(Event.DEPOSED)

    # -- planned moves ----------------------------------------------------------------------------------------

    async def move(self, target: str = "") -> bool:
        """Gives the partition away: drains, closes the epoch, releases the Lease. False: it could not.

        `target` empty: the first standby, in the order of placement, that holds everything.
        """
        owned = self.owned
        if owned is None or self.fence.role not in {Role.OWNER, Role.GRANTED} or self._moving:
            return False
        self._moving = True
        meters, began = self._around.meters, self._around.clock.now()
        meters.changes[Change.MOVING] += 1
        try:
            if not await owned.drained():
                return False
            chosen = target or owned.in_sync_target(self.spec.replicas)
            seq = self.replica.last.seq
            await self.replica.close_epoch(owned.engine.epoch)
            if self.owned is owned:
                self.fence = self.fence.on(Event.CLOSE)
            # Also when it was deposed meanwhile: a closed epoch that still stands on the Lease serves nobody.
            owned.engine.expire(NotOwner("the partition is being moved"), Unknown("the epoch was closed"))
            await owned.membership.release(seq=seq, target=chosen)
            meters.moved(self._around.clock.now() - began)
            return True
        except CommitFailed as error:
            self._around.on_fatal(error)
            return False
        except (Closed, DiskFull) as error:
            logger.warning("%s: not moved: %s", self.name, error)
            owned.resume()
            return False
        finally:
            self._moving = False
            self.waiting.changed()

    async def succeeded(self, epoch: int) -> None:
        """Waits until the owner after `epoch` has committed something here, and so serves; or for a while."""
        try:
            async with asyncio.timeout(limits.SUCCESSION_SECONDS_MAX):
                while self.token().epoch <= epoch:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            logger.info("%s: nobody serves it yet after epoch %d", self.name, epoch)

    @property
    def holding(self) -> bool:
        """Whether `hold` would wait."""
        return self._moving or self.fence.role in {Role.CLOSED, Role.GRANTED}

    async def hold(self) -> None:
        """Waits while a planned move is under way, or an epoch is being opened, and no other owner is known."""
        await self.waiting.wait(while_=lambda: self.holding)

    # -- following --------------------------------------------------------------------------------------------

    async def reseed(self, epoch: int, seed: Seed | None = None) -> None:
        """Puts `seed`, or an empty replica, in the place of the one here, if `epoch` is still the promised one."""
        async with self._replica_changes:
            promised, around = self.replica.promised, self._around
            if promised != epoch or self.fence.role is not Role.STANDBY:
                return
            uid, executor = self.spec.uid, around.executor
            await self.replica.close()
            try:
                self.replica = await Replica.reseed(
                    around.folder, uid, executor=executor, new_id=around.new_id, promised=promised, seed=seed
                )
            except (DiskFull, Unreadable):  # the old one is still in place
                self.replica = await Replica.open(around.folder, uid, executor=executor, new_id=around.new_id)
                raise

    def follow_anew(self) -> None:
        """Subscribes once more, if there is an owner to follow."""
        if self.lease is not None and self.fence.role is Role.STANDBY and not self._closed:
            self._around.links.unfollow(self.spec.uid)
            self._around.links.follow(self.spec.uid, self, self.lease.owner_peer, urgent=True)

    def committed(self, seq: int) -> None:
        """The owner says that entries up to `seq` are committed."""
        if seq > self.replica.commit_seq:
            self.replica.commit(seq)
            self._progressed()

    def stale(self) -> None:
        """The owner that is followed acts under an older epoch than the one promised here."""
        self._around.meters.refusals[Gate.STANDBY] += 1

    def fatal(self, error: BaseException) -> None:
        """A commit failed: the process must end."""
        self._around.on_fatal(error)

    def _grown(self) -> None:
        self._grown_to = self._around.meters.grew(self.replica.last.seq, since=self._grown_to)
        if self.owned is not None:
            self.owned.grown()
        self._progressed()

    def _progressed(self) -> None:
        self._progress.set()
        self._applier.progressed()
        self._trimmer.progressed()

    # -- life -------------------------------------------------------------------------------------------------

    def respec(self, spec: PartitionSpec) -> None:
        """The KVPartition's spec changed."""
        assert spec.uid == self.spec.uid, (spec, self.spec)
        self.spec = spec
        self._trimmer.changed()
        if self.owned is not None:
            self.owned.engine.spec = spec
            self.owned.rouse()

    async def close(self) -> None:
        """Ends it on this shard; the files stay."""
        self._closed = True
        self._applier.stop()
        self._trimmer.stop()
        self._around.links.unfollow(self.spec.uid)
        self._depose(NotOwner("this shard does not hold the partition any more"))
        self.waiting.changed()
        async with self._replica_changes:
            await self.replica.close()

    def report(self) -> dict[str, object]:
        """This replica's part of the shard's report."""
        return {
            "uid": self.spec.uid,
            "partition": self.name,
            **self.replica.report(),
            "epoch": max(self.replica.known_epoch, self.fence.epoch),
            "role": str(self.fence.role),
            "serving": self.serving,
            "suspect": self._around.memory.is_suspect(self.spec.uid),
            **({} if self.owned is None else {"rounds": self.owned.engine.rounds}),
        }
