"""Shards of neighbouring versions work together; others say who is to be updated.

`stream_version_1.json` and `environment_before_base.mdb.gz` were recorded from the last code that spoke version 1
of the stream and knew no base: what it said and wrote then is what such a shard says and writes today.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from engines import Bench, bench, put
from storage import UID, Inline, ids, open_replica, txn
from stream_owner import OWNER, OwnerSide, pipe
from stream_standby import Follower, Standby, Wire
from trimming import applied, checkpoint_of, fold, trim
from trio import free_ports, until

from fencekv.codec import decode
from fencekv.leases import Session
from fencekv_shard import greeting
from fencekv_shard.api import Durability
from fencekv_shard.greeting import PROTOCOL, Incompatible, SaysFirst, agreed, answer, call
from fencekv_shard.journal import Checkpoint, Entry, checkpoint_entry, encode_entry
from fencekv_shard.peer import ChannelClosed, Message, TcpTransport
from fencekv_shard.replica import Replica
from fencekv_shard.store import UnknownFormat
from fencekv_shard.tail import Link

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "stream_version_1.json").read_text())
STANDBY = Session("sample-1", "uid-1", "0000000000000004")
MEMBER = "sample-1/ffffffffffffffff"  # as the recorded standby subscribed


def recorded(side: str) -> list[bytes]:
    return [bytes.fromhex(frame) for who, frame in RECORDED["frames"] if who == side]


def read(frame: bytes) -> Message:
    return cast("Message", decode(frame[4:]))


# -- which version is spoken -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        (2, 2, 2),
        (2, 1, 1),
        (2, 3, 2),
        (3, 2, 2),
        (3, 1, "sample-1 speaks version 1 .* this shard 3: update sample-1 to a release that speaks 2 first"),
        (1, 3, "sample-1 speaks version 3 .* this shard 1: update this shard to a release that speaks 2 first"),
        (2, 99, "update this shard to a release that speaks 98 first"),
    ],
)
def test_the_lower_version_is_spoken_if_they_are_neighbours(own: int, theirs: int, expected: int | str) -> None:
    if isinstance(expected, int):
        assert agreed(theirs, peer="sample-1", own=own) == expected
    else:
        with pytest.raises(Incompatible, match=expected):
            agreed(theirs, peer="sample-1", own=own)


async def greeted(dials: int, dialled: int) -> tuple[Any, Any]:
    """What comes of it on both sides, an error perhaps, when shards of these versions meet."""
    near, far = pipe()
    calling = call(near, session=STANDBY, kvns="sample", says=dials, own=dials)
    answering = answer(far, session=OWNER, kvns="sample", own=dialled)
    called, answered = await asyncio.gather(calling, answering, return_exceptions=True)
    return called, answered


@pytest.mark.parametrize(("dials", "dialled", "spoken"), [(2, 2, 2), (3, 2, 2), (2, 3, 2), (3, 3, 3)])
async def test_both_sides_agree_on_the_version(dials: int, dialled: int, spoken: int) -> None:
    assert await greeted(dials, dialled) == ((OWNER, spoken), (STANDBY, spoken))


@pytest.mark.parametrize(("dials", "dialled"), [(4, 2), (2, 4)])
async def test_versions_too_far_apart_are_told_of_on_both_sides(dials: int, dialled: int) -> None:
    errors = await greeted(dials, dialled)
    assert all(isinstance(error, Incompatible) for error in errors), errors
    mine, theirs = ("sample-0", "this shard") if dials > dialled else ("this shard", "sample-1")
    assert f"update {mine} to a release that speaks 3 first" in str(errors[0])
    assert f"update {theirs} to a release that speaks 3 first" in str(errors[1])


async def test_what_a_later_version_adds_to_its_hello_is_passed_over() -> None:
    near, far = pipe()
    await near.send(["hello", PROTOCOL + 1, str(STANDBY), "sample-1", "sample", {"more": 1}])
    assert await answer(far, session=OWNER, kvns="sample") == (STANDBY, PROTOCOL)


@pytest.mark.parametrize(
    "hello",
    [
        ["hello", 2, str(STANDBY), "sample-1", "another"],
        ["hello", 0, str(STANDBY), "sample-1", "sample"],
        ["hello", "2", str(STANDBY), "sample-1", "sample"],
        ["hello", 2, "no session", "sample-1", "sample"],
        ["hello", 2],
        ["ping", 1],
    ],
)
async def test_a_stranger_is_not_greeted(hello: Message) -> None:
    near, far = pipe()
    await near.send(hello)
    with pytest.raises(ChannelClosed) as refused:
        await answer(far, session=OWNER, kvns="sample")
    assert not isinstance(refused.value, Incompatible | SaysFirst)


# -- beside a shard of version 1 ---------------------------------------------------------------------------------


class RecordedOwner:
    """Says what the owner of version 1 said, each time that it hears what it was told then."""

    def __init__(self) -> None:
        self.hellos: list[int] = []
        self.heard: list[Message] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._follow(reader, writer)
        finally:
            writer.transport.abort()

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = [(who, bytes.fromhex(frame)) for who, frame in RECORDED["frames"]]
        waits = False
        for who, frame in frames:
            if who == "owner":
                writer.write(frame)
                continue
            message = read(await _frame(reader))
            if message[0] == "hello":
                self.hellos.append(message[1])
                if message[1] != 1:
                    return  # as it did
                continue
            self.heard.append(message)
            assert message[0] == read(frame)[0], message
            waits = waits or message[0] == "confirm"
        assert waits
        await reader.read()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(struct.unpack(">I", head)[0])


async def test_a_standby_follows_an_owner_of_version_1(tmp_path: Path) -> None:
    replica = await Replica.open(tmp_path, UID, executor=Inline(), new_id=lambda: MEMBER.partition("/")[2])
    old, follower = RecordedOwner(), Follower(replica)
    [port, _] = free_ports(1)
    server = await asyncio.start_server(old.serve, "127.0.0.1", port)
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Any) -> asyncio.Task[None]:
        tasks.append(asyncio.ensure_future(work))
        return tasks[-1]

    link = Link(address=f"127.0.0.1:{port}", transport=TcpTransport(), session=STANDBY, kvns="sample", spawn=spawn)
    link.follow(UID, follower, urgent=True)
    confirms = [read(frame) for frame in recorded("standby") if read(frame)[0] == "confirm"]
    await until(lambda: len(old.heard) > len(confirms))
    assert old.hellos == [PROTOCOL, 1]
    assert old.heard[0] == next(read(frame) for frame in recorded("standby") if read(frame)[0] == "subscribe")
    assert old.heard[1:] == confirms
    assert replica.chain.hex() == RECORDED["chain"]
    link.close()
    server.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    await replica.close()


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Bench]:
    """An owner with the same entries as the recorded one, but for times and names."""
    owner = await bench(tmp_path / "own", epoch=3, durability=Durability.STANDARD, replicas=("sample-0",))
    await owner.opened()
    for number in range(9):
        await owner.submit(put(f"k{number}", b"v%d" % number))
    yield owner
    await owner.replica.close()


async def test_an_owner_feeds_a_standby_of_version_1(own: Bench) -> None:
    side = OwnerSide(own)
    old = side.dialled()
    hello, subscribe, *confirms = (read(frame) for frame in recorded("standby"))
    assert await old.says(*hello) == [["hello", 1, str(OWNER), "sample-0", "sample"]]
    kinds = [message and (message[0], len(message)) for message in await old.says(*subscribe)]
    known = {(read(frame)[0], len(read(frame))) for frame in recorded("owner")}
    assert kinds
    assert set(kinds) <= known, "a message that version 1 does not know"
    for confirm in confirms:
        await old.says(*confirm)
    assert own.engine.confirmed == {MEMBER: confirms[-1][4]}
    await side.end()


async def test_a_standby_of_version_1_is_sent_no_seed(own: Bench) -> None:
    replica, at = own.replica, own.replica.last.seq
    await applied(replica, at)
    await fold(replica, at)
    entries = [replica.entry(seq) for seq in range(at + 1)]
    await own.engine.journal_checkpoint(checkpoint_of(entries, at))
    await applied(replica, at + 1)
    await trim(replica)
    assert replica.first_seq > 0
    side = OwnerSide(own)
    old = side.dialled()
    hello, subscribe, *_ = (read(frame) for frame in recorded("standby"))
    await old.says(*hello)
    assert await old.says(*subscribe) == [["refuse", UID, 3, "reseed"]]
    await side.end()


async def test_an_owner_that_was_updated_is_greeted_with_the_new_version(tmp_path: Path) -> None:
    standby = Standby(await open_replica(tmp_path))
    wire: Wire = standby.wire
    wire.inbox = asyncio.Queue()
    said = ["hello", 1, str(OWNER), "sample-0", "sample"]

    async def greeted_with() -> list[int]:
        before = len(wire.sent)
        await until(lambda: len(wire.sent) > before)
        return [message[1] for message in wire.sent[before:] if message[0] == "hello"]

    assert await greeted_with() == [PROTOCOL]
    wire.inbox.put_nowait(said)
    assert await greeted_with() == [1]  # it is of version 1
    wire.inbox.put_nowait(None)  # ... and is gone: who comes next is not known yet
    assert await greeted_with() == [PROTOCOL]
    await standby.end()


# -- what an earlier version left on disk ------------------------------------------------------------------------


def laid_down(folder: Path) -> None:
    (folder / UID).mkdir(parents=True)
    packed = (HERE / "environment_before_base.mdb.gz").read_bytes()
    (folder / UID / "data.mdb").write_bytes(gzip.decompress(packed))


async def test_an_environment_of_an_earlier_version_is_read_written_and_trimmed(tmp_path: Path) -> None:
    laid_down(tmp_path)
    replica = await Replica.open(tmp_path, UID, executor=Inline(), new_id=ids())
    await replica.verify()
    assert (replica.replica_id, replica.promised, tuple(replica.last)) == ("0123456789abcdef", 3, (3, 11, 11))
    assert replica.chain.hex() == "7c34e6b5d1b0128dc96d41d49393de22e7bd94ef6593ee2c099ca30911a1c8af"
    values = {f"key-{number}": b"value %d" % seq for number, seq in enumerate((8, 9, 6, 7))} | {"key-9": b"last"}
    assert _values(replica) == values
    entries: list[Entry] = [replica.entry(seq) for seq in range(12)]
    point: Checkpoint = checkpoint_of(entries, 9)
    entry = checkpoint_entry(seq=12, txid=12, epoch=3, unix_ns=12, checkpoint=point)
    await replica.append_copied([encode_entry(entry), encode_entry(txn(13, epoch=3))], epoch=3)
    await applied(replica, 12)
    await fold(replica, 9)
    await trim(replica)
    await replica.close()
    again = await Replica.open(tmp_path, UID, executor=Inline(), new_id=ids())
    await again.verify()
    assert (again.first_seq, again.base.seq) == (10, 9)
    assert _values(again) == values | {"k13": b"v13"}
    await again.close()


def _values(replica: Replica) -> dict[str, bytes]:
    page, more = replica.scan(limit=99, at=replica.last.seq)
    assert not more
    return {key: record.value for key, record in page}


async def test_a_format_of_a_later_version_is_named_and_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_down(tmp_path)
    before = (tmp_path / UID / "data.mdb").read_bytes()
    monkeypatch.setattr("fencekv_shard.state.FORMAT", 0)  # this program, seen from there, is the earlier one
    with pytest.raises(UnknownFormat, match="format 1, this program knows 0"):
        await Replica.open(tmp_path, UID, executor=Inline(), new_id=ids())
    assert (tmp_path / UID / "data.mdb").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [UID, f"{UID}.lock"]


def test_the_recording_is_of_version_1() -> None:
    assert [read(recorded(side)[0])[1] for side in ("owner", "standby")] == [greeting.FIRST] * 2
