"""What is to be shown: the rows of the table, and the measures that they come from. Data only.

A measure is a load on two or three systems that take turns. A row is a figure of a measure, or of an experiment of
its own, with the least that is wanted and what is aimed at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from bench.figures import ETCD, FENCEKV, REDIS

Setup = Literal["single", "cluster", "alone"]
Loader = Literal["frames", "http", "etcd", "gateway", "redis", "sdk", "aiohttp"]
KEYS: Final = 10_000
VALUE_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A system in a measure, and what drives it. `table` and `keys` matter to FenceKV's measures of its own."""

    system: str
    loader: Loader
    table: str = "bench"
    keys: int = KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A load; its sides take turns."""

    name: str
    setup: Setup
    op: Literal["put", "get"]
    clients: int
    depth: int = 1
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table. Where `lower` is set, less is better."""

    name: str
    title: str
    anchor: str
    measure: str  # of a row of experiments: the experiment's name
    figure: str = "per_second"
    least: float
    aim: float
    lower: bool = False
    unit: str = "x"

    def meets(self, value: float, wanted: float) -> bool:
        """Whether a value is as good as what is wanted."""
        return value <= wanted if self.lower else value >= wanted


_FRAMES: Final = Side(system=FENCEKV, loader="frames")
_GRPC: Final = Side(system=ETCD, loader="etcd")
_REDIS: Final = Side(system=REDIS, loader="redis")


def _puts(clients: int, depth: int = 1) -> Measure:
    name = f"puts-{clients}x{depth}" if depth > 1 else f"puts-{clients}"
    sides = (_GRPC, _FRAMES, _REDIS)
    return Measure(name=name, setup="single", op="put", clients=clients, depth=depth, sides=sides)


MEASURES: Final = (
    _puts(64),
    _puts(256),
    _puts(16, 16),
    _puts(1),
    Measure(
        name="http-64",
        setup="single",
        op="put",
        clients=64,
        sides=(Side(system=ETCD, loader="gateway"), Side(system=FENCEKV, loader="http")),
    ),
    Measure(name="reads-64", setup="single", op="get", clients=64, sides=(_GRPC, _FRAMES)),
    Measure(
        name="sdk-64",
        setup="single",
        op="put",
        clients=64,
        sides=(Side(system=ETCD, loader="aiohttp"), Side(system=FENCEKV, loader="sdk")),
    ),
    Measure(name="replicated-64", setup="cluster", op="put", clients=64, sides=(_GRPC, _FRAMES)),
)

ETCD_GRPC: Final = "etcd gRPC"
ROWS: Final = (
    Row(
        name="puts-64",
        title="puts, frames, 64 clients",
        anchor=ETCD_GRPC,
        measure="puts-64",
        least=1.5,
        aim=2.5,
    ),
    Row(
        name="puts-256",
        title="puts, frames, 256 clients",
        anchor=ETCD_GRPC,
        measure="puts-256",
        least=2.0,
        aim=3.0,
    ),
    Row(
        name="puts-16x16",
        title="puts, frames, 16 connections x 16 deep",
        anchor=ETCD_GRPC,
        measure="puts-16x16",
        least=3.0,
        aim=4.0,
    ),
    Row(name="puts-1", title="puts, frames, 1 client", anchor=ETCD_GRPC, measure="puts-1", least=0.6, aim=0.9),
    Row(
        name="p99-64",
        title="p99 of puts at 64 clients",
        anchor=ETCD_GRPC,
        measure="puts-64",
        figure="p99_ms",
        least=0.8,
        aim=0.5,
        lower=True,
    ),
    Row(
        name="http-64",
        title="puts, HTTP, 64 clients",
        anchor="etcd's HTTP gateway",
        measure="http-64",
        least=1.2,
        aim=2.0,
    ),
    Row(
        name="reads-64",
        title="primary reads, frames, 64 clients",
        anchor="etcd linearizable gRPC",
        measure="reads-64",
        least=2.0,
        aim=3.5,
    ),
    Row(
        name="replicated-64",
        title="puts, `replicated` with one standby, frames, 64 clients",
        anchor="three-member etcd",
        measure="replicated-64",
        least=1.2,
        aim=2.0,
    ),
    Row(
        name="sdk-64",
        title="puts through the Python SDK, 64 tasks in one process",
        anchor="etcd's gateway from aiohttp",
        measure="sdk-64",
        least=1.5,
        aim=3.0,
    ),
    Row(
        name="keys",
        title="put p99 with {keys} keys against 10 k keys",
        anchor="itself",
        measure="keys",
        figure="p99_ms",
        least=1.5,
        aim=1.2,
        lower=True,
    ),
    Row(
        name="replay",
        title="replay at start after a kill at full load",
        anchor="",
        measure="replay",
        least=2.0,
        aim=0.5,
        lower=True,
        unit="s",
    ),
    Row(
        name="partitions-start",
        title="1,000 partitions on one shard: start",
        anchor="",
        measure="partitions",
        least=10.0,
        aim=10.0,
        lower=True,
        unit="s",
    ),
    Row(
        name="partitions-memory",
        title="1,000 partitions on one shard: idle memory",
        anchor="",
        measure="partitions",
        least=300.0,
        aim=300.0,
        lower=True,
        unit="MB",
    ),
    Row(
        name="partitions-idle",
        title="1,000 partitions on one shard: idle, of a core",
        anchor="",
        measure="partitions",
        least=3.0,
        aim=3.0,
        lower=True,
        unit="%",
    ),
)

QUICK_ROWS: Final = ("puts-64", "puts-16x16", "reads-64")  # the first, third and seventh
MEMORY: Final = "memory"  # idle memory: beside the table, chosen like a row


def keys_measure(keys: int) -> Measure:
    """The same load on two tables of one shard, one of them with many keys."""
    few = Side(system="10 k keys", loader="frames", table="few")
    many = Side(system="many keys", loader="frames", table="many", keys=keys)
    return Measure(name="keys", setup="alone", op="put", clients=64, sides=(few, many))


def chosen(names: str) -> tuple[str, ...]:
    """The names of `ROWS=`: of rows, of their measures (`partitions`), or `memory`.

    Raises:
        ValueError: a name that is none of them.
    """
    known = [*(row.name for row in ROWS), MEMORY]
    if not names:
        return tuple(known)
    found: list[str] = []
    for name in names.split(","):
        fitting = [row.name for row in ROWS if name in {row.name, row.measure} and name != row.name]
        meant = [name] if name in known else fitting
        if not meant:
            raise ValueError(f"no row {name!r}: there are {', '.join(known)}")
        found += [one for one in meant if one not in found]
    return tuple(found)
