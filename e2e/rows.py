"""The drills: what is done, what must hold, and how often it is tried."""

from __future__ import annotations

import contextlib
import json
import time  # noqa: TID251 - how long it took
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import faults
import scenes
from faults import Side, Way
from history import Records, Verdict, again_seconds, judge
from kubectl import Cluster, say
from loading import loading
from sample import settle
from scenes import Play

D_SECONDS: Final = 6.0  # of the sample: how long the operator waits
SUCCESSOR_SECONDS: Final = 8.0  # until the kubelet has ended a pod, and the next one's process takes its Lease
OPERATOR_SECONDS: Final = 3.0  # what the loss of an operator may add
TARRY_PUTS: Final = 400  # that the load goes on for when all is over
READY_SECONDS: Final = 180.0
WIDE: Final = "wide"  # the table of very many partitions


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
    needs_docker: bool = True
    median_seconds: float | None = None  # None: the median has no limit of its own.
    partitions: int | None = None  # of a table made for it. None: the sample's own table.


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One drill that was done."""

    seconds: float  # until writes were acknowledged again
    verdict: Verdict

    def wrong(self, row: Row) -> list[str]:
        """What does not hold of this run."""
        verdict = self.verdict
        bad = [f"{count} {what}" for what, count in _counts(verdict, row).items() if count]
        if self.seconds > row.limit_seconds:
            bad.append(f"{self.seconds:.2f} s, limit {row.limit_seconds:g} s")
        return bad


def _counts(verdict: Verdict, row: Row) -> dict[str, int]:
    counts = {"lost": verdict.lost, "stale": verdict.stale, "in one place": verdict.doubled}
    if row.is_clean:
        counts |= {"failed": verdict.failed, "unknown": verdict.unknown}
    return counts


def _rows() -> list[Row]:
    d = D_SECONDS
    single = [
        Row(
            name="process-killed",
            title="shard process killed",
            play=scenes.process_killed,
            limit_seconds=1,
            limit_text="1 s",
            runs=20,
            needs_docker=False,
        ),
        Row(
            name="container-killed",
            title="container killed",
            play=scenes.container_killed,
            limit_seconds=3,
            limit_text="3 s",
            runs=20,
        ),
        Row(
            name="pod-deleted",
            title="pod deleted with --force",
            play=scenes.pod_deleted,
            limit_seconds=d + 2,
            limit_text="D + 2 s",
            runs=20,
            needs_docker=False,
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
    def play(scene: scenes.Scene) -> None:
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
    with _table(cluster, row) as table, loading(cluster, table=table) as load:
        scene = scenes.scene_of(cluster, load, number=number, table=table)
        row.play(scene)
        load.acknowledges(more=TARRY_PUTS)
        records = load.end()
    done = Run(seconds=_again(records, row, scene.marked), verdict=judge(records))
    say(f"{row.name} {number + 1}: {done.seconds:.2f} s after {scene.victim}, in {time.monotonic() - began:.0f} s")
    say(f"  {done.verdict}")
    return done


@contextlib.contextmanager
def _table(cluster: Cluster, row: Row) -> Iterator[str]:
    """The name of the table to write to; one that is made for the row goes again with all its data."""
    if row.partitions is None:
        yield "orders"
        return
    table = {
        "apiVersion": "fencekv.io/v1alpha1",
        "kind": "KVTable",
        "metadata": {"name": WIDE},
        "spec": {
            "namespace": "sample",
            "partitioning": {"strategy": "hash", "count": row.partitions},
            "replicas": 2,
            "minInSync": 1,
            "durability": "replicated",
            "deletionPolicy": "Delete",
        },
    }
    began = time.monotonic()
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(table))
    try:
        cluster.wait("--for=condition=Ready", f"kvt/{WIDE}", seconds=READY_SECONDS)
        say(f"{row.partitions} partitions ready after {time.monotonic() - began:.1f} s")
        yield WIDE
    finally:
        cluster.kubectl("delete", "kvt", WIDE, "--timeout=120s", seconds=130)


def _again(records: Records, row: Row, marked: float | None) -> float:
    if marked is not None:
        return again_seconds(records, since=marked)
    verdict = judge(records)
    # Of very many partitions each is written to every few seconds: what a request had to wait says more.
    return verdict.pause_seconds if row.partitions is None else verdict.slowest_seconds
