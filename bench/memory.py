"""Memory of idle processes, as the kernel counts it.

RSS counts pages that processes share in each of them; PSS divides those. A container's limit is nearer to RSS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

AIM_OPERATOR_MB: Final = 180
AIM_SHARD_MB: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one process takes."""

    process: str
    rss_mb: float
    pss_mb: float
    aim_mb: int | None  # None: nothing is aimed at


def measured(process: str, pid: int, *, aim_mb: int | None = None) -> Memory | None:
    """A process's memory; None: this system does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = parsed(text)
    return Memory(process=process, rss_mb=sizes["Rss"] / 1e6, pss_mb=sizes["Pss"] / 1e6, aim_mb=aim_mb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Resident pages of a process: its own, and those of files that it maps, which are the page cache's."""

    own_mb: float
    mapped_mb: float


def resident(pid: int) -> Resident | None:
    """Cheap enough for each second; None: this system does not tell, or the process has ended."""
    try:
        sizes = parsed(Path(f"/proc/{pid}/status").read_text())
        return Resident(own_mb=sizes["RssAnon"] / 1e6, mapped_mb=(sizes["RssFile"] + sizes["RssShmem"]) / 1e6)
    except (OSError, KeyError):
        return None


def parsed(text: str) -> dict[str, int]:
    """Sizes in bytes, by name, of a `smaps_rollup` or a `status`."""
    sizes = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[2] == "kB":
            sizes[fields[0].rstrip(":")] = int(fields[1]) * 1024
    return sizes
