"""`fencekv bench`: the SDK's own load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from background import in_background
from bench.generator import parsed
from click.testing import CliRunner
from fake_node import FakeNode, serving

from fencekv.cli import main as cli
from fencekv.cli.bench import Puts, document
from fencekv.errors import Exhausted


@pytest.fixture(name="address")
def start() -> Iterator[str]:
    node = FakeNode()
    node.add_table("orders")
    with in_background(serving(node)) as [shard]:
        yield f"127.0.0.1:{shard.port}"


class Milliseconds:
    """A clock of which each look takes one."""

    def __init__(self) -> None:
        self._looks = count()

    def now(self) -> float:
        return next(self._looks) / 1e3


def test_it_puts_through_the_sdk_and_the_bench_reads_what_it_prints(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What ends in the window is no matter of the machine's load.
    monkeypatch.setattr("fencekv.cli.bench.SystemClock", Milliseconds)
    arguments = ["--table", "orders", "--tasks", "4", "--seconds", "0.3", "--warmup", "0.1", "--keys", "7"]
    asked = ["bench", *arguments, "--namespace", "sample", "--endpoint", address, "-o", "json"]
    done = CliRunner().invoke(cli.main, asked)
    assert done.exit_code == 0, done.output
    found = parsed(done.stdout)
    # Each put looks twice, each task of the four a last time once it has closed.
    assert found.operations == 150
    assert found.per_second == pytest.approx(found.operations / 0.3)
    assert 0 < found.latency_ms["p50"] <= found.latency_ms["p99"] <= found.latency_ms["max"]
    listed = CliRunner().invoke(
        cli.main, ["list", "orders", "--namespace", "sample", "--endpoint", address, "-o", "json"]
    )
    assert "bench-00000006" in listed.stdout
    assert "bench-00000007" not in listed.stdout


def test_failures_are_told_and_are_no_puts(address: str) -> None:
    asked = ["bench", "--table", "absent", "--tasks", "1", "--seconds", "0.1", "--warmup", "0", "-o", "json"]
    done = CliRunner().invoke(cli.main, [*asked, "--namespace", "sample", "--endpoint", address])
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert found["operations"] == 0
    assert sum(found["errors"].values()) > 0


class Table:
    """Each put takes a second of the clock; the third one fails."""

    def __init__(self) -> None:
        self.now, self.keys = 0.0, []

    async def put(self, key: str, value: bytes) -> None:
        self.keys.append(key)
        self.now += 1.0
        await asyncio.sleep(0)
        if len(self.keys) == 3:
            raise Exhausted("full")


async def test_only_what_completes_within_the_window_counts() -> None:
    table: Any = Table()
    puts = Puts(table, keys=2, value=b"v", clock=lambda: table.now)
    puts.opens, puts.closes = 1.5, 5.5
    await puts.task()
    # Six puts end at 1 (before it opens), 2, 3 (failed), 4, 5 and 6 (after it has closed).
    assert table.keys == ["bench-00000000", "bench-00000001"] * 3
    assert puts.seconds == [1.0, 1.0, 1.0]
    found = document(puts, seconds=4.0, cpu_seconds=0.5)
    assert (found["operations"], found["per_second"]) == (3, 0.75)
    assert found["errors"] == {"Exhausted": 1}
