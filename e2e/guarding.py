"""A fault with a guardian: harm that is undone whatever becomes of the process that did it.

Invariants:
  * The guardian runs before the harm is done, and undoing what was not done is harmless.
  * A fault that could not be undone is an error of its own, and is in `LOG`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kubectl import command, say

GUARDIAN: Final = Path(__file__).parent / "guardian.py"
LOG: Final = Path(tempfile.gettempdir()) / "fencekv-faults.log"
EXPIRES_SECONDS: Final = 300.0
TRIES_SECONDS: Final = 90.0

Words = Sequence[str]


class NotUndone(AssertionError):
    """A fault is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What to do and how to undo it; every member is a command, or several of them.

    `check` succeeds if and only if nothing of the fault is left.
    """

    name: str
    harm: Sequence[Words]
    undo: Sequence[Words]
    check: Words
    expires_seconds: float = EXPIRES_SECONDS  # then it is undone whatever happens
    tries_seconds: float = TRIES_SECONDS  # how long undoing is tried


class Done:
    """A fault that was done. `undo` may be called early, and again."""

    def __init__(self, fault: Fault, guardian: subprocess.Popen[str]) -> None:
        self._fault, self._guardian = fault, guardian
        self._is_over = False

    def undo(self) -> None:
        """Undoes it.

        Raises:
            NotUndone: something of it is left.
        """
        if self._is_over:
            return
        self._is_over = True
        said, _ = self._guardian.communicate("undo\n")
        outcome = json.loads(said) if said else {"undone": False, "problems": ["the guardian died"]}
        if not outcome["undone"]:
            raise NotUndone(f"{self._fault.name} could not be undone: {outcome['problems']}")
        if outcome["reason"] != "told":
            raise NotUndone(f"{self._fault.name}: undone too early, because its time was over")


@contextlib.contextmanager
def done(fault: Fault) -> Iterator[Done]:
    """Does harm, and undoes it at the end.

    Raises:
        NotUndone: something of it is left.
    """
    say(f"fault: {fault.name}")
    order = {
        "name": fault.name,
        "seconds": fault.expires_seconds,
        "tries_seconds": fault.tries_seconds,
        "undo": [list(words) for words in fault.undo],
        "check": list(fault.check),
        "log": str(LOG),
    }
    guardian = subprocess.Popen(  # noqa: S603 - a program of the suite's own
        [sys.executable, str(GUARDIAN), json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with guardian:
        harm = Done(fault, guardian)
        try:
            assert guardian.stdout is not None
            if guardian.stdout.readline() != "ready\n":
                raise NotUndone(f"{fault.name}: its guardian did not start")
            for words in fault.harm:
                command(*words)
            yield harm
        finally:
            harm.undo()
