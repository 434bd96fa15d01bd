"""A full disk is no failed commit: what frees room goes on, the rest is refused, and comes back by itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from crash.explore import Explorer
from crash.recorder import Recorder, Recording


def told(recording: Recording) -> list[dict[str, Any]]:
    return [recording.events[place].mark()[1] for place in recording.marks("told")]


def lived_and_crashed(life: str, library: Path, scratch: Path) -> Recording:
    """The life, which must end well, and no state of which may lie."""
    with (
        Recorder(library, scratch / "lives") as recorder,
        Explorer(scratch, random.Random(1), choices_max=6) as explorer,
    ):
        recording = recorder.record(life, 1)
        assert recording.status == 0, recording.said
        assert explorer.explore(recording).findings == []
    return recording


def test_below_the_reserve_only_deletes_are_taken_and_puts_come_back_by_themselves(
    library: Path, scratch: Path
) -> None:
    recording = lived_and_crashed("full disk", library, scratch)
    answers = {
        "room": ("committed", "committed"),
        "reserve": ("Exhausted", "committed"),
        "full": ("Exhausted", "Exhausted"),
    }
    asked = told(recording)
    assert [each["when"] for each in asked] == ["room", "reserve", "full"] * 3 + ["room"]
    for each in asked:
        assert (each["put"], each["removed"]) == answers[each["when"]], each
        assert each["kept"], each


def test_a_full_map_refuses_cleanly_and_loses_nothing(library: Path, scratch: Path) -> None:
    full, room = told(lived_and_crashed("full map", library, scratch))
    assert (full["put"], full["removed"], full["kept"]) == ("Exhausted", "committed", True)
    assert (room["put"], room["removed"], room["kept"]) == ("committed", "committed", True)
