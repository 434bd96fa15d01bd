"""A request is sent once, and the sender learns whether it can have arrived."""

from __future__ import annotations

import pytest
from scripted_shard import PUT_ANSWER, Answer, Drop, ScriptedShard, Silence, closed_port

from fencekv import transport
from fencekv.caller import Settings
from fencekv.client import FenceKV
from fencekv.errors import Unknown
from fencekv.token import Version
from fencekv.transport import Broken, Refused, make_session, send


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_request_whose_kept_connection_breaks_is_not_sent_again(method: str) -> None:
    async with ScriptedShard(Answer(), Drop()).running() as shard, make_session() as session:
        url = f"http://{shard.address}/v1/x"
        await send(session, method="GET", url=url, headers={}, timeout=5)
        with pytest.raises(Broken):
            await send(session, method=method, url=url, headers={}, body=b"", timeout=5)
        assert len(shard.seen) == 2


async def test_no_connection_means_that_nothing_was_sent() -> None:
    async with make_session() as session:
        with pytest.raises(Refused):
            await send(session, method="PUT", url=f"http://127.0.0.1:{closed_port()}/", headers={}, timeout=5)


async def test_no_answer_in_time_leaves_open_what_happened() -> None:
    async with ScriptedShard(Silence()).running() as shard, make_session() as session:
        with pytest.raises(Broken):
            await send(session, method="PUT", url=f"http://{shard.address}/", headers={}, body=b"v", timeout=0.05)
        assert shard.seen[0].body == b"v"


async def test_an_answer_is_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_BYTES_MAX", 1000)
    async with ScriptedShard(Answer(document="x" * 2000)).running() as shard, make_session() as session:
        with pytest.raises(Broken, match="larger than 1000"):
            await send(session, method="GET", url=f"http://{shard.address}/", headers={}, timeout=5)


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_bodies_of_any_size_arrive(size: int) -> None:
    async with ScriptedShard().running() as shard, make_session() as session:
        body = b"x" * size
        await send(session, method="PUT", url=f"http://{shard.address}/", headers={}, body=body, timeout=5)
        assert shard.seen[0].body == body


# -- what the SDK makes of answers that only HTTP can give


def client(address: str, *, idempotency: bool = True) -> FenceKV:
    settings = Settings(timeout_seconds=2, idempotency=idempotency)
    return FenceKV.connect(namespace="sample", endpoints=[address], transport="http", settings=settings)


async def test_a_success_that_cannot_be_read_is_unknown() -> None:
    async with ScriptedShard(Answer(document={"nonsense": 1})).running() as shard, client(shard.address) as db:
        with pytest.raises(Unknown):
            await db.table("orders").put("k", b"v")


async def test_an_answer_that_is_no_problem_document_is_unknown() -> None:
    async with (
        ScriptedShard(Answer(502, "bad gateway")).running() as shard,
        client(shard.address, idempotency=False) as db,
    ):
        with pytest.raises(Unknown):
            await db.table("orders").put("k", b"v")


async def test_malformed_headers_do_not_change_the_answer() -> None:
    odd = Answer(document=dict(PUT_ANSWER), headers={"FenceKV-Token": "x", "FenceKV-Epoch": "-"})
    async with ScriptedShard(odd).running() as shard, client(shard.address) as db:
        assert (await db.table("orders").put("k", b"v")).version == Version(1, 0)
