"""Clients of a simulation: they put, get and compare-and-set a few keys, and record what they were told.

Invariants:
  * An operation is recorded as refused only if every attempt of it was certainly not carried out.
  * Each put and each CAS writes a value of its own, and carries an idempotency key through all its attempts.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fencekv.errors import ERRORS
from simulation.checker import History, Kind, Operation, Outcome
from simulation.loop import Process
from simulation.network import Network, NoAnswer, NotSent

REQUEST_SECONDS: Final = 3.0
NOT_DONE: Final = frozenset({"NotOwner", "Unavailable", "Fenced", "Exhausted", "NotSent", "Lost"})

Answer = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Habits:
    """How clients behave."""

    keys: Sequence[str]
    gap_seconds_max: float = 0.3
    attempts_max: int = 3
    write_share: float = 0.45
    cas_share: float = 0.2
    cached_share: float = 0.1
    list_share: float = 0.15
    history_share: float = 0.15


@dataclass(slots=True, kw_only=True)
class Client:
    """One client process, one request at a time."""

    name: str
    network: Network
    process: Process
    history: History
    chance: random.Random
    habits: Habits
    addresses: Sequence[str]  # of the shards
    stopped: bool = False
    _written: int = 0
    _seen: dict[str, bytes | None] = field(default_factory=dict)  # what a key last showed
    # By key, because clients of a simulation do not know partitions.
    _epochs: dict[str, int] = field(default_factory=dict)  # the highest seen
    _tokens: dict[str, str] = field(default_factory=dict)
    _owners: dict[str, str] = field(default_factory=dict)  # addresses

    async def run(self) -> None:
        """Asks one thing after another until it is stopped."""
        while not self.stopped:
            await asyncio.sleep(self.chance.random() * self.habits.gap_seconds_max)
            key = self.chance.choice(self.habits.keys)
            drawn = self.chance.random()
            if drawn < self.habits.write_share:
                await self.put(key)
            elif drawn < self.habits.write_share + self.habits.cas_share:
                await self.compare_and_set(key)
            else:
                await self._read(key)

    async def _read(self, key: str) -> None:
        drawn = self.chance.random() - self.habits.list_share
        if drawn < 0:
            await self.list(key)
        elif drawn < self.habits.history_share:
            await self.see_history(key)
        else:
            await self.get(key, cached=self.chance.random() < self.habits.cached_share)

    async def put(self, key: str) -> Outcome:
        """Writes a new value."""
        operation = self._operation(Kind.PUT, key, value=self._value())
        return await self._write(operation)

    async def compare_and_set(self, key: str) -> Outcome:
        """Writes a new value if the key still shows what this client last saw there."""
        operation = self._operation(Kind.CAS, key, value=self._value(), expected=self._seen.get(key))
        return await self._write(operation)

    async def get(self, key: str, *, cached: bool = False) -> Outcome:
        """Reads a key."""
        operation = self._operation(Kind.GET, key)
        operation.cached = cached
        self.history.call(operation)
        request = {"op": "get", "key": key, "cached": cached, **self._marks(key)}
        for _ in range(self.habits.attempts_max):
            answer = await self._attempt(request, anywhere=cached)
            if "error" not in answer:
                operation.value = answer["value"]
                self._note(key, operation, answer)
                return self._close(operation, Outcome.OK)
        return self._close(operation, Outcome.REFUSED)

    async def list(self, key: str) -> None:
        """Reads all keys of a key's partition at one state: a read of each of them, absent ones included."""
        operations = [self._operation(Kind.GET, one) for one in self.habits.keys]
        answer = await self._look("list", key, operations)
        for operation in operations:
            found = answer.get("items", {}).get(operation.key)
            if found is None:  # of another partition, or nothing was answered
                self._close(operation, Outcome.REFUSED)
                continue
            operation.value = found["value"]
            self._note(operation.key, operation, {**answer, **found})
            self._close(operation, Outcome.OK)

    async def see_history(self, key: str) -> None:
        """Reads all versions of a key: the newest is what it holds, and none may be one that is taken back."""
        operation = self._operation(Kind.GET, key)
        answer = await self._look("history", key, [operation])
        if "changes" not in answer:
            self._close(operation, Outcome.REFUSED)
            return
        newest = next(iter(answer["changes"]), {"value": None, "version": None})
        operation.value = newest["value"]
        self._note(key, operation, {**answer, **newest})
        self._close(operation, Outcome.OK)
        for change in answer["changes"][1:]:
            earlier = self._operation(Kind.GET, key, value=change["value"])
            earlier.cached, earlier.version, earlier.pod = True, tuple(change["version"]), answer["pod"]
            self.history.call(earlier)
            self.history.answer(earlier, Outcome.OK)

    async def _look(self, op: str, key: str, operations: Sequence[Operation]) -> Answer:
        for operation in operations:
            self.history.call(operation)
        request = {"op": op, "key": key, "keys": [*self.habits.keys], "cached": False, **self._marks(key)}
        for _ in range(self.habits.attempts_max):
            answer = await self._attempt(request)
            if "error" not in answer:
                return answer
        return {}

    async def _write(self, operation: Operation) -> Outcome:
        self.history.call(operation)
        request = {
            "op": str(operation.kind),
            "key": operation.key,
            "value": operation.value,
            "expected": operation.expected,
            "idempotency": f"{self.name}-{self._written}".encode(),
        }
        unclear = False
        for _ in range(self.habits.attempts_max):
            answer = await self._attempt({**request, **self._marks(operation.key)})
            if "error" not in answer:
                if not answer["done"]:
                    # An earlier attempt may still arrive, find its condition true and be carried out.
                    return self._close(operation, Outcome.UNKNOWN if unclear else Outcome.NO)
                self._note(operation.key, operation, answer)
                return self._close(operation, Outcome.OK)
            if answer["error"] not in NOT_DONE:
                unclear = True
                if self.chance.random() < 0.5:
                    break  # this client does not ask again
        return self._close(operation, Outcome.UNKNOWN if unclear else Outcome.REFUSED)

    async def _attempt(self, request: Answer, *, anywhere: bool = False) -> Answer:
        key = request["key"]
        address = self._owners.get(key, "")
        if anywhere or not address:
            address = self.chance.choice(self.addresses)
        try:
            answer: Answer = await self.network.request(address, request, timeout=REQUEST_SECONDS)
        except NotSent:
            answer = {"error": "NotSent"}
        except NoAnswer:
            answer = {"error": "NoAnswer"}
        if "error" not in answer:
            if not anywhere:
                self._owners[key] = address
            return answer
        assert answer["error"] in ERRORS or answer["error"] in {"NotSent", "NoAnswer"}, answer
        if answer["error"] == "Lost":
            self.history.oddities.append(f"{self.name}: a token was lost under replicated: {request} {answer}")
        self._owners[key] = answer.get("http") or ""
        await asyncio.sleep(self.chance.random() * 0.2)
        return answer

    def _marks(self, key: str) -> Answer:
        """What a client shows of what it has seen: the epoch, and the token of its last answer for this key."""
        token = self._tokens.get(key) if self.chance.random() < 0.5 else None
        return {"epoch": self._epochs.get(key), "token": token}

    def _note(self, key: str, operation: Operation, answer: Answer) -> None:
        operation.version = tuple(answer["version"]) if answer["version"] else None
        operation.pod = answer["pod"]
        self._seen[key] = operation.value
        if not operation.cached:
            self._tokens[key] = answer["token"]
            epoch = int(answer["token"].partition(".")[0])
            self._epochs[key] = max(epoch, self._epochs.get(key, 0))

    def _operation(
        self, kind: Kind, key: str, *, value: bytes | None = None, expected: bytes | None = None
    ) -> Operation:
        now = round(self.process.loop.time(), 6)
        return Operation(client=self.name, kind=kind, key=key, value=value, expected=expected, time=now)

    def _value(self) -> bytes:
        self._written += 1
        return f"{self.name}-{self._written}".encode()

    def _close(self, operation: Operation, outcome: Outcome) -> Outcome:
        self.history.answer(operation, outcome)
        self.process.loop.trace(f"client {operation}")
        return outcome
