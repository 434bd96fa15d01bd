"""The processes of a container: found, signalled, and known to have ended.

A container here has no PID namespace. Its processes are those of its session, and those that carry its mark in
their environment (a process that left the session still does); where /proc is missing, its group and its
descendants.

Invariants:
  * A zombie has ended: it can do nothing any more.
  * Nothing is signalled that was not found by mark, session, group or descent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONTAINER_MARK: Final = "FENCEKV_SANDBOX_CONTAINER"
RUNNER_MARK: Final = "FENCEKV_SANDBOX_RUNNER"

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A living process."""

    pid: int
    parent: int
    group: int
    session: int


def members(*, leader: int, container: str) -> list[int]:
    """Living processes of the container whose first process is or was `leader`; the first one comes first."""
    if not has_proc():
        return _by_descent(leader)
    mark = f"{CONTAINER_MARK}={container}"
    pids = [seen.pid for seen in _scan() if seen.session == leader or _carries(seen.pid, mark)]
    return sorted(pids, key=lambda pid: (pid != leader, pid))


def left_over(runner: str) -> list[int]:
    """Living processes that an earlier runner with this mark started; where /proc is missing nobody knows."""
    if not has_proc():
        return []
    mark = f"{RUNNER_MARK}={runner}"
    return [seen.pid for seen in _scan() if seen.pid != os.getpid() and _carries(seen.pid, mark)]


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signals each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def has_proc() -> bool:
    """Whether this system lists its processes under /proc."""
    return (_PROC / "self" / "stat").exists()


def _scan() -> list[Seen]:
    found = []
    for name in os.listdir(_PROC):
        if not name.isdigit():
            continue
        try:
            text = (_PROC / name / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended while we looked
        # The command's name may hold blanks and parentheses: the fields begin after the last one.
        fields = text[text.rfind(")") + 2 :].split()
        if fields[0] not in {"Z", "X"}:
            found.append(Seen(pid=int(name), parent=int(fields[1]), group=int(fields[2]), session=int(fields[3])))
    return found


def _carries(pid: int, mark: str) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False  # it ended, or belongs to somebody else
    return mark.encode() in environment.split(b"\0")


def _by_descent(leader: int) -> list[int]:
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,pgid=,stat="],  # noqa: S607  (its place differs by system)
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    parents: dict[int, int] = {}
    chosen: set[int] = set()
    for line in listing.splitlines():
        pid, parent, group, state = line.split()[:4]
        if not state.startswith("Z"):
            parents[int(pid)] = int(parent)
            if int(group) == leader:
                chosen.add(int(pid))
    while grown := {pid for pid, parent in parents.items() if parent in chosen} - chosen:
        chosen |= grown
    return sorted(chosen, key=lambda pid: (pid != leader, pid))
