"""What a drill orders of a pod: the helper carries it out once and undoes it, and the cuts in the shard let go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fake_node import FakeNode, serving
from frame_asker import connected
from memory_kube import MemoryKube
from scripted_shard import Answer, ScriptedShard
from trio import free_ports

from fencekv import leases
from fencekv.errors import Invalid
from fencekv.faults import EXPIRES_SECONDS_MAX, FAULT, Fault, Order
from fencekv.kube import LEASES, Unclear
from fencekv.leases import Session
from fencekv.transport import make_session, send
from fencekv_shard.faults import CutKube, Cuts, CutTransport
from fencekv_shard.helper import Helper
from fencekv_shard.peer import Channel, ChannelClosed, TcpTransport

ONE = Session("sample-0", "uid-1", "n1")
TWO = Session("sample-0", "uid-1", "n2")


def lease(order: Order | str | None) -> dict[str, Any]:
    """A session Lease with an order on it."""
    notes = {} if order is None else {FAULT: order if isinstance(order, str) else order.annotation()}
    return {"metadata": {"annotations": notes}}


def order(fault: Fault, *, session: Session = ONE, seconds: int = 30) -> Order:
    return Order(fault=fault, session=str(session), seconds=seconds)


class FakeShard:
    """Remembers what was done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def signal(self, number: signal.Signals) -> None:
        self.done.append(number.name)

    def cut(self, fault: Fault, seconds: float) -> None:
        self.done.append(f"{fault} {seconds}")


class Bench:
    """A helper with everything around it played by hand."""

    def __init__(self, *, successor: bool = False) -> None:
        self.shard = FakeShard()
        self.alarms: list[float] = []
        self.helper = Helper(ONE, self.shard, alarm=self.alarms.append, successor=successor)

    @property
    def done(self) -> list[str]:
        return self.shard.done


DONE_AND_UNDONE = {
    Fault.KILL: (["SIGKILL"], []),
    Fault.FREEZE: (["SIGSTOP"], ["SIGCONT"]),
    Fault.CUT_FROM_API: (["cutFromAPI 30"], ["cutFromAPI 0"]),
    Fault.CUT_FROM_PEERS: (["cutFromPeers 30"], ["cutFromPeers 0"]),
}


@pytest.mark.parametrize("fault", DONE_AND_UNDONE)
def test_an_order_is_carried_out_once_and_undone_when_it_is_taken_back(fault: Fault) -> None:
    bench, (done, undone) = Bench(), DONE_AND_UNDONE[fault]
    for _ in range(3):
        bench.helper.seen(lease(order(fault)))
    assert bench.done == done
    assert bench.alarms[-1] == 30
    bench.helper.seen(lease(None))
    bench.helper.seen(lease(None))
    assert bench.done == [*done, *undone]
    assert bench.alarms[-1] == 0


@pytest.mark.parametrize("fault", DONE_AND_UNDONE)
def test_an_order_that_nobody_takes_back_is_undone_when_its_seconds_are_over(fault: Fault) -> None:
    bench, (done, undone) = Bench(), DONE_AND_UNDONE[fault]
    bench.helper.seen(lease(order(fault)))
    bench.helper.expired()
    bench.helper.seen(lease(order(fault)))  # It still stands there.
    assert bench.done == [*done, *undone]


def test_another_order_undoes_the_one_before() -> None:
    bench = Bench()
    bench.helper.seen(lease(order(Fault.FREEZE)))
    bench.helper.seen(lease(order(Fault.CUT_FROM_API)))
    assert bench.done == ["SIGSTOP", "SIGCONT", "cutFromAPI 30"]


def test_the_successor_of_a_helper_that_died_does_not_carry_out_its_order_again() -> None:
    bench = Bench(successor=True)
    bench.helper.seen(lease(order(Fault.FREEZE)))
    assert bench.done == []
    bench.helper.seen(lease(order(Fault.FREEZE, seconds=7)))
    assert bench.done == ["SIGSTOP"]


@pytest.mark.parametrize(
    "unfit",
    [
        order(Fault.KILL, session=TWO),
        "kill",
        json.dumps({"fault": "deletePod", "session": str(ONE), "expires": 30}),
        json.dumps({"fault": "kill", "session": str(ONE), "expires": 0}),
        json.dumps({"fault": "kill", "session": str(ONE), "expires": EXPIRES_SECONDS_MAX + 1}),
        json.dumps({"fault": "kill", "session": str(ONE), "expires": True}),
        json.dumps({"fault": "kill", "session": str(ONE)}),
        "x" * 2000,
    ],
)
def test_an_order_for_another_session_or_none_of_ours_does_nothing(unfit: Order | str) -> None:
    bench = Bench()
    bench.helper.seen(lease(unfit))
    assert bench.done == []
    if isinstance(unfit, str):
        with pytest.raises(Invalid):
            Order.of(lease(unfit))


async def test_a_cut_ends_by_itself_and_by_order() -> None:
    cuts = Cuts()
    cuts.order(Fault.CUT_FROM_API, 0.05)
    assert cuts.active(Fault.CUT_FROM_API)
    assert not cuts.active(Fault.CUT_FROM_PEERS)
    async with asyncio.timeout(5):
        await cuts.passable(Fault.CUT_FROM_API)
    cuts.order(Fault.CUT_FROM_PEERS, 60)
    cuts.order(Fault.CUT_FROM_PEERS, 0)
    assert not cuts.active(Fault.CUT_FROM_PEERS)


async def test_a_new_order_is_not_ended_by_the_time_of_the_one_before() -> None:
    cuts = Cuts()
    cuts.order(Fault.CUT_FROM_API, 0.01)
    cuts.order(Fault.CUT_FROM_API, 60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cuts.passable(Fault.CUT_FROM_API), 0.05)
    cuts.order(Fault.CUT_FROM_API, 0)


async def test_orders_come_through_the_pipe_and_what_is_none_is_left_out() -> None:
    cuts = Cuts()
    reading, writing = os.pipe()
    end = cuts.listen(reading)
    try:
        lines = [b"nonsense", b'{"fault":"kill","seconds":9}', b'{"fault":"cutFromPeers","seconds":60}']
        os.write(writing, b"\n".join(lines) + b"\n")
        async with asyncio.timeout(5):
            while not cuts.active(Fault.CUT_FROM_PEERS):
                await asyncio.sleep(0.001)
        assert not cuts.active(Fault.CUT_FROM_API)
        cuts.order(Fault.CUT_FROM_PEERS, 0)
    finally:
        end()
        os.close(reading)
        os.close(writing)


async def test_while_it_is_cut_off_no_request_is_sent_and_no_answer_arrives() -> None:
    kube, cuts = MemoryKube(), Cuts()
    cut = CutKube(kube, cuts)
    body = leases.new_session_lease(
        session=ONE,
        kvns="sample",
        namespace="default",
        valid_seconds=4,
        renewal=1,
        http="",
        peer="",
        unix_seconds=0,
    )
    made = await cut.create(LEASES, "default", body)
    cuts.order(Fault.CUT_FROM_API, 60)
    sent = len(kube.requests)
    with pytest.raises(Unclear, match="nothing was sent"):
        await cut.get(LEASES, "default", made["metadata"]["name"], timeout=0.01)
    assert len(kube.requests) == sent
    cuts.order(Fault.CUT_FROM_API, 0)
    kube.after = lambda _method, _path: cuts.order(Fault.CUT_FROM_API, 60)  # cut while the answer is under way
    with pytest.raises(Unclear, match="no answer arrived"):
        await cut.replace(LEASES, "default", made, timeout=0.01)
    cuts.order(Fault.CUT_FROM_API, 0)


async def test_a_watch_goes_on_after_the_cut_with_what_happened_meanwhile() -> None:
    kube, cuts = MemoryKube(), Cuts()
    version = (await kube.list(LEASES, "default")).resource_version
    stream = CutKube(kube, cuts).watch(LEASES, "default", resource_version=version)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    cuts.order(Fault.CUT_FROM_API, 60)
    body = leases.new_session_lease(
        session=ONE,
        kvns="sample",
        namespace="default",
        valid_seconds=4,
        renewal=1,
        http="",
        peer="",
        unix_seconds=0,
    )
    await kube.create(LEASES, "default", body)
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    cuts.order(Fault.CUT_FROM_API, 0)
    async with asyncio.timeout(5):
        assert (await waiting).type == "ADDED"
    await stream.aclose()  # type: ignore[attr-defined]


Pair = tuple[Channel, Channel, Cuts]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Both ends of a channel; the dialling side can be cut."""
    address, cuts = f"127.0.0.1:{free_ports(1)[0]}", Cuts()
    accepted: asyncio.Queue[Channel] = asyncio.Queue()

    async def serve(channel: Channel) -> None:
        accepted.put_nowait(channel)
        await asyncio.Event().wait()

    listener = await TcpTransport().listen(address, serve)
    ours = await CutTransport(TcpTransport(), cuts).connect(address)
    theirs = await accepted.get()
    yield ours, theirs, cuts
    ours.close()
    theirs.close()
    listener.close()


async def test_while_peers_are_cut_off_nothing_passes_and_then_it_does(pair: Pair) -> None:
    ours, theirs, cuts = pair
    cuts.order(Fault.CUT_FROM_PEERS, 60)
    await theirs.send(["ping", 1])
    receiving = asyncio.ensure_future(ours.receive())
    sending = asyncio.ensure_future(ours.send(["pong", 2]))
    done, _ = await asyncio.wait([receiving, sending], timeout=0.05)
    assert not done
    cuts.order(Fault.CUT_FROM_PEERS, 0)
    async with asyncio.timeout(5):
        assert await receiving == ["ping", 1]
        await sending
        assert await theirs.receive() == ["pong", 2]


async def test_a_channel_that_is_closed_while_it_is_cut_ends_at_once(pair: Pair) -> None:
    ours, theirs, cuts = pair
    cuts.order(Fault.CUT_FROM_PEERS, 60)
    await theirs.send(["ping", 1])
    receiving = asyncio.ensure_future(ours.receive())
    await asyncio.wait([receiving], timeout=0.05)
    ours.close()
    async with asyncio.timeout(5):
        with pytest.raises(ChannelClosed):
            await receiving
    cuts.order(Fault.CUT_FROM_PEERS, 0)


# -- what is forwarded to other shards

Ask = Callable[[str], Awaitable[str]]  # "put" or "get"; gives "ok", or the error's name


@pytest.fixture(params=["frames", "http"])
async def forwarding(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Ask, ScriptedShard, Cuts]]:
    """Asks a shard that forwards everything to the scripted owner; its connections can be cut."""
    node, cuts = FakeNode(pod="sample-0"), Cuts()
    node.add_table("orders", owned=False)
    shards = serving(node, cuts=cuts)
    async with shards as [one], ScriptedShard().running() as owner, make_session() as session:
        node.point("orders", 0, owner="sample-1", http=owner.address)

        async def over_http(what: str) -> str:
            url, method = f"http://127.0.0.1:{one.port}/v1/sample/orders/keys/k", what.upper()
            reply = await send(session, method=method, url=url, headers={}, timeout=10)
            return "ok" if reply.status == 200 else str(json.loads(reply.body)["title"])

        async def over_frames(what: str) -> str:
            async with connected(one.port) as ask:
                answer = await (ask.put("k") if what == "put" else ask.get("k"))
            return str(getattr(answer, "name", "ok"))

        try:
            yield (over_frames if request.param == "frames" else over_http), owner, cuts
        finally:
            cuts.order(Fault.CUT_FROM_PEERS, 0)


Forwarding = tuple[Ask, ScriptedShard, Cuts]


async def test_while_peers_are_cut_off_nothing_is_forwarded_and_then_it_is(forwarding: Forwarding) -> None:
    ask, owner, cuts = forwarding
    assert await ask("put") == "ok"  # the connection to the owner is there
    cuts.order(Fault.CUT_FROM_PEERS, 60)
    assert await asyncio.gather(ask("put"), ask("get")) == ["Unavailable", "Unavailable"]
    assert len(owner.seen) == 1
    cuts.order(Fault.CUT_FROM_PEERS, 0)
    assert await ask("put") == "ok"


async def test_an_owners_answer_that_is_under_way_when_peers_are_cut_off_comes_afterwards(
    forwarding: Forwarding,
) -> None:
    ask, owner, cuts = forwarding
    owner.script = [Answer(delay=0.05)]
    answer = asyncio.ensure_future(ask("put"))
    async with asyncio.timeout(5):
        while not owner.seen:
            await asyncio.sleep(0.001)
    cuts.order(Fault.CUT_FROM_PEERS, 60)
    done, _ = await asyncio.wait([answer], timeout=0.2)
    assert not done
    cuts.order(Fault.CUT_FROM_PEERS, 0)
    assert await answer == "ok"


async def test_an_owners_answer_that_does_not_come_in_time_leaves_a_write_unknown(
    forwarding: Forwarding, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask, owner, cuts = forwarding
    for module in ("forward", "frame_forward"):
        monkeypatch.setattr(f"fencekv_shard.{module}.RELAY_SECONDS", 0.3)
    owner.script = [Answer(delay=0.05), Answer(delay=0.05)]
    answers = [asyncio.ensure_future(ask(what)) for what in ("put", "get")]
    async with asyncio.timeout(5):
        while len(owner.seen) < 2:
            await asyncio.sleep(0.001)
    cuts.order(Fault.CUT_FROM_PEERS, 60)
    assert await asyncio.gather(*answers) == ["Unknown", "Unavailable"]
    assert "not foreseen" not in caplog.text
