"""What a Kubernetes API server does, as one list asked of the embedded server and of a real one.

Each behaviour is a small coroutine over raw HTTP. Where the embedded server is known to differ, the behaviour says
why: it must hold on the real server, and must not hold on the embedded one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from apiservers import Api

Check = Callable[[Api, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One line of the list. `difference` is empty where both servers must agree."""

    name: str
    check: Check
    difference: str = ""


BEHAVIOURS: list[Behaviour] = []


def behaviour(check: Check) -> Check:
    """Both servers do this."""
    BEHAVIOURS.append(Behaviour(name=_name(check), check=check))
    return check


def only_real(difference: str) -> Callable[[Check], Check]:
    """The real server does this, the embedded one does not: `difference` says what it does instead."""

    def add(check: Check) -> Check:
        BEHAVIOURS.append(Behaviour(name=_name(check), check=check, difference=difference))
        return check

    return add


def _name(check: Check) -> str:
    name = getattr(check, "__name__", "")
    assert name
    assert all(one.name != name for one in BEHAVIOURS), f"{name} stands in the list twice"
    return name


def load() -> list[Behaviour]:
    """The whole list."""
    from conformance import applying, custom, deletion, differences, leases, listing, objects, shapes, watches  # noqa: F401

    return BEHAVIOURS
