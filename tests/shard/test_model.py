"""The engine beside a model of it: whatever is asked, and whatever happens to it, both answer and hold the same.

A real engine over a real replica on disk. The disk holds commits back, refuses them, fails them; the process dies
at any moment; standbys confirm late; other owners come and go. What must hold after each step is in `check`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
from engine_life import B, C, Disk, Life
from engine_model import Asked, Model
from engine_wishes import BOUNDS, KEYS, PICKS, VALUES, WISH, WISHES, Condition, Wish
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from storage import ids

from fencekv.errors import Lost
from fencekv.token import Version
from fencekv_shard import limits, store
from fencekv_shard.api import Durability
from fencekv_shard.journal import Entry, Ownership, encode_entry, ownership_entry, transaction_entry
from fencekv_shard.store import BelowApplied, CommitFailed
from fencekv_shard.transaction import Compare, Delete, Put, Relation, Target, Transaction

LIMITS: Final = {  # small, so that each of them is met
    "APPLY_ENTRIES": 3,
    "APPLY_WRITES": 6,
    "OVERLAY_ENTRIES_MAX": 8,
    "ROUND_TRANSACTIONS_MAX": 4,
    "QUEUE_TRANSACTIONS_MAX": 14,
    "UNCOMMITTED_TRANSACTIONS_MAX": 14,
    "GATHER_TURNS_MAX": 3,
}

HOLDS = st.sampled_from(["", "", "before", "after"])
PLACES = st.tuples(PICKS, PICKS)
TURNS = st.sampled_from([0, 0, 1, 2, 4])  # 0: until all is quiet


class EngineBesideModel(RuleBasedStateMachine):
    """Engine and model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="fencekv-model-")
        self.model, self.disk = Model(), Disk()
        self._patches: list[Any] = [
            *(mock.patch.object(limits, name, value) for name, value in LIMITS.items()),
            mock.patch.object(store, "_require_room", self.disk.require_room),
            mock.patch.object(store, "_is_in_reserve", self.disk.in_reserve),
        ]
        for patch in self._patches:
            patch.start()
        self._new_id, self._numbers = ids(), itertools.count(1)
        self.keyed: list[Transaction] = []  # earlier ones with an idempotency key
        self.epoch = 0
        self.acknowledged_seq = -1
        self.life: Life

    @initialize(durability=st.sampled_from(list(Durability)))
    def begin(self, durability: Durability) -> None:
        self.durability = durability
        self.open()
        self.own()

    # -- requests

    @rule(wishes=WISHES, hold=HOLDS, turns=TURNS, confirmed=st.booleans())
    def ask(self, wishes: list[Wish], hold: str, turns: int, confirmed: bool) -> None:
        self.hold(hold)
        self.request(wishes, turns)
        if confirmed:
            self.confirm_all()
            self.life.turn(turns)

    @rule(wishes=WISHES, commit=st.sampled_from(["", "", "full", "lost", "kept"]), turns=TURNS)
    def ask_behind(self, wishes: list[Wish], commit: str, turns: int) -> None:
        """What comes while another round is at the disk rests on it, whatever becomes of that."""
        self.hold("before")
        self.request(wishes, 0)
        self.trouble(commit)
        self.request(wishes, 0)
        self.release(turns)

    @rule(member=st.sampled_from([B, B, C]), back=st.sampled_from([0, 0, 1, 3]), turns=TURNS)
    def confirm(self, member: str, back: int, turns: int) -> None:
        self.life.do(lambda: self.life.confirm(member, back))
        self.life.turn(turns)

    @rule(wishes=st.lists(WISH, max_size=2), confirmed=st.booleans(), turns=TURNS)
    def change_set(self, wishes: list[Wish], confirmed: bool, turns: int) -> None:
        """C joins the set, or leaves it; B may have what was asked before, and does not have the change."""
        self.request(wishes, 0)
        if confirmed:
            self.confirm(B, 0, 0)
        self.life.do(self.life.change_set)
        self.life.turn(turns)

    # -- the disk

    @precondition(lambda self: self.life.gate.holds)
    @rule(turns=TURNS)
    def release(self, turns: int) -> None:
        self.life.gate.release(self.life.loop)
        self.life.turn(turns)

    @rule(turns=TURNS)
    def apply(self, turns: int) -> None:
        self.life.spawn(self.life.replica.apply_step())
        self.life.turn(turns)

    @precondition(lambda self: not self.life.untold)
    @rule(back=st.sampled_from([0, 0, 1, 4]), trouble=st.sampled_from(["", "", "", "full", "lost", "kept"]))
    def fold(self, back: int, trouble: str) -> None:
        """Old history is forgotten, up to a seq; or there is no room; or the process is killed meanwhile."""
        self.life.gate.release(self.life.loop)
        self.life.turn(0)
        self.fill("none" if trouble == "full" else "much")
        self.hold("before" if trouble in ("lost", "kept") else "")
        self.life.spawn(self.life.fold(max(-1, self.life.replica.applied_seq - back)))
        self.life.turn(0)
        if trouble in ("lost", "kept"):
            self.reopen(kept=trouble == "kept")

    @rule(turns=TURNS)
    def trim(self, turns: int) -> None:
        self.life.spawn(self.life.replica.trim_step(self.life.replica.base.seq))
        self.life.turn(turns)

    @rule(room=st.sampled_from(["none", "reserve", "much", "much"]))
    def fill(self, room: str) -> None:
        self.disk.full, self.disk.reserve = room == "none", room == "reserve"
        self.life.cramped |= self.disk.cramped

    @rule(commit=st.sampled_from(["", "", "full", "lost", "kept"]))
    def trouble(self, commit: str) -> None:
        """The next commit finds no room, or it fails."""
        self.disk.commit = commit
        self.life.cramped |= self.disk.cramped

    # -- time

    @rule(seconds=st.sampled_from([0.5, 1.5, limits.UNCLEAN_ANSWER_SECONDS + 1]), turns=TURNS)
    def wait(self, seconds: float, turns: int) -> None:
        """Time passes; whoever has waited for too long is told so."""
        self.life.clock.seconds += seconds
        self.life.session.deadline = self.life.clock.now() + 4.0
        self.life.turn(turns)
        self.life.do(self.life.give_up)

    @rule(wishes=st.lists(WISH, max_size=2), told=st.booleans(), turns=TURNS)
    def lapse(self, wishes: list[Wish], told: bool, turns: int) -> None:
        """The session's deadline passes; it is renewed later."""
        assert self.life.engine is not None
        self.life.clock.seconds = self.life.session.deadline
        if told:
            self.life.do(self.life.engine.expire)
        self.request(wishes, turns)
        self.life.session.deadline += 4.0

    # -- ownership

    @rule(
        how=st.sampled_from(["granted", "outdone", "closed", "copied", "copied"]),
        wishes=st.lists(WISH, max_size=4),
        places=PLACES,
    )
    def change_owner(self, how: str, wishes: list[Wish], places: tuple[int, int]) -> None:
        """The epoch ends, perhaps in the middle of a round; the same replica is granted the next one."""
        if how == "granted":
            self.request(wishes, places[0])
        if how == "outdone":
            self.promise_more(wishes)
        if how == "closed":
            self.close_epoch()
        if self.life.gate.broken or not self.depose():
            return
        if how == "copied":
            self.copy(wishes, *places)
        self.own()

    def promise_more(self, wishes: list[Wish]) -> None:
        """A higher epoch is promised while the engine is at work, and does not know."""
        self.life.gate.release(self.life.loop)
        self.life.outdone = True
        self.epoch += 1
        replica = self.life.replica
        self.life.spawn(replica.promise(self.epoch))
        self.request(wishes, 0)
        last = replica.last
        if replica.promised == self.epoch:  # else there was no room for it
            self.request(wishes, 0)
            assert replica.last == last, "appended below the promise"

    def close_epoch(self) -> None:
        """As in a planned move: everything asked is answered, and then the epoch is closed for good."""
        self.well()
        self.answer_all()
        if not self.life.gate.broken:
            assert self.life.engine is not None
            self.confirm_all()
            self.life.run(self.life.engine.drained())
            self.life.run(self.life.replica.close_epoch(self.epoch))

    def copy(self, wishes: list[Wish], kept: int, committed: int) -> None:
        """Another session owned the partition: what it did not take over is cut off, what it did is copied."""
        self.well()
        life, replica = self.life, self.life.replica
        self.epoch += 1
        life.run(replica.promise(self.epoch))
        low = max(self.acknowledged_seq, replica.commit_seq, replica.applied_seq, 0)
        if replica.applied_seq > 0:
            with pytest.raises(BelowApplied):
                life.run(replica.truncate(replica.applied_seq - 1, epoch=self.epoch))
        at = min(low + kept, replica.last.seq)
        life.run(replica.truncate(at, epoch=self.epoch))
        self.model.cut(at)
        for entry in self.foreign(wishes):
            life.run(replica.append_copied([encode_entry(entry)], epoch=self.epoch))
        ends = [seq for seq in range(low, replica.last.seq + 1) if self.model.ends_round(seq)]
        replica.commit(ends[committed % len(ends)])
        if committed % 2:
            life.run(replica.apply_step())
        self.check()

    @rule(wishes=st.lists(WISH, max_size=4), hold=HOLDS, kept=st.booleans(), turns=TURNS)
    def crash(self, wishes: list[Wish], hold: str, kept: bool, turns: int) -> None:
        """kill -9, perhaps in the middle of a commit."""
        self.hold(hold)
        self.request(wishes, turns)
        self.reopen(kept=kept)

    # -- reads

    @rule(
        start=st.sampled_from(BOUNDS),
        end=st.sampled_from(BOUNDS),
        after=st.sampled_from(("", *KEYS)),
        limit=st.integers(1, 3),
        bytes_max=st.sampled_from([1, 45, 1000]),
        back=PICKS,
        before=PICKS,
    )
    def look(self, back: int, before: int, limit: int, **page: Any) -> None:
        """Pages at a seq of now or before: the next page may be asked for long after the one before it."""
        replica, model = self.life.replica, self.model
        at = max(-1, replica.last.seq - back)
        below = None if before == 0 else max(0, at - before + 2)
        with self.forgotten(at):
            assert replica.scan(limit=limit, at=at, **page) == model.scan(limit=limit, at=at, **page), at
        for key in KEYS:
            with self.forgotten(at if below is None else min(at, below - 1)):
                found = replica.history(key, before=below, limit=limit, at=at)
                assert found == model.history(key, before=below, limit=limit, at=at), (key, at, below)
            with self.forgotten(at):
                assert replica.read(key, at) == model.read(key, at), (key, at)

    @contextlib.contextmanager
    def forgotten(self, at: int) -> Iterator[None]:
        """A read as of a seq below the base must be refused."""
        if at >= self.model.floor:
            yield
        else:
            with pytest.raises(Lost):
                yield

    # -- what always holds

    @invariant()
    def check(self) -> None:
        life, replica, model = self.life, self.life.replica, self.model
        for finding in life.findings:
            raise finding if isinstance(finding, AssertionError) else AssertionError(finding)
        if life.fatal:  # the process ends, with what it was doing
            assert all(isinstance(error, CommitFailed) for error in life.fatal), life.fatal
            self.reopen(kept=False)
            return
        life.follow()
        assert replica.last.seq == model.last_seq
        assert replica.applied_seq <= replica.commit_seq <= replica.last.seq
        assert model.ends_round(replica.commit_seq), replica.commit_seq
        if self.durability is Durability.REPLICATED and life.engine is not None:
            confirmed_seq = max(life.opened_seq, life.confirmed_seq)
            assert replica.commit_seq <= confirmed_seq, (replica.commit_seq, life.confirmed)
        overlay = replica._overlay
        held = [entry for entry in overlay.above(-1) if entry.actor and entry.epoch == life.epoch]
        assert len(held) <= limits.OVERLAY_ENTRIES_MAX, len(held)
        self.acknowledged_seq = max(self.acknowledged_seq, life.acknowledged_seq)
        for at in {model.floor, replica.commit_seq, replica.last.seq}:
            listed = replica.scan(start="", end="", after="", limit=99, at=at)
            assert listed == model.scan(start="", end="", after="", limit=99, bytes_max=1 << 20, at=at), at
            for key in KEYS:
                assert replica.read(key, at) == model.read(key, at), (key, at)

    # -- steps of rules

    def request(self, wishes: Sequence[Wish], turns: int) -> None:
        async def ask() -> None:
            for wish in wishes:
                for _ in range(wish.turns):
                    await asyncio.sleep(0)
                transaction = self.transaction(wish)
                asked = Asked(transaction.actor, self.life.epoch, transaction, wish.replicated)
                self.life.ask(asked, transaction)

        self.life.loop.run_until_complete(ask())
        self.life.turn(turns)

    def hold(self, how: str) -> None:
        """From now on commits are held back, unless some are already."""
        if how and not self.life.gate.holding:
            self.life.gate.holds = how

    def open(self) -> None:
        self.life = Life.begin(Path(self._folder.name), self.model, self.disk, self.durability, self._new_id)

    def own(self) -> None:
        self.well()
        self.epoch += 1
        self.life.own(self.epoch)

    def depose(self) -> bool:
        """The engine is stopped, what it was writing comes to an end; whether the process lives on."""
        self.life.depose()
        self.life.gate.release(self.life.loop)
        self.life.turn(0)
        if self.life.gate.broken:
            self.reopen(kept=False)
            return False
        self.life.forget()
        return True

    def well(self) -> None:
        """Nothing is wrong with the disk, and nothing is held back."""
        self.disk.full, self.disk.reserve, self.disk.commit = False, False, ""
        self.life.gate.release(self.life.loop)

    def answer_all(self) -> None:
        """Everybody who waits is told something, once the standbys have confirmed everything."""
        for _ in range(50):
            self.life.session.deadline = self.life.clock.now() + 4.0
            self.life.turn(0)
            if not self.life.untold:
                return
            self.confirm_all()
        raise AssertionError(f"never answered: {[asked.actor for asked in self.life.untold]}")

    def confirm_all(self) -> None:
        for member in (B, C):
            self.confirm(member, 0, 0)

    def reopen(self, *, kept: bool) -> None:
        self.life.die(kept=kept)
        self.open()
        self.own()

    def transaction(self, wish: Wish) -> Transaction:
        """What is asked; its actor is nobody else's."""
        number = next(self._numbers)
        earlier = self.keyed[wish.pick % len(self.keyed)] if self.keyed else None
        if wish.repeat == "same" and earlier is not None:
            return earlier.replaced(actor=f"c{number}")
        key = b"key-%d" % number if wish.repeat == "once" else b""
        if wish.repeat == "again" and earlier is not None:
            key = earlier.idempotency_key
        transaction = Transaction(
            compare=tuple(map(self.compare, wish.compare)),
            then=tuple(wish.then),
            otherwise=tuple(wish.otherwise),
            actor=f"c{number}",
            idempotency_key=key,
        )
        if key:
            self.keyed.append(transaction)
        return transaction

    def compare(self, condition: Condition) -> Compare:
        key, target, relation, pick = condition.key, condition.target, condition.relation, condition.pick
        if target is Target.EXISTS:
            relation = relation if relation in (Relation.EQUAL, Relation.UNEQUAL) else Relation.EQUAL
            return Compare(key, target, relation, pick % 2 == 0)
        if target is Target.VALUE:
            return Compare(key, target, relation, VALUES[pick % len(VALUES)])
        seen = self.model.read(key, self.model.last_seq)
        versions = [seen.version if seen else Version(0, 0), Version(self.epoch, self.model.last_seq - pick)]
        return Compare(key, target, relation, versions[pick % 2])

    def foreign(self, wishes: Sequence[Wish]) -> Iterator[Entry]:
        """What another owner's journal says behind the end of this one; the model takes it over."""
        replica = self.life.replica
        last = replica.last
        ownership = Ownership(
            previous_epoch=last.epoch,
            previous_seq=last.seq,
            previous_txid=last.txid,
            previous_chain=replica.chain,
            session="other",
        )
        seq, txid = last.seq + 1, last.txid + 1
        entry = ownership_entry(seq=seq, txid=txid, epoch=self.epoch, unix_ns=1, ownership=ownership)
        self.model.copy(entry, None)
        yield entry
        for wish in wishes:
            transaction = self.transaction(wish)
            key = transaction.idempotency_key
            outcome = self.model.outcome(Asked(transaction.actor, self.epoch, transaction))
            if not outcome.adds:
                continue
            writes = outcome.writes.items()
            seq, txid = seq + 1, txid + 1
            entry = transaction_entry(
                seq=seq,
                txid=txid,
                epoch=self.epoch,
                unix_ns=1,
                actor=transaction.actor,
                writes=[Delete(name) if value is None else Put(name, value) for name, value in writes],
                idempotency=(key, transaction.fingerprint()) if key else None,
            )
            self.model.copy(entry, transaction)
            yield entry

    # -- the end

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else something was found already
                self.finish()
        finally:
            if hasattr(self, "life") and not self.life.dead:
                self.life.die(kept=False)
            for patch in self._patches:
                patch.stop()
            self._folder.cleanup()

    def finish(self) -> None:
        """Once nothing is in the way any more, everybody is answered, and the disk holds what the model does."""
        self.well()
        self.answer_all()
        self.check()  # which reopens it if the disk failed
        self.life.run(self.life.replica.verify())
        self.life.close()
        self.open()
        replica, model = self.life.replica, self.model
        for at in range(-1, model.last_seq + 1):
            with self.forgotten(at):
                listed = replica.scan(start="", end="", after="", limit=99, at=at)
                assert listed == model.scan(start="", end="", after="", limit=99, bytes_max=1 << 20, at=at), at
            for key in KEYS:
                with self.forgotten(at):
                    assert replica.read(key, at) == model.read(key, at), (key, at)
        for key in KEYS:
            found = replica.history(key, limit=999, at=replica.last.seq)
            assert found == model.history(key, before=None, limit=999, at=replica.last.seq), key
        self.life.close()


class Briefly(EngineBesideModel):
    """As `make check` has time for it."""


TestEngineBesideModelBriefly = Briefly.TestCase
TestEngineBesideModelBriefly.settings = settings(
    max_examples=35, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

TestEngineBesideModel = pytest.mark.slow(EngineBesideModel.TestCase)
TestEngineBesideModel.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
