"""What a disk may hold after a crash: a file system as loose as POSIX allows, fed with recorded calls.

Model:
  * A write or truncation stays pending until its file is synced, or is durable when it returns, through a
    descriptor that syncs each write. A crash keeps any subset of what is pending, and of each kept write any of
    its sectors; a file may have grown for a write whose data never came.
  * Names stay pending until their folder is synced. A crash keeps the first so many changes of each folder:
    journaling file systems keep their order, and promise no more.
  * A failed sync makes what was pending unsafe for good: any part of it may have reached the disk, and no later
    sync brings the rest, for the page cache calls those pages clean.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from crash.shim import Event, Op

SECTOR_BYTES: Final = 512
WHOLE: Final = -1  # a mask: every sector

Kept = tuple[tuple[int, ...], bool]  # of a file: a mask for each pending change, and whether it grew

_SUBSETS_MAX: Final = 32  # up to so many, all whole subsets are tried


@dataclass(slots=True)
class Change:
    """A write, or with `data` None a truncation to `offset`. `unsafe`: a sync of it failed."""

    offset: int
    data: bytes | None
    unsafe: bool = False

    @property
    def end(self) -> int:
        return self.offset + len(self.data or b"")

    @property
    def sectors(self) -> int:
        """How many sectors it touches."""
        if not self.data:
            return 1
        return (self.end - 1) // SECTOR_BYTES - self.offset // SECTOR_BYTES + 1

    def parts(self, mask: int) -> Iterator[tuple[int, bytes]]:
        """The chosen sectors of a write: (offset, bytes)."""
        assert self.data is not None
        if mask == WHOLE:
            yield self.offset, self.data
            return
        at = self.offset
        for index in range(self.sectors):
            stop = min((at // SECTOR_BYTES + 1) * SECTOR_BYTES, self.end)
            if mask >> index & 1:
                yield at, self.data[at - self.offset : stop - self.offset]
            at = stop


@dataclass(slots=True)
class File:
    """A file: what is durable, and what is pending, in order."""

    number: int
    durable: bytearray = field(default_factory=bytearray)
    generation: int = 0  # of `durable`
    pending: list[Change] = field(default_factory=list)
    digests: dict[Kept, bytes] = field(default_factory=dict)  # of contents, for this generation

    def size(self) -> int:
        size = len(self.durable)
        for change in self.pending:
            size = change.offset if change.data is None else max(size, change.end)
        return size

    def content(self, masks: tuple[int, ...], *, grown: bool) -> bytearray:
        """What a crash leaves that keeps these sectors of what is pending."""
        assert len(masks) == len(self.pending), (len(masks), len(self.pending))
        content = bytearray(self.durable)
        for change, mask in zip(self.pending, masks, strict=True):
            if mask:
                _carry_out(content, change, mask)
        if grown and len(content) < self.size():
            content.extend(bytes(self.size() - len(content)))
        return content

    def settle(self, settled: list[Change]) -> None:
        """These pending changes are durable now; what an unsafe one wrote below them no longer matters."""
        for change in settled:
            _carry_out(self.durable, change, WHOLE)
        kept = [c for c in self.pending if all(c is not s for s in settled)]
        self.pending = [c for c in kept if not any(s.offset <= c.offset and c.end <= s.end for s in settled)]
        self._moved()

    def spoil(self) -> None:
        """A sync failed: sector by sector, what is pending may have reached the disk, and never will for sure."""
        spoiled: list[Change] = []
        for change in self.pending:
            if change.unsafe or change.data is None:
                spoiled.append(Change(change.offset, change.data, unsafe=True))
                continue
            for index in range(change.sectors):
                spoiled += [Change(at, data, unsafe=True) for at, data in change.parts(1 << index)]
        self.pending = spoiled
        self._moved()

    def _moved(self) -> None:
        self.generation += 1
        self.digests.clear()


def _carry_out(content: bytearray, change: Change, mask: int) -> None:
    if change.data is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    for at, data in change.parts(mask):
        if at > len(content):
            content.extend(bytes(at - len(content)))
        content[at : at + len(data)] = data


@dataclass(slots=True)
class Folder:
    """A folder: durable names, and pending changes of them. A change maps names to nodes (None: gone)."""

    number: int
    durable: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def names(self, kept: int | None = None) -> dict[str, File | Folder]:
        """The names when the first `kept` pending changes are carried out (None: all)."""
        names = dict(self.durable)
        for change in self.pending[:kept]:
            for name, node in change.items():
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
        return names

    def settle(self) -> None:
        self.durable, self.pending = self.names(), []


@dataclass(frozen=True, slots=True)
class Choice:
    """What of the pending changes a crash keeps: per file its masks and whether it grew, per folder how many."""

    files: Mapping[int, Kept]
    folders: Mapping[int, int]


class Disk:
    """A disk that records are played to."""

    def __init__(self, root: str) -> None:
        self._root = PurePosixPath(root)
        self._nodes = 0
        self._top = Folder(self._number())
        self._files: dict[int, File] = {}
        self._folders: dict[int, Folder] = {self._top.number: self._top}
        self._open: dict[int, tuple[File | Folder, bool]] = {}  # by descriptor; whether each write is synced

    def _number(self) -> int:
        self._nodes += 1
        return self._nodes

    def crashed(self, choice: Choice, root: str) -> Disk:
        """The disk that the next process finds, at another place: what a crash left is durable there."""
        after = Disk(root)
        for path, node in self._left(choice):
            if isinstance(node, Folder):
                after._new_folder(f"{root}/{path}")
            else:
                masks, grown = _kept(choice, node)
                after._new_file(f"{root}/{path}").durable = node.content(masks, grown=grown)
        for folder in after._folders.values():
            folder.settle()
        return after

    # -- playing records -------------------------------------------------------------------------------------

    def begin(self, event: Event) -> None:
        """The call is under way: what it changes is pending."""
        match event.op:
            case Op.OPEN:
                self._opened(event)
            case Op.WRITE:
                self._file(event).pending.append(Change(event.offset, event.data))
            case Op.TRUNCATE:
                self._file(event).pending.append(Change(event.offset, None))
            case Op.MKDIR:
                self._new_folder(event.path)
            case Op.UNLINK | Op.RMDIR:
                self._rename({event.path: None})
            case Op.RENAME:
                self._rename({event.path2: self._find(event.path), event.path: None})

    def finish(self, event: Event) -> None:
        """The call has returned: what it makes durable is durable."""
        if event.op is Op.SYNC:
            node, _ = self._open[event.number]
            if isinstance(node, Folder):
                if not event.failed:
                    node.settle()
            elif event.failed:
                node.spoil()
            else:
                node.settle([change for change in node.pending if not change.unsafe])
        elif event.op is Op.WRITE and self._open[event.number][1]:
            file = self._file(event)
            if event.failed:
                file.spoil()
            else:
                file.settle([file.pending[-1]])

    def _opened(self, event: Event) -> None:
        node = self._find(event.path)
        if node is None:
            assert event.flags & os.O_CREAT, f"{event.path} was there before the recording began"
            node = self._new_file(event.path)
        elif event.flags & os.O_TRUNC and isinstance(node, File) and node.size():
            node.pending.append(Change(0, None))
        self._open[event.number] = (node, bool(event.flags & os.O_DSYNC))

    def _new_folder(self, path: str) -> None:
        folder = Folder(self._number())
        self._folders[folder.number] = folder
        self._rename({path: folder})

    def _new_file(self, path: str) -> File:
        file = File(self._number())
        self._files[file.number] = file
        self._rename({path: file})
        return file

    def _file(self, event: Event) -> File:
        node, _ = self._open[event.number]
        assert isinstance(node, File), event
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        relative = PurePosixPath(path).relative_to(self._root)
        folder = self._top
        for part in relative.parts[:-1]:
            found = folder.names()[part]
            assert isinstance(found, Folder), path
            folder = found
        return folder, relative.name

    def _find(self, path: str) -> File | Folder | None:
        if PurePosixPath(path) == self._root:
            return self._top
        folder, name = self._parent(path)
        return folder.names().get(name)

    def _rename(self, changes: Mapping[str, File | Folder | None]) -> None:
        places = [(*self._parent(path), node) for path, node in changes.items()]
        folder = places[0][0]
        assert all(place is folder for place, _, _ in places), "a name that moves between folders"
        folder.pending.append({name: node for _, name, node in places})

    # -- crashing --------------------------------------------------------------------------------------------

    def whole(self) -> Choice:
        """Everything that was written is kept: the prefix of the log."""
        return Choice(
            {f.number: ((WHOLE,) * len(f.pending), False) for f in self._files.values() if f.pending},
            {f.number: len(f.pending) for f in self._folders.values() if f.pending},
        )

    def lost(self) -> Choice:
        """Everything that no sync covered is lost."""
        return Choice(
            {number: ((0,) * len(masks), False) for number, (masks, _) in self.whole().files.items()}, {}
        )

    def choices(self, rng: random.Random, count_max: int) -> Iterator[Choice]:
        """Ways to crash here: all kept, all lost, whole subsets, then torn ones by chance."""
        whole = self.whole()
        yield whole
        if not whole.files and not whole.folders:
            return
        yield self.lost()
        count = 2
        for choice in self._subsets(whole):
            if count == count_max // 2:
                break
            count += 1
            yield choice
        for _ in range(count_max - count):
            yield self._torn(whole, rng)

    def _subsets(self, whole: Choice) -> Iterator[Choice]:
        """All whole subsets of pending writes, if they are few, with the names as they stand and all lost."""
        total = sum(len(masks) for masks, _ in whole.files.values())
        if 1 << total > _SUBSETS_MAX:
            return
        for chosen in range(1 << total):
            files: dict[int, Kept] = {}
            at = 0
            for number, (masks, _) in whole.files.items():
                kept = tuple(WHOLE if chosen >> (at + index) & 1 else 0 for index in range(len(masks)))
                files[number] = (kept, False)
                at += len(masks)
            yield Choice(files, whole.folders)
            if whole.folders:
                yield Choice(files, {})

    def _torn(self, whole: Choice, rng: random.Random) -> Choice:
        files = {}
        for number in whole.files:
            masks = tuple(_mask(change, rng) for change in self._files[number].pending)
            files[number] = (masks, rng.random() < 0.5)
        folders = {number: rng.randint(0, kept) for number, kept in whole.folders.items()}
        return Choice(files, folders)

    def digest(self, choice: Choice) -> bytes:
        """Stands for what the disk holds after a crash that keeps this: equal for equal contents."""
        digest = hashlib.sha256()
        for path, node in self._left(choice):
            if isinstance(node, Folder):
                digest.update(b"d" + path.encode() + b"\0")
                continue
            kept = _kept(choice, node)
            if kept not in node.digests:
                masks, grown = kept
                node.digests[kept] = hashlib.sha256(node.content(masks, grown=grown)).digest()
            digest.update(b"f" + path.encode() + b"\0" + node.digests[kept])
        return digest.digest()

    def write(self, choice: Choice, folder: Path) -> None:
        """Lays what a crash leaves down in an empty folder."""
        for path, node in self._left(choice):
            if isinstance(node, Folder):
                (folder / path).mkdir()
            else:
                masks, grown = _kept(choice, node)
                (folder / path).write_bytes(node.content(masks, grown=grown))

    def _left(self, choice: Choice) -> Iterator[tuple[str, File | Folder]]:
        todo: list[tuple[str, Folder]] = [("", self._top)]
        while todo:
            prefix, folder = todo.pop()
            for name, node in sorted(folder.names(choice.folders.get(folder.number, 0)).items()):
                yield prefix + name, node
                if isinstance(node, Folder):
                    todo.append((f"{prefix}{name}/", node))


def _kept(choice: Choice, file: File) -> Kept:
    return choice.files.get(file.number, ((0,) * len(file.pending), False))


def _mask(change: Change, rng: random.Random) -> int:
    """Which sectors of a change are kept: all, none, a first or last part, or any."""
    if change.data is None:
        return rng.choice((0, WHOLE))
    every = (1 << change.sectors) - 1
    cut = rng.randint(0, change.sectors)
    kind = rng.randrange(6)
    if kind < 2:
        return 0 if kind else WHOLE
    if kind == 2:
        return every >> cut
    if kind == 3:
        return every << cut & every
    return rng.getrandbits(change.sectors)
