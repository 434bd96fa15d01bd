"""The drills: what is done, what must hold, and how often it is tried."""

from __future__ import annotations

import contextlib
import time  # noqa: TID251 - how long it took
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import faults
import scenes
import wide
from faults import Side, Way
from history import Failure, Records, Verdict, again_seconds, handovers, judge, strays, waited_seconds
from kubectl import Cluster, say
from loading import STUBBORN_EACH, STUBBORN_EACH_OF_VERY_MANY, loading
from sample import settle
from scenes import Play, Scene
from wide import Rest

D_SECONDS: Final = 6.0  # of the sample: how long the operator waits
SUCCESSOR_SECONDS: Final = 8.0  # until the kubelet has ended a pod, and the next one's process takes its Lease
OPERATOR_SECONDS: Final = 3.0  # what the loss of an operator may add
TARRY_PUTS: Final = 400  # that the load goes on for when all is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of fault."""

    name: str
    title: str
    play: Play
    limit_seconds: float  # writes again, the longest run
    limit_text: str
    runs: int = 5
    is_clean: bool = False  # no request may fail
    is_in_flight_only: bool = False  # only requests to the victim's partitions that met the fault may fail
    needs_docker: bool = True
    median_seconds: float | None = None  # of all changes of owners. None: their median has no limit.
    partitions: int | None = None  # of a table made for it. None: the sample's own table.


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One drill that was done."""

    seconds: float  # until writes were acknowledged again
    verdict: Verdict
    strays: tuple[Failure, ...]  # that the fault does not explain
    handovers: tuple[float, ...] = ()  # how long each change of an owner took, in seconds
    notes: tuple[str, ...] = ()  # what else was seen, for people
    costly: tuple[str, ...] = ()  # what else was beyond its limit, as sentences

    def wrong(self, row: Row, *, more_seconds: float = 0.0) -> list[str]:
        """What does not hold of this run; `more_seconds`: what a busy machine may add."""
        bad = [f"{count} {what}" for what, count in self._counts(row).items() if count]
        if self.seconds > row.limit_seconds + more_seconds:
            bad.append(f"{self.seconds:.2f} s, limit {row.limit_seconds + more_seconds:g} s")
        return [*bad, *self.costly]

    @property
    def examples(self) -> tuple[str, ...]:
        """Of what is wrong."""
        return (*(f"not in flight: {failure}" for failure in self.strays[:3]), *self.verdict.examples)

    def _counts(self, row: Row) -> dict[str, int]:
        verdict = self.verdict
        counts = {"lost": verdict.lost, "stale": verdict.stale, "in one place": verdict.doubled}
        if row.is_clean:
            counts |= {"failed": verdict.failed, "unknown": verdict.unknown}
        if row.is_in_flight_only:
            counts["failed or unknown though not in flight"] = len(self.strays)
        return counts


def _single() -> list[Row]:
    """One fault of a shard or its node."""
    d = D_SECONDS
    return [
        _in_flight("process-killed", "shard process killed", scenes.process_killed, 1, "1 s", needs_docker=False),
        _in_flight("container-killed", "container killed", scenes.container_killed, 3, "3 s"),
        _in_flight(
            "pod-deleted", "pod deleted with --force", scenes.pod_deleted, d + 2, "D + 2 s", needs_docker=False
        ),
        _planned("switchover", "switchover", scenes.switched_over),
        _planned("drain", "kubectl drain", scenes.drained),
        _planned("rolling-update", "rolling update of all shards", scenes.updated),
        _deposed("frozen", "owner frozen, then thawed", scenes.frozen),
        Row(
            name="frozen-deleted",
            title="owner frozen, its pod deleted with --force",
            play=scenes.frozen_and_deleted,
            # Its successor takes the pod's Lease over, which proves nobody's death: D is heard from there on.
            limit_seconds=d + SUCCESSOR_SECONDS,
            limit_text="D after its successor began",
            needs_docker=False,
        ),
        _deposed("cut-all", "node cut off from all", scenes.cut(Side.ALL)),
        _deposed("cut-api", "node cut off from the API server only", scenes.cut(Side.API)),
        _deposed("cut-one-way", "node cut off one way", scenes.cut(Side.ALL, Way.OUT, Way.IN)),
        _deposed("cut-peers", "node cut off from its peers only", scenes.cut(Side.PEERS)),
        _deposed("node-dead", "node dead", scenes.node_dead),
    ]


def _rows() -> list[Row]:
    single = _single()
    unplanned = [row for row in single if row.median_seconds is None]
    # One after the other, a run each: all of them come up in as many runs as there are.
    return [
        *single,
        _turns(
            "operator-killed", "operator killed in the middle of each of these", unplanned, scenes.operator_killed
        ),
        _turns("two-operators", "two operators that lead, in these", unplanned, scenes.two_leaders),
        Row(
            name="api-2s",
            title="API server away for 2 s",
            play=scenes.api_away(2, is_felt=False),
            limit_seconds=1,
            limit_text="nothing stops",
            is_clean=True,
        ),
        Row(
            name="api-60s",
            title="API server away for 60 s",
            play=scenes.api_away(60, is_felt=True),
            limit_seconds=3,
            limit_text="3 s after it is back",
        ),
        Row(
            name="workers",
            title="all workers restarted at once",
            play=scenes.workers_restarted,
            limit_seconds=30,
            limit_text="30 s after they are Ready",
        ),
        Row(
            name="thousand",
            title="1,000 partitions, their pod killed",
            play=scenes.container_killed,
            limit_seconds=10,
            limit_text="the last one 10 s",
            partitions=1000,
        ),
    ]


def _in_flight(name: str, title: str, play: Play, seconds: float, text: str, *, needs_docker: bool = True) -> Row:
    return Row(
        name=name,
        title=title,
        play=play,
        limit_seconds=seconds,
        limit_text=text,
        runs=20,
        is_in_flight_only=True,
        needs_docker=needs_docker,
    )


def _planned(name: str, title: str, play: Play) -> Row:
    return Row(
        name=name,
        title=title,
        play=play,
        limit_seconds=1,
        limit_text="p50 0.25 s, longest 1 s",
        runs=20 if name == "switchover" else 5,
        is_clean=True,
        needs_docker=False,
        median_seconds=0.25,
    )


def _deposed(name: str, title: str, play: Play) -> Row:
    return Row(name=name, title=title, play=play, limit_seconds=D_SECONDS + 2, limit_text="D + 2 s")


def _turns(name: str, title: str, rows: list[Row], also: Callable[[Play], Play]) -> Row:
    def play(scene: Scene) -> None:
        row = rows[scene.number % len(rows)]
        say(f"with: {row.title}")
        also(row.play)(scene)

    limit = max(row.limit_seconds for row in rows) + OPERATOR_SECONDS
    return Row(name=name, title=title, play=play, limit_seconds=limit, limit_text="the same + 3 s", runs=len(rows))


ROWS: Final = _rows()


def cannot(row: Row) -> str:
    """Why a drill cannot be done here; empty if it can."""
    return faults.available() if row.needs_docker else ""


def run(cluster: Cluster, row: Row, number: int) -> Run:
    """Does a drill once, on a cluster where all is well, and waits until all is well again."""
    settle(cluster)
    began = time.monotonic()
    stubborn = STUBBORN_EACH if row.partitions is None else STUBBORN_EACH_OF_VERY_MANY
    with _table(cluster, row) as (table, rest), loading(cluster, table=table, stubborn_each=stubborn) as load:
        scene = scenes.scene_of(cluster, load, number=number, table=table)
        since = load.now()
        row.play(scene)
        load.acknowledges(more=TARRY_PUTS)
        records = load.end()
    done = Run(
        seconds=_again(records, row, scene, since),
        verdict=judge(records),
        strays=tuple(strays(records, since=since, epochs=scene.epochs)),
        handovers=tuple(handovers(records)),
        notes=(*scene.notes, *([rest.note] if rest else [])),
        costly=tuple(rest.wrong) if rest else (),
    )
    say(f"{row.name} {number + 1}: {done.seconds:.2f} s after {scene.victim}, in {time.monotonic() - began:.0f} s")
    say(f"  {done.verdict}")
    say(f"  changes of owners: {', '.join(f'{seconds:.3f} s' for seconds in done.handovers)}")
    for note in done.notes:
        say(f"  {note}")
    return done


@contextlib.contextmanager
def _table(cluster: Cluster, row: Row) -> Iterator[tuple[str, Rest | None]]:
    """The name of the table to write to, and what it costs in rest if it is made for the row."""
    if row.partitions is None:
        yield "orders", None
        return
    with wide.table(cluster, partitions=row.partitions) as ready_seconds:
        yield wide.NAME, wide.rest(cluster, ready_seconds=ready_seconds)


def _again(records: Records, row: Row, scene: Scene, since: float) -> float:
    if scene.marked is not None:
        return again_seconds(records, since=scene.marked)
    if row.partitions is None:
        return judge(records).pause_seconds
    # Of very many partitions each is written to every few seconds: a pause would be the load's own.
    return waited_seconds(records, since=since, epochs=scene.epochs)
