"""What the machine is, what its disk takes to sync, and who uses its cores. Figures mean nothing without.

Where /proc is missing, what it would tell is None.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.figures import percentile

_PROC: Final = Path("/proc")
_MEMORY_FILESYSTEMS: Final = {"tmpfs", "ramfs"}
SYNCS: Final = 100
BLOCK_BYTES: Final = 4096


class NoDisk(Exception):
    """The folder lies in memory: syncing it costs nothing, and figures from it would say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Seconds of processor time so far, and when that was."""

    at: float
    busy: float  # of all processes of the machine, and what its host took away
    ours: dict[str, float]  # by group


def usage(groups: Mapping[str, Iterable[int]]) -> Usage | None:
    """Processor time of the machine and of groups of processes; None: this system does not tell."""
    try:
        fields = [int(text) for text in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, _, _, _, _, steal = fields
    ours = {name: sum(_process_seconds(pid) for pid in pids) for name, pids in groups.items()}
    return Usage(at=time.monotonic(), busy=(user + nice + system + steal) / _ticks(), ours=ours)


def cores(before: Usage | None, after: Usage | None, group: str) -> float | None:
    """How many cores a group kept busy between two looks; None: not known."""
    if before is None or after is None:
        return None
    return (after.ours[group] - before.ours[group]) / (after.at - before.at)


def others(before: Usage | None, after: Usage | None) -> float | None:
    """How many cores everybody else kept busy between two looks; None: not known."""
    if before is None or after is None:
        return None
    own = sum(after.ours.values()) - sum(before.ours.values())
    return max(0.0, (after.busy - before.busy - own) / (after.at - before.at))


def describe(folder: Path) -> dict[str, Any]:
    """The machine, as printed and stored beside the figures."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "filesystem": filesystem(folder),
        "load_average_before": round(os.getloadavg()[0], 2),
        "sync_ms": _sync_ms(folder),
    }


def filesystem(folder: Path) -> str:
    """The type of the filesystem that a folder lies on; empty: this system does not tell."""
    try:
        lines = (_PROC / "self" / "mounts").read_text().splitlines()
    except OSError:
        return ""
    place = folder.resolve()
    mounts = {Path(fields[1]): fields[2] for fields in map(str.split, lines)}
    fitting = [mount for mount in mounts if place.is_relative_to(mount)]
    return mounts[max(fitting, key=lambda mount: len(mount.parts))] if fitting else ""


def check_disk(folder: Path) -> None:
    """Refuses a folder that lies in memory."""
    kind = filesystem(folder)
    if kind in _MEMORY_FILESYSTEMS:
        raise NoDisk(f"{folder} lies on {kind}, where a sync costs nothing: name a folder on a disk with --data")


def _sync_ms(folder: Path) -> dict[str, float]:
    file = folder / "sync-probe"
    times = []
    with file.open("wb", buffering=0) as out:
        for _ in range(SYNCS):
            out.write(b"\0" * BLOCK_BYTES)
            began = time.perf_counter()
            os.fsync(out.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    file.unlink()
    return {"p50": round(percentile(times, 0.5), 3), "p99": round(percentile(times, 0.99), 3)}


def _processor() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _process_seconds(pid: int) -> float:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return 0.0  # it ended
    fields = text[text.rfind(")") + 2 :].split()
    return sum(int(field) for field in fields[11:15]) / _ticks()  # its own, and of children that it has waited for


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")
