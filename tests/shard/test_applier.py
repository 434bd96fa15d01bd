"""When the derived tables follow the journal: soon after a flood, later after a trickle."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from fencekv_shard import limits
from fencekv_shard.applier import Applier
from fencekv_shard.replica import Replica

IDLE_SECONDS = 0.02
PATIENT_SECONDS = 1.0
LITTLE_BYTES = 100


class Overlay:
    """As much of a replica as an applier looks at."""

    def __init__(self) -> None:
        self.commit_seq, self.applied_seq = -1, -1
        self.overlay_bytes, self.overlay_fill = 0, 0.0
        self.steps = 0

    @property
    def needs_apply(self) -> bool:
        return self.commit_seq > self.applied_seq

    async def apply_step(self) -> int:
        self.steps += 1
        self.applied_seq, self.overlay_bytes, self.overlay_fill = self.commit_seq, 0, 0.0
        return 0


@pytest.fixture(name="overlay")
def make_overlay(monkeypatch: pytest.MonkeyPatch) -> Overlay:
    monkeypatch.setattr(limits, "APPLY_IDLE_SECONDS", IDLE_SECONDS)
    monkeypatch.setattr(limits, "APPLY_FEW_SECONDS", PATIENT_SECONDS)
    return Overlay()


class Applying:
    """An applier, and when its steps ended, in seconds from its making."""

    def __init__(self, overlay: Overlay, *, name: str = "p-0") -> None:
        self.overlay, self.applied = overlay, asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._applier = Applier(
            name=name,
            replica=lambda: cast(Replica, overlay),
            spawn=self._spawn,
            on_fatal=lambda error: pytest.fail(repr(error)),
            on_applied=self.applied.set,
        )
        self._began = asyncio.get_running_loop().time()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def commit(self, entries: int, *, size: int = LITTLE_BYTES, fill: float = 0.01) -> None:
        self.overlay.commit_seq += entries
        self.overlay.overlay_bytes += size
        self.overlay.overlay_fill += fill
        self._applier.progressed()

    async def ended(self) -> float:
        await asyncio.wait_for(self.applied.wait(), 10 * PATIENT_SECONDS)
        self.applied.clear()
        return asyncio.get_running_loop().time() - self._began


@pytest.mark.parametrize(
    ("entries", "size", "patient"),
    [
        (1, LITTLE_BYTES, True),
        (limits.APPLY_FEW_ENTRIES, limits.APPLY_FEW_BYTES, True),
        (limits.APPLY_FEW_ENTRIES + 1, LITTLE_BYTES, False),
        (1, limits.APPLY_FEW_BYTES + 1, False),
    ],
)
async def test_few_small_entries_wait_for_more(overlay: Overlay, entries: int, size: int, patient: bool) -> None:
    applying = Applying(overlay)
    applying.commit(entries, size=size)
    took = await applying.ended()
    assert (took >= PATIENT_SECONDS / 2) is patient
    assert took >= IDLE_SECONDS
    assert overlay.applied_seq == overlay.commit_seq


async def test_few_that_become_many_wait_no_longer_than_a_quiet_moment(overlay: Overlay) -> None:
    applying = Applying(overlay)
    applying.commit(1)
    await asyncio.sleep(0)
    applying.commit(limits.APPLY_FEW_ENTRIES)
    assert await applying.ended() < PATIENT_SECONDS / 2


async def test_partitions_that_begin_to_wait_together_do_not_end_together(overlay: Overlay) -> None:
    several = [Applying(Overlay(), name=f"p-{index}") for index in range(16)]
    for applying in several:
        applying.commit(1)
    took = await asyncio.gather(*(applying.ended() for applying in several))
    assert min(took) >= PATIENT_SECONDS / 2
    assert max(took) - min(took) >= PATIENT_SECONDS / 4


async def test_many_single_entries_are_one_step(overlay: Overlay) -> None:
    applying = Applying(overlay)
    for _ in range(limits.APPLY_FEW_ENTRIES):
        applying.commit(1)
        await asyncio.sleep(IDLE_SECONDS / 4)
    assert await applying.ended() < PATIENT_SECONDS, "from the first one on"
    assert (overlay.steps, overlay.applied_seq) == (1, overlay.commit_seq)


async def test_a_full_overlay_waits_for_nothing(overlay: Overlay) -> None:
    applying = Applying(overlay)
    applying.commit(1, fill=limits.APPLY_FILL)
    assert await applying.ended() < IDLE_SECONDS
