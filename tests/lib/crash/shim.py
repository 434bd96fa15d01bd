"""The recording shim: building it, speaking to it from inside the recorded process, and reading what it wrote.

Invariants:
  * A log that holds something the shim could not record is refused: a gap would make every check a guess.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SOURCE: Final = Path(__file__).with_name("shim.c")

_HEAD: Final = struct.Struct("<BBxxIQIII")
_TRUTH: Final = 2**64 - 1


class Op(enum.IntEnum):
    """What a record is about; the numbers are the shim's."""

    MARK = 1
    OPEN = 2
    WRITE = 3
    SYNC = 4
    TRUNCATE = 5
    RENAME = 6
    UNLINK = 7
    MKDIR = 8
    RMDIR = 9
    UNSEEN = 10
    FAULT = 11  # the call that follows was made to fail
    FORGET = 12  # the page cache of a file was dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One recorded call. `number`: the descriptor; `flags`: of an open; `failed`: it answered with an error."""

    op: Op
    failed: bool
    number: int
    flags: int
    offset: int
    path: str
    path2: str
    data: bytes

    def mark(self) -> Any:
        """What the program said: a JSON document."""
        assert self.op is Op.MARK, self.op
        return json.loads(self.data)


def compiler() -> str | None:
    """A C compiler; None: there is none on this machine."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """Compiles the shim into a folder."""
    chosen = compiler()
    assert chosen is not None, "no C compiler"
    library = folder / "shim.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([chosen, *flags, "-o", library, SOURCE, "-ldl", "-pthread"], check=True)
    return library


def preloaded(library: Path) -> dict[str, str]:
    """An environment for a process that is to be recorded."""
    return {**os.environ, "LD_PRELOAD": str(library)}


def read_log(data: bytes) -> Iterator[Event]:
    """The records of a log, in order."""
    at = 0
    while at < len(data):
        op, failed, number, offset, path_len, path2_len, data_len = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path_end = at + path_len
        path2_end = path_end + path2_len
        end = path2_end + data_len
        event = Event(
            op=Op(op),
            failed=bool(failed),
            number=number,
            flags=offset if op == Op.OPEN else 0,
            offset=0 if op == Op.OPEN else offset,
            path=data[at:path_end].decode(),
            path2=data[path_end:path2_end].decode(),
            data=data[path2_end:end],
        )
        assert event.op is not Op.UNSEEN, f"a call that cannot be recorded: {event.path}"
        yield event
        at = end


class Shim:
    """The shim, as seen from the process that it is preloaded into."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._begin, self._mark = library.shim_begin, library.shim_mark
        self._fail, self._free = library.shim_fail, library.shim_free
        self._begin.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
        self._mark.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        self._fail.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int)
        self._free.argtypes = (ctypes.c_uint64,)

    def begin(self, folder: Path, log: Path) -> None:
        """Records what happens under `folder` from now on."""
        assert self._begin(os.fsencode(folder), os.fsencode(log)) == 0, (folder, log)

    def mark(self, name: str, **values: Any) -> None:
        """Puts a word of the program into the log, between its calls."""
        data = json.dumps([name, values]).encode()
        self._mark(data, len(data))

    def fail(self, nth: int, *, count: int = 1, error: int, short: bool = False) -> None:
        """Lets the nth recordable call from now on fail, and `count` - 1 after it; a write may be cut short."""
        self._fail(nth, count, error, int(short))

    def free(self, size_bytes: int | None) -> None:
        """What the disk says is free on it; None: the truth."""
        self._free(_TRUTH if size_bytes is None else size_bytes)
