"""Reading a container's log while it may still grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Final

CHUNK_BYTES: Final = 64 * 1024
LOOK_SECONDS: Final = 0.1


async def read_log(
    path: Path | None, *, tail_lines: int | None, grows: Callable[[], bool] | None
) -> AsyncIterator[bytes]:
    """The log's bytes, of its last lines alone if asked for; follows it while it `grows`, if that is given."""
    if path is None:
        return
    with path.open("rb") as file:
        if tail_lines is not None:
            file.seek(_tail(file, tail_lines))
        while True:
            # Asked before the last read, so that nothing written before the end is missed.
            more = grows is not None and grows()
            while part := file.read(CHUNK_BYTES):
                yield part
            if not more:
                return
            await asyncio.sleep(LOOK_SECONDS)


def _tail(file: BinaryIO, lines: int) -> int:
    """Where the last lines begin."""
    end = at = file.seek(0, 2)
    found = b""
    # The newline that ends the last line begins no further one.
    while at > 0 and found.count(b"\n") <= lines:
        at = max(0, at - CHUNK_BYTES)
        file.seek(at)
        found = file.read(end - at)
    kept = found.splitlines(keepends=True)[-lines:] if lines > 0 else []
    return end - sum(map(len, kept))
