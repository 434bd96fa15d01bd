"""Becomes a container's command, in a way that it cannot outlive the pod runner.

Run by its path with `python -I -S`, before anything of the project is imported: it costs ten milliseconds.
    child.py PARENT_PID PIPE COMMAND [ARGUMENT...]

Invariants:
  * On Linux (PIPE is -1) the kernel kills the process when the thread that started it ends.
  * Elsewhere a watcher outside the pod's process group holds the pipe's reading end: an end of file without a byte
    before it means that the runner died, and the watcher kills the group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
NOT_STARTED: Final = 127


def main(arguments: list[str]) -> int:
    """Replaces this process by the command; returns only if it cannot."""
    parent, pipe, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    if pipe < 0:
        die_with_parent(parent)
    else:
        watch_pipe(pipe, group=os.getpgrp())
    # Python ignores SIGPIPE, and an ignored signal stays ignored in the command.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606  (there is no shell, on purpose)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    return NOT_STARTED


def die_with_parent(parent: int) -> None:
    """Asks the kernel for SIGKILL at the parent's end."""
    import ctypes  # noqa: PLC0415  (half of the start-up time, and only Linux needs it)

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have ended before the request was made.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def watch_pipe(pipe: int, *, group: int) -> None:
    """Leaves a watcher behind, which kills `group` if the pipe closes without a word."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        os.close(pipe)
        return
    if os.fork():
        os._exit(0)
    os.setsid()
    for descriptor in range(3):
        os.close(descriptor)
    if not os.read(pipe, 1):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
