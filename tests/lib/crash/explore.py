"""Trying the states that a recorded life can leave: each is laid down, opened, and judged by the life's story.

Invariants:
  * A state that was opened once is not opened again, but it is judged at each point where it can be left: the same
    bytes may be right before an acknowledgement and wrong after it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from crash.disk import Choice, Disk
from crash.observe import observe
from crash.recorder import LIVES, TERMS, Recorder, Recording
from crash.shim import Op
from crash.story import Found, Story

CHOICES_MAX: Final = 24  # tried at one point
GO_ON_EVERY: Final = 8  # one in so many states is worked on after the crash, and opened again
FINDINGS_MAX: Final = 5
LONG_EVERY: Final = 5  # seeds: one is lived for long, and crashed in its last quarter, on a deeper tree
LONG_TERMS: Final = 12
STATES_A_LIFE: Final = 1500  # about, with those of its recoveries


@dataclass(slots=True)
class Tally:
    """What was tried. `tried`: points and ways to crash; `distinct`: different contents, each opened."""

    tried: int = 0
    distinct: int = 0
    lives: int = 0
    acknowledged: int = 0
    findings: list[str] = field(default_factory=list)

    def __iadd__(self, other: Tally) -> Tally:
        self.tried += other.tried
        self.distinct += other.distinct
        self.lives += other.lives
        self.acknowledged += other.acknowledged
        self.findings += other.findings
        return self


class Explorer:
    """Opens states below a folder, best one in memory."""

    def __init__(self, folder: Path, rng: random.Random, *, choices_max: int = CHOICES_MAX) -> None:
        self._folder = folder
        self._rng = rng
        self._choices_max = choices_max
        self._loop = asyncio.Runner()

    def __enter__(self) -> Self:
        logging.disable(logging.ERROR)  # what a crash left is reported by thousands, and is no news here
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.disable(logging.NOTSET)
        self._loop.close()

    def explore(
        self, recording: Recording, *, first: int = 0, part: float = 1.0, distinct_max: int | None = None
    ) -> Tally:
        """Crashes a life at its points from event `first` on, until enough was found or tried.

        `part`: at how many of them, chosen by chance.
        """
        return self._explore(recording, Disk(str(recording.folder)), Story(), first, part, distinct_max)

    def _explore(
        self,
        recording: Recording,
        disk: Disk,
        story: Story,
        first: int,
        part: float,
        distinct_max: int | None,
    ) -> Tally:
        seen, tally = dict[bytes, Found](), Tally(lives=1)
        for place in _played(recording, disk, story):
            if place >= first and (part == 1.0 or self._rng.random() < part):
                self._crash(place, disk, story, seen, tally)
            if len(tally.findings) >= FINDINGS_MAX or (
                distinct_max is not None and tally.distinct >= distinct_max
            ):
                break
        tally.acknowledged = story.acknowledged
        return tally

    def explore_recoveries(
        self, recording: Recording, recorder: Recorder, *, count: int, part: float = 1.0
    ) -> Tally:
        """Crashes a life, lets another process open what is left, and crashes that one at each of its points.

        Half of them where a replica is made, cut or seeded anew, as far as there are such points.
        """
        story = Story()
        turning = [place for place in _played(recording, Disk(str(recording.folder)), story) if story.turning]
        chosen = set(self._rng.sample(turning, min(count // 2, len(turning))))
        chosen.update(self._rng.sample(range(len(recording.events)), count - len(chosen)))
        disk, story, total = Disk(str(recording.folder)), Story(), Tally()
        for place in _played(recording, disk, story):
            if place not in chosen:
                continue
            choice = self._rng.choice(list(disk.choices(self._rng, self._choices_max)))
            folder = recorder.new_folder()
            disk.write(choice, folder)
            after = recorder.record("recovery", place, terms=1, folder=folder)
            assert after.status == 0, (place, choice, after.said)
            tally = self._explore(after, disk.crashed(choice, str(folder)), copy.deepcopy(story), 0, part, None)
            tally.findings = [f"crash at event {place}, keeping {choice}; then {text}" for text in tally.findings]
            total += tally
        return total

    def _crash(self, place: int, disk: Disk, story: Story, seen: dict[bytes, Found], tally: Tally) -> None:
        for choice in disk.choices(self._rng, self._choices_max):
            tally.tried += 1
            digest = disk.digest(choice)
            found = seen.get(digest)
            if found is None:
                tally.distinct += 1
                found = seen[digest] = self._found(disk, choice, go_on=tally.distinct % GO_ON_EVERY == 0)
            problem = story.judge(found)
            if problem:
                tally.findings.append(f"crash at event {place}, keeping {choice}: {problem}")
                return

    def _found(self, disk: Disk, choice: Choice, *, go_on: bool) -> Found:
        folder = self._folder / "state"
        folder.mkdir()
        try:
            disk.write(choice, folder)
            return self._loop.run(observe(folder, go_on=go_on))
        finally:
            shutil.rmtree(folder)


def _played(recording: Recording, disk: Disk, story: Story) -> Iterator[int]:
    """Plays a life to a disk and a story, and stops within each call and at the end."""
    for place, event in enumerate(recording.events):
        if event.op is Op.MARK:
            story.tell(event.mark())
        disk.begin(event)
        yield place
        disk.finish(event)
    yield len(recording.events)


def lives(kinds: Sequence[str], first: int, step: int) -> Iterator[tuple[str, int]]:
    """Lives to be recorded, without end: their kinds by turns, each with a seed of its own."""
    seed = first
    while True:
        for life in kinds:
            yield life, seed
        seed += step


def run(
    library: Path,
    scratch: Path,
    *,
    states: int,
    first: int = 1,
    step: int = 1,
    choices_max: int = CHOICES_MAX,
    planted: str | None = None,
    kinds: Sequence[str] = LIVES,
) -> Tally:
    """Records lives and explores them until so many distinct states were opened, or something was found.

    Every so often a crash is followed by a second one, while the next process opens what the first one left. Where
    few states are asked for, lives are crashed at some of their points alone, so that each kind has its share.
    """
    part = min(1.0, states / len(kinds) / STATES_A_LIFE)
    total = Tally()
    explorer = Explorer(scratch, random.Random(first), choices_max=choices_max)
    with Recorder(library, scratch / "lives") as recorder, explorer:
        for life, seed in lives(kinds, first, step):
            long = seed % LONG_EVERY == 0
            recording = recorder.record(life, seed, terms=LONG_TERMS if long else TERMS, planted=planted)
            assert recording.status == 0, recording.said
            first = len(recording.events) * 3 // 4 if long else 0
            most = states - total.distinct
            tally = explorer.explore(recording, first=first, part=part, distinct_max=most)
            if not tally.findings and not planted and tally.distinct < most:
                tally += explorer.explore_recoveries(recording, recorder, count=choices_max // 2, part=part)
            tally.findings = [f"{life} {seed}: {finding}" for finding in tally.findings]
            total += tally
            if total.findings or total.distinct >= states:
                break
    return total


def fast_folder() -> str | None:
    """Where scratch files go: memory, else (None) wherever temporary files go."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run_share(library: Path, states: int, workers: int, worker: int) -> Tally:
    """One process's share of a run: a life that no other one lives."""
    with tempfile.TemporaryDirectory(dir=fast_folder(), prefix="fencekv-crash-") as name:
        return run(library, Path(name), states=-(-states // workers), first=1 + worker, step=workers)
