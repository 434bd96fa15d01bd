"""Addresses of pods, from the loopback network.

Invariants:
  * A pod's name keeps its address over the pod's deletion, and over a restart of the runner where it can.
  * Two runners on one machine never hand out the same address: each holds a bound socket as guard of a block.
"""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BLOCK_PODS_MAX: Final = 253
BLOCKS_MAX: Final = 255
GUARD_PORT: Final = 7079
SINGLE: Final = "127.0.0.1"
SINGLE_BLOCK_PODS_MAX: Final = 40
SINGLE_PORT_MIN: Final = 21000


class NoAddress(Exception):
    """Every block of the loopback network is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a pod listens. Ports None: its own choice, since its address is its alone."""

    ip: str
    http_port: int | None = None
    peer_port: int | None = None


def many_addresses_answer() -> bool:
    """Whether all of 127.0.0.0/8 is this machine, as on Linux; on macOS only 127.0.0.1 is."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.77.255.254", 0))
        except OSError:
            return False
    return True


class Addresses:
    """Hands out addresses by name. Close it when done."""

    def __init__(self, file: Path, *, single: bool) -> None:
        self._file = file
        self._single = single
        self._guards: list[socket.socket] = []
        self._blocks: list[int] = []
        self._preferred: list[int] = []
        self._numbers: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = json.loads(file.read_text())
            if kept["single"] == single:
                self._preferred, self._numbers = list(kept["blocks"]), dict(kept["pods"])

    def of(self, namespace: str, pod: str) -> Address:
        """The pod's address, a new one for a new name."""
        name = f"{namespace}/{pod}"
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._numbers)
        size = SINGLE_BLOCK_PODS_MAX if self._single else BLOCK_PODS_MAX
        while len(self._blocks) <= number // size:
            self._take_block()
        self._keep()
        block, place = self._blocks[number // size], number % size
        if not self._single:
            return Address(ip=f"127.77.{block}.{place + 2}")
        first = _single_port(block) + 1 + 2 * place
        return Address(ip=SINGLE, http_port=first, peer_port=first + 1)

    def close(self) -> None:
        """Gives the blocks back."""
        for guard in self._guards:
            guard.close()

    def _take_block(self) -> None:
        wanted = self._preferred[len(self._blocks) : len(self._blocks) + 1]
        for block in [*wanted, *range(BLOCKS_MAX)]:
            guard = socket.socket()
            place = (SINGLE, _single_port(block)) if self._single else (f"127.77.{block}.1", GUARD_PORT)
            try:
                guard.bind(place)
            except OSError:
                guard.close()
                continue
            self._guards.append(guard)
            self._blocks.append(block)
            return
        raise NoAddress(f"all {BLOCKS_MAX} blocks of loopback addresses are in use")

    def _keep(self) -> None:
        kept = {"single": self._single, "blocks": self._blocks, "pods": self._numbers}
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(kept))
        beside.replace(self._file)


def _single_port(block: int) -> int:
    return SINGLE_PORT_MIN + block * (2 * SINGLE_BLOCK_PODS_MAX + 2)
