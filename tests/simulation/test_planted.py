"""The checks are proved by bugs planted in the real code: some seed finds each of them, and finds what it should.

Each world is troubled only by what the bug needs, so that a few seeds are enough.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from simulation.world import Settings, World, run

from fencekv.kube import LEASES, KubeError, Unclear
from fencekv.leases import Session, granted
from fencekv_operator import sessions
from fencekv_operator.grants import STEP_SECONDS, Writer
from fencekv_operator.ownership import Grant, Partition
from fencekv_operator.sessions import Seen, Track
from fencekv_shard import limits, replica
from fencekv_shard.engine import Engine
from fencekv_shard.fence import Fence
from fencekv_shard.journal import Entry
from fencekv_shard.overlay import Overlay
from fencekv_shard.replica import Replica
from fencekv_shard.store import Store
from fencekv_shard.tail import _Stream

SEEDS_MAX = 40


def slow_disks(world: World) -> None:
    """Many writes are under way at any moment."""
    world.disks.slow_chance, world.disks.slow_max = 0.5, 0.2


def check(settings: Settings, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Some seed finds the planted bug as what it is, by one of these words; the same world without it is well."""
    for seed in range(1, SEEDS_MAX + 1):
        findings = run(seed, settings, prepare=slow_disks).findings
        if any(word in finding for finding in findings for word in words):
            break
    else:
        pytest.fail(f"no seed finds it; the last one finds {findings}")
    monkeypatch.undo()
    assert run(seed, settings, prepare=slow_disks).findings == []


@pytest.mark.slow
def test_skipping_the_deadline_check_after_the_fsync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "within_deadline", lambda _engine: True)  # the fence still checks before a round
    settings = Settings(faults=("pause", "pause_at_commit"), clients=8, gap_seconds_max=8.0)
    check(settings, monkeypatch, "right to write was lost")


@pytest.mark.slow
def test_reading_past_the_deadline_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    admit = Fence.admit

    def careless(self: Fence, *, now: float, deadline: float, client_epoch: int | None) -> None:
        admit(self, now=0.0, deadline=1.0, client_epoch=None)

    monkeypatch.setattr(Fence, "admit", careless)
    check(Settings(faults=("pause",), clients=8), monkeypatch, "not linearizable", "version fell")


@pytest.mark.slow
def test_granting_without_the_observed_version_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def write_grant(self: Any, partition: Partition, raw: Any, grant: Grant) -> Any:
        body = granted(
            raw,
            session=grant.session,
            epoch=grant.epoch,
            in_sync=grant.in_sync,
            set_version=grant.set_version,
            http=grant.http,
            peer=grant.peer,
            unix_seconds=0.0,
        )
        try:
            name = body["metadata"]["name"]
            fresh = await self._kube.get(LEASES, partition.namespace, name, timeout=STEP_SECONDS)
            body["metadata"]["resourceVersion"] = fresh["metadata"]["resourceVersion"]
            return await self._kube.replace(LEASES, partition.namespace, body, timeout=STEP_SECONDS)
        except (KubeError, Unclear):
            return None

    monkeypatch.setattr(Writer, "_write_grant", write_grant)
    settings = Settings(faults=("crash", "crash_container", "blind_operators"), everyone_leads=True)
    check(settings, monkeypatch, "two owners")


@pytest.mark.slow
def test_confirming_before_the_fsync_of_the_standby_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    append = _Stream._append

    async def hasty(self: Any, epoch: int, *rest: Any) -> None:
        replica, entries = self._following.replica, rest[-1]
        if entries:
            await replica.promise(epoch)
            last = replica.last.seq + len(entries)
            await self._link.send(["confirm", self._uid, epoch, replica.replica_id, last])
            await asyncio.sleep(0.05)
        await append(self, epoch, *rest)

    monkeypatch.setattr(_Stream, "_append", hasty)
    settings = Settings(faults=("crash_two", "crash"), clients=6)
    check(settings, monkeypatch, "acknowledged write lost", "a token was lost")


@pytest.mark.slow
def test_counting_silence_that_another_renewal_broke_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(session: Session, seen: Seen | None, track: Track | None) -> object:
        """What the successor replaced is not compared with what was heard."""
        word = seen.lease.taken_from if seen is not None else None
        named = word is not None and word.session == session
        return track.heard.observation if track is not None and named else how_gone(session, seen, track)

    how_gone = sessions._how_gone
    monkeypatch.setattr(sessions, "_how_gone", careless)
    settings = Settings(faults=("follow_elsewhere",), gap_seconds_max=10.0, trouble_seconds=40.0)
    check(settings, monkeypatch, "may act for")


# -- the storage of a shard

SHOWS_WHAT_IS_NOT = ("a read showed what was taken back", "not linearizable", "version fell")


@pytest.mark.slow
def test_applying_ahead_of_what_is_committed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_step = Replica.apply_step

    async def hasty(self: Replica) -> int:
        self.commit(self.last.seq)  # whatever lies in the journal here, confirmed or not
        return await apply_step(self)

    monkeypatch.setattr(Replica, "apply_step", hasty)
    monkeypatch.setattr(Replica, "needs_apply", property(lambda self: self.last.seq > self.applied_seq))
    monkeypatch.setattr(limits, "APPLY_FILL", 0.0)  # as soon as there is anything
    settings = Settings(faults=("crash_container", "isolate", "cut_both"), clients=8)
    check(settings, monkeypatch, *SHOWS_WHAT_IS_NOT)


@pytest.mark.slow
def test_reading_the_overlay_as_of_a_later_entry_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    change = Overlay.change

    def latest(self: Overlay, key: str, _seq: int) -> Any:
        return change(self, key, self.last_seq)

    monkeypatch.setattr(Overlay, "change", latest)
    settings = Settings(faults=("crash_container", "isolate", "cut_both"), clients=8)
    check(settings, monkeypatch, *SHOWS_WHAT_IS_NOT)


@pytest.mark.slow
def test_a_replay_that_stops_one_entry_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checked_tail = replica.checked_tail

    def short(store: Store) -> list[Entry]:
        """The last entry is counted, so that the next one fits; what it wrote is not there."""
        entries = checked_tail(store)
        return [*entries[:-1], *(entry.replaced(operations=()) for entry in entries[-1:])]

    monkeypatch.setattr(replica, "checked_tail", short)
    # Whoever owns next was killed too, and has replayed; there is time to read before the next write.
    settings = Settings(faults=("crash_two",), shards=2, clients=6, keys=1, gap_seconds_max=5.0)
    check(settings, monkeypatch, *SHOWS_WHAT_IS_NOT)
