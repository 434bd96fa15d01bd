"""What clients asked and were told, and whether any order explains it. Pure.

`History` records operations; the checks look at it alone. A drill's history file and the tests of the protocol
are judged by this one checker.

Invariants:
  * Order is the order of recording (one loop, one order), not clock values: an operation precedes another only
    if its answer was recorded before the other was invoked.
  * A check never forgives: an operation of unknown outcome may have happened at any time after its call, or
    never, and nothing else may.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Value = bytes | None  # None: the key is absent.
Version = tuple[int, int]  # epoch, seq

STATES_MAX: Final = 1_000_000


class Kind(enum.StrEnum):
    """What a client asked."""

    PUT = "put"
    GET = "get"
    CAS = "cas"  # if the key holds `expected`, set `value`


class Outcome(enum.StrEnum):
    """What it was told."""

    PENDING = "pending"
    OK = "ok"
    NO = "no"  # a CAS whose condition did not hold
    REFUSED = "refused"  # certainly not done
    UNKNOWN = "unknown"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One request. `called` and `answered` are positions in the order of recording."""

    client: str
    kind: Kind
    key: str
    value: Value = None  # of a put or CAS what it writes, of a get what it showed
    expected: Value = None
    version: Version | None = None  # None: not known, or the key is absent.
    pod: str = ""  # who acknowledged
    outcome: Outcome = Outcome.PENDING
    called: int = 0
    answered: int | None = None  # None: never.
    time: float = 0.0  # of the call, seconds
    seconds: float = 0.0  # from the call to the answer
    replicated: bool = True  # acknowledged under `replicated`
    cached: bool = False  # a read of any replica: not linearizable, yet never of what is taken back

    def __str__(self) -> str:
        change = f"{self.expected!r}->{self.value!r}" if self.kind is Kind.CAS else f"{self.value!r}"
        span = f"[{self.called}..{'' if self.answered is None else self.answered}]"
        return f"{span} {self.client} {self.kind} {self.key} {change} = {self.outcome} {self.version} {self.pod}"


class History:
    """Operations in the order in which they were called."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.oddities: list[str] = []  # answers that no client should ever get
        self._clock = 0

    def call(self, operation: Operation) -> Operation:
        """Records a call."""
        operation.called = self._tick()
        self.operations.append(operation)
        return operation

    def answer(self, operation: Operation, outcome: Outcome) -> None:
        """Records an answer; for UNKNOWN and REFUSED too."""
        assert operation.answered is None, operation
        operation.answered, operation.outcome = self._tick(), outcome

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted({operation.key for operation in self.operations})

    def of(self, key: str) -> list[Operation]:
        """The operations on one key that must be linearizable."""
        return [one for one in self.operations if one.key == key and not one.cached]


# Linearizability


@dataclass(slots=True, eq=False)
class _Node:
    """A call or a return in the doubly linked list that the search walks."""

    index: int
    operation: Operation | None  # None: a return, or the head.
    mate: _Node | None = None  # a call's return; None: it never returned, or this is no call
    before: _Node | None = None
    after: _Node | None = None

    def lift(self) -> None:
        for node in (self, self.mate):
            if node is not None and node.before is not None:
                node.before.after = node.after
                if node.after is not None:
                    node.after.before = node.before

    def unlift(self) -> None:
        for node in (self.mate, self):
            if node is not None and node.before is not None:
                node.before.after = node
                if node.after is not None:
                    node.after.before = node


def step(state: Value, operation: Operation) -> tuple[bool, Value]:
    """Whether an operation may happen in a state with the outcome that it had, and the state after it."""
    if operation.kind is Kind.GET:
        return state == operation.value, state
    if operation.kind is Kind.PUT:
        return True, operation.value
    held = state == operation.expected
    if operation.outcome is Outcome.NO:
        return not held, state
    if operation.outcome is Outcome.OK:
        return held, operation.value if held else state
    return True, operation.value if held else state  # unknown: whatever its condition gave


def linearizable(operations: Sequence[Operation], *, initial: Value = None) -> bool:
    """Whether the operations on one key have an order that explains every answer (Wing, Gong, Lowe).

    An operation that only looks is taken as soon as it may be: that cannot spoil anything, so the search never
    comes back to it.
    """
    certain, seen, unseen = _relevant(operations)
    if _search(certain, seen, initial):
        return True
    return bool(unseen) and _search(certain, [*seen, *unseen], initial)


def _search(certain: Sequence[Operation], unclear: Sequence[Operation], initial: Value) -> bool:
    """Whether the certain operations and some of the unclear ones have an order."""
    known, chosen = len(certain), sorted([*certain, *unclear], key=lambda one: one.called)
    head = _linked(chosen)
    state, done, remaining = initial, 0, known
    seen: set[tuple[int, Value]] = set()
    stack: list[tuple[_Node, Value, bool]] = []
    node = head.after
    while remaining:
        if node is not None and node.operation is not None:
            possible, following = step(state, node.operation)
            mark = (done | (1 << node.index), following)
            if possible and mark not in seen:
                seen.add(mark)
                assert len(seen) < STATES_MAX, "history too tangled to check"
                stack.append((node, state, _harmless(node.operation, following == state)))
                remaining -= _certain(node.operation)
                done, state = mark
                node.lift()
                node = head.after
            else:
                node = node.after
            continue
        while True:  # a return that comes too early, or the end: back to the last choice
            if not stack:
                return False
            last, state, harmless = stack.pop()
            assert last.operation is not None, last
            done &= ~(1 << last.index)
            remaining += _certain(last.operation)
            last.unlift()
            if not harmless:
                node = last.after
                break
    return True


def _harmless(operation: Operation, unchanged: bool) -> bool:
    """Whether taking it as early as possible cannot be wrong: it only looked. A put may be needed later."""
    return unchanged and operation.kind is not Kind.PUT and _certain(operation)


def _certain(operation: Operation) -> bool:
    return operation.outcome in (Outcome.OK, Outcome.NO)


def _relevant(operations: Sequence[Operation]) -> tuple[list[Operation], list[Operation], list[Operation]]:
    """What must be explained, what may be needed for it, and what is hardly ever needed.

    Refused operations and reads without an answer explain nothing. A write of unknown outcome whose value nobody
    saw may be left out, unless a failed CAS owes its failure to it: tried where nothing simpler explains.
    """
    certain = [one for one in operations if _certain(one)]
    unclear = [
        one for one in operations if one.kind is not Kind.GET and one.outcome in (Outcome.UNKNOWN, Outcome.PENDING)
    ]
    wanted = {one.value for one in certain if one.kind is Kind.GET}
    wanted |= {one.expected for one in operations if one.kind is Kind.CAS}
    failed = any(one.kind is Kind.CAS and one.outcome is Outcome.NO for one in operations)
    seen = [one for one in unclear if one.value in wanted]
    return certain, seen, [one for one in unclear if one.value not in wanted] if failed else []


def _linked(operations: Sequence[Operation]) -> _Node:
    points: list[tuple[int, _Node]] = []
    for index, operation in enumerate(operations):
        call = _Node(index, operation)
        points.append((operation.called, call))
        if _certain(operation):
            assert operation.answered is not None, operation
            call.mate = _Node(index, None)
            points.append((operation.answered, call.mate))
    head = last = _Node(-1, None)
    for _, node in sorted(points, key=lambda point: point[0]):
        last.after, node.before = node, last
        last = node
    return head


def check_linearizable(history: History) -> list[str]:
    """Each key's history has an explanation."""
    bad = []
    for key in history.keys():  # noqa: SIM118 - not a mapping
        operations = history.of(key)
        if not linearizable(operations):
            bad.append("\n  ".join([f"not linearizable: key {key}", *map(str, operations)]))
    return bad


def check_versions(history: History) -> list[str]:
    """A version stands for one value, and versions of a key never fall in real time."""
    bad: list[str] = []
    for key in history.keys():  # noqa: SIM118
        shown: dict[Version, Value] = {}
        answered = [one for one in history.of(key) if one.outcome is Outcome.OK and one.version is not None]
        for one in answered:
            assert one.version is not None, one
            if shown.setdefault(one.version, one.value) != one.value:
                bad.append(f"version {one.version} of {key} has two values: {shown[one.version]!r}, {one}")
        bad.extend(_falling(answered))
    return bad


def _falling(answered: Sequence[Operation]) -> list[str]:
    bad: list[str] = []
    highest: Operation | None = None
    by_answer = sorted(answered, key=lambda one: one.answered or 0)
    earlier = 0
    for one in sorted(answered, key=lambda one: one.called):
        while earlier < len(by_answer) and (by_answer[earlier].answered or 0) < one.called:
            before = by_answer[earlier]
            if highest is None or (before.version or (0, 0)) > (highest.version or (0, 0)):
                highest = before
            earlier += 1
        if highest is not None and (one.version or (0, 0)) < (highest.version or (0, 0)):
            bad.append(f"version fell:\n  {highest}\n  {one}")
    return bad


def stale_acknowledgements(operations: Sequence[Operation]) -> list[Operation]:
    """Writes to one partition that were acknowledged under an epoch that had been succeeded when they were called.

    A higher epoch was known to be at work if anything was answered under it before the call.
    """
    done = [one for one in operations if one.outcome is Outcome.OK and one.version is not None and not one.cached]
    by_answer = sorted(done, key=lambda one: one.answered or 0)
    stale: list[Operation] = []
    highest, earlier = 0, 0
    for one in sorted(done, key=lambda one: one.called):
        while earlier < len(by_answer) and (by_answer[earlier].answered or 0) < one.called:
            highest = max(highest, (by_answer[earlier].version or (0, 0))[0])
            earlier += 1
        if one.kind is not Kind.GET and (one.version or (0, 0))[0] < highest:
            stale.append(one)
    return stale
