"""The model of a disk: what it lets a crash keep is all that a disk may keep, and the recording misses nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from crash.disk import Choice, Disk
from crash.recorder import LIVES, Recorder
from crash.shim import Event, Op

ROOT = "/data"
FILE, SYNCED_FILE, FOLDER = 3, 4, 5


def event(op: Op, **values: Any) -> Event:
    blank: dict[str, Any] = {
        "failed": False, "number": FILE, "flags": 0, "offset": 0, "path": "", "path2": "", "data": b"",
    }  # fmt: skip
    return Event(op=op, **{**blank, **values})


def write(offset: int, data: bytes, **values: Any) -> Event:
    return event(Op.WRITE, offset=offset, data=data, **values)


def played(*events: Event) -> Disk:
    """A folder with a durable empty file `a`, and then what happened."""
    disk = Disk(ROOT)
    begin = (
        event(Op.OPEN, path=f"{ROOT}/a", flags=os.O_CREAT),
        event(Op.OPEN, path=f"{ROOT}/a", flags=os.O_DSYNC, number=SYNCED_FILE),
        event(Op.OPEN, path=ROOT, number=FOLDER),
        event(Op.SYNC, number=FOLDER),
    )
    for each in (*begin, *events):
        disk.begin(each)
        disk.finish(each)
    return disk


def left(disk: Disk, choice: Choice, scratch: Path) -> dict[str, bytes]:
    folder = scratch / "left"
    folder.mkdir()
    disk.write(choice, folder)
    found = contents(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock.mdb"
    }


def all_left(disk: Disk, scratch: Path, tries: int = 300) -> set[tuple[tuple[str, bytes], ...]]:
    choices = disk.choices(random.Random(1), tries)
    return {tuple(sorted(left(disk, choice, scratch).items())) for choice in choices}


def only(contents: Iterable[tuple[tuple[str, bytes], ...]]) -> set[bytes]:
    """Of states with one file, what it holds."""
    return {file for ((_, file),) in contents}


def test_an_unsynced_write_may_be_kept_lost_or_leave_a_hole(scratch: Path) -> None:
    assert only(all_left(played(write(0, b"new")), scratch)) == {b"new", b"", b"\0\0\0"}


def test_a_synced_write_is_there(scratch: Path) -> None:
    disk = played(write(0, b"new"), event(Op.SYNC))
    assert only(all_left(disk, scratch)) == {b"new"}


def test_a_write_through_a_syncing_descriptor_is_there_and_brings_no_other_one(scratch: Path) -> None:
    disk = played(write(600, b"other"), write(0, b"new", number=SYNCED_FILE))
    found = only(all_left(disk, scratch))
    assert all(file.startswith(b"new") for file in found)
    assert b"new" in found


def test_unsynced_writes_may_be_kept_in_any_order(scratch: Path) -> None:
    disk = played(write(0, b"...."), event(Op.SYNC), *(write(at, b"x") for at in range(3)))
    found = only(all_left(disk, scratch))
    assert found == {bytes(x) for x in (b"....", b"x...", b".x..", b"..x.", b"xx..", b"x.x.", b".xx.", b"xxx.")}


def test_a_write_may_tear_between_sectors_and_not_within_one(scratch: Path) -> None:
    old, new = b"o" * 1536, b"n" * 1536
    found = only(all_left(played(write(0, old), event(Op.SYNC), write(0, new)), scratch))
    assert len(found) == 8
    assert all(file[at : at + 512] in {b"o" * 512, b"n" * 512} for file in found for at in (0, 512, 1024))


def test_a_failed_sync_brings_nothing_for_sure_nor_does_the_next_one(scratch: Path) -> None:
    disk = played(write(0, b"old"), event(Op.SYNC), write(0, b"new"), event(Op.SYNC, failed=True), event(Op.SYNC))
    assert only(all_left(disk, scratch)) == {b"old", b"new"}


def test_what_is_written_anew_after_a_failed_sync_is_durable_with_the_next_one(scratch: Path) -> None:
    disk = played(write(0, b"one"), event(Op.SYNC, failed=True), write(0, b"two"), event(Op.SYNC))
    assert only(all_left(disk, scratch)) == {b"two"}


def test_an_unsynced_truncation_may_be_lost(scratch: Path) -> None:
    disk = played(write(0, b"old"), event(Op.SYNC), event(Op.TRUNCATE, offset=1))
    assert only(all_left(disk, scratch)) == {b"old", b"o"}


def test_a_rename_is_all_or_nothing_until_its_folder_is_synced(scratch: Path) -> None:
    renamed = event(Op.RENAME, path=f"{ROOT}/a", path2=f"{ROOT}/b")
    names = {tuple(name for name, _ in files) for files in all_left(played(renamed), scratch)}
    assert names == {("a",), ("b",)}
    synced = played(renamed, event(Op.SYNC, number=FOLDER))
    assert {tuple(name for name, _ in files) for files in all_left(synced, scratch)} == {("b",)}


def test_a_renamed_file_may_have_lost_what_was_not_synced(scratch: Path) -> None:
    disk = played(write(0, b"new"), event(Op.RENAME, path=f"{ROOT}/a", path2=f"{ROOT}/b"))
    assert (("b", b""),) in all_left(disk, scratch)


@pytest.mark.parametrize("life", LIVES)
def test_a_recording_played_back_gives_the_very_files(life: str, library: Path, scratch: Path) -> None:
    with Recorder(library, scratch / "lives") as recorder:
        recording = recorder.record(life, 3)
    disk = Disk(str(recording.folder))
    for each in recording.events:
        disk.begin(each)
        disk.finish(each)
    assert left(disk, disk.whole(), scratch) == contents(recording.folder)
    assert any(name.endswith("data.mdb") for name in contents(recording.folder))


@pytest.mark.parametrize("life", LIVES)
def test_an_opening_drops_the_page_cache_before_it_reads(life: str, library: Path, scratch: Path) -> None:
    with Recorder(library, scratch / "lives") as recorder:
        events = recorder.record(life, 3).events
    dropped = {at for at, each in enumerate(events) if each.op is Op.FORGET}
    data = [at for at, each in enumerate(events) if each.op is Op.OPEN and each.path.endswith("/data.mdb")]
    writable = [
        at for at in data if events[at].flags & os.O_ACCMODE == os.O_RDWR and "seed" not in events[at].path
    ]
    assert writable
    for at in writable:
        earlier = max(other for other in data if other < at)
        assert any(earlier < drop < at for drop in dropped), events[at].path
