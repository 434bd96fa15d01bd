"""A shard that answers what a test tells it, or breaks off: for what a real one does only in bad moments.

It speaks HTTP and frames, as a shard does. What a test tells it is in HTTP's terms, and so is what it has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fencekv import frames
from fencekv import messages as m
from fencekv.errors import FenceKVError, TooLarge
from fencekv.frame_reader import read_message
from fencekv.http_form import read_answer, request_form
from fencekv.partitioning import HashPartitioning
from fencekv.transport import Reply

PUT_ANSWER = {"version": "1.0", "token": "1.1", "partition": "orders-0"}


@dataclass(frozen=True)
class Answer:
    """One answer. `delay`: seconds before it is sent."""

    status: int = 200
    document: Any = field(default_factory=lambda: dict(PUT_ANSWER))
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0

    @classmethod
    def of(cls, error: FenceKVError, **headers: str) -> Answer:
        return cls(error.status, error.to_problem(), {name.replace("_", "-"): v for name, v in headers.items()})


@dataclass(frozen=True)
class Drop:
    """Reads the request, then ends the connection without an answer."""


@dataclass(frozen=True)
class Silence:
    """Reads the request and never answers."""


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class ScriptedShard:
    """Takes one step of `script` for each request that is not for `/v1/route`; then goes on with plain answers."""

    def __init__(self, *script: Answer | Drop | Silence) -> None:
        self.script = list(script)
        self.seen: list[Seen] = []
        self.owner_http: str | None = None  # what /v1/route names; None: itself
        self.others: list[str] = []  # owners of further partitions, as /v1/route names them
        self.count = 1  # partitions by which keys are cut
        self.route_keys: list[str | None] = []  # of each asking for routes: of one key's partition, or of all
        self.refused_keys: set[str] = set()  # by those who ask for routes
        self.answering = asyncio.Event()  # to those who ask for routes
        self.answering.set()
        self.epoch = 1
        self.port = 0
        self.messages: list[m.ClientMessage] = []  # all that came in frames
        self.welcome: m.ShardMessage = m.Welcome(m.VERSION, "sample-0", m.Limits())
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def routes_asked(self) -> int:
        return len(self.route_keys)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedShard]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            first = await reader.readexactly(1)
            if first == b"\0":
                await self._frames(reader, writer)
                return
            while await self._one(reader, writer, first):
                first = await reader.readexactly(1)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> bool:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in head[1:] if line}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if target.startswith("/v1/route/"):
            _, _, key = target.partition("?key=")
            self._write(writer, await self._asked(key or None))
            return True
        self.seen.append(Seen(method, target, headers, body))
        step = self.script.pop(0) if self.script else Answer()
        if isinstance(step, Drop):
            return False
        if isinstance(step, Silence):
            await asyncio.Event().wait()
        assert isinstance(step, Answer)
        await asyncio.sleep(step.delay)
        self._write(writer, step)
        return True

    async def _frames(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers frames; each request in a task of its own, as they come in any order."""
        splitter = frames.Splitter()
        steps: set[asyncio.Task[None]] = set()
        data = b"\0"
        try:
            while data:
                for body in splitter.feed(data):
                    self._frame(read_message(body), writer, steps)
                data = await reader.read(1 << 16)
        finally:
            for step in steps:
                step.cancel()

    def _frame(self, message: m.ClientMessage, writer: asyncio.StreamWriter, steps: set[Any]) -> None:
        self.messages.append(message)
        if isinstance(message, m.Hello):
            writer.write(frames.encode(self.welcome))
        elif isinstance(message, m.Request):
            steps.add(asyncio.ensure_future(self._framed(message, writer)))

    async def _framed(self, request: m.Request, writer: asyncio.StreamWriter) -> None:
        step: Answer | Drop | Silence
        if isinstance(request, m.Route):
            step = await self._asked(request.key)
        else:
            form = request_form("sample", request)
            headers = {name.lower(): value for name, value in form.headers.items()}
            self.seen.append(Seen(form.method, form.target, headers, form.body))
            step = self.script.pop(0) if self.script else Answer()
        if isinstance(step, Drop):
            writer.close()
        if isinstance(step, Drop | Silence):
            return
        await asyncio.sleep(step.delay)
        body = step.document.encode() if isinstance(request, m.Get) else json.dumps(step.document).encode()
        answer = read_answer(request, Reply(status=step.status, headers=step.headers, body=body))
        writer.write(frames.encode(answer._replace(number=request.number)))

    async def _asked(self, key: str | None) -> Answer:
        self.route_keys.append(key)
        await self.answering.wait()
        if key in self.refused_keys:
            return Answer.of(TooLarge("key: too long"))
        return Answer(document=self._route(key))

    def _route(self, key: str | None) -> dict[str, Any]:
        http = self.address if self.owner_http is None else self.owner_http
        entry = {
            "partition": "orders-0",
            "index": 0,
            "epoch": self.epoch,
            "owner": "x",
            "http": http,
            "token": None,
        }
        further = [
            {**entry, "partition": f"orders-{place}", "index": place, "http": other}
            for place, other in enumerate(self.others, start=1)
        ]
        index = None if key is None else HashPartitioning(self.count).partition_of(key)
        named = [each for each in (entry, *further) if key is None or each["index"] == index]
        return {"partitions": named, "partitioning": {"strategy": "hash", "count": self.count}}

    def _write(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        body = json.dumps(answer.document).encode()
        lines = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {len(body)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def closed_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
