"""A run like those of the bench, with a server that the kernel does not end with it: for tests of how it ends.

python stoppable.py FIFO [--with-parent]

It says on stdout what it does. Told to end, it clears up as soon as somebody has written to FIFO.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import stopping


async def work(fifo: str) -> None:
    """Runs a server until it is told to end."""
    server = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    try:
        print("server", server.pid, flush=True)
        await asyncio.Event().wait()
    finally:
        print("clearing", flush=True)
        await asyncio.to_thread(Path(fifo).read_bytes)
        server.kill()
        await server.wait()


if __name__ == "__main__":
    if "--with-parent" in sys.argv:
        stopping.end_with_parent()
    try:
        stopping.run(work(sys.argv[1]))
    except stopping.Stopped:
        sys.exit(stopping.STATUS)
